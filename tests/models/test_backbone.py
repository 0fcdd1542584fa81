import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from cityopt.models.backbone import STRIDES, Backbone, Norm


def build(name: str = "resnet18", *, stem: int = 16, freeze_depth: int = 0, norm: Norm = "batch") -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, stem_channels=stem, fpn_channels=8, freeze_depth=freeze_depth, norm=norm)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (96, 32)])
def test_backbone_gives_five_levels_at_fixed_strides(height: int, width: int) -> None:
    features = build()(torch.rand(2, 3, height, width))
    expected = [(2, 8, -(-height // stride), -(-width // stride)) for stride in STRIDES]
    assert [tuple(f.shape) for f in features] == expected


@pytest.mark.parametrize(
    ("name", "stem", "millions"), [("resnet18", 64, 11.18), ("resnet50", 64, 23.51), ("resnet101", 64, 42.50)]
)
def test_body_has_the_parameters_of_the_paper_without_classifier(name: str, stem: int, millions: float) -> None:
    with torch.device("meta"):
        body = Backbone(name, stem_channels=stem, fpn_channels=8, freeze_depth=0, norm="batch").body
    assert sum(p.numel() for p in body.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_stem_channels_narrow_every_stage() -> None:
    assert build(stem=16).body.out_channels == [16, 32, 64, 128]
    with torch.device("meta"):
        wide = Backbone("resnet50", stem_channels=64, fpn_channels=8, freeze_depth=0, norm="frozen").body
    assert wide.out_channels == [256, 512, 1024, 2048]


@pytest.mark.parametrize("freeze_depth", range(6))
def test_freeze_depth_freezes_that_many_stages_and_never_the_fpn(freeze_depth: int) -> None:
    backbone = build(freeze_depth=freeze_depth)
    frozen = [not p.requires_grad for stage in backbone.body.stages() for module in stage for p in module.parameters()]
    counts = [sum(1 for module in stage for _ in module.parameters()) for stage in backbone.body.stages()]
    assert frozen == [True] * sum(counts[:freeze_depth]) + [False] * sum(counts[freeze_depth:])
    assert all(p.requires_grad for p in backbone.fpn.parameters())


@pytest.mark.parametrize("freeze_depth", [0, 2, 5])
def test_frozen_stages_record_no_graph(freeze_depth: int) -> None:
    backbone, recorded = build(freeze_depth=freeze_depth), []
    run_stage = backbone.body.run_stage

    def record(number: int, x: torch.Tensor) -> torch.Tensor:
        recorded.append(run_stage(number, x).requires_grad)
        return run_stage(number, x)

    backbone.body.run_stage = record
    backbone(torch.rand(1, 3, 64, 64))
    assert recorded == [number >= freeze_depth for number in range(5)]


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_run_stage_equals_torchvisions_own_blocks(name: str, norm: Norm) -> None:
    body = build(name, stem=8, norm=norm).body.double()
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            for value, low in ((module.weight, 0.5), (module.bias, -1), (module.running_mean, -1)):
                value.uniform_(low, 1)
            module.running_var.uniform_(1e-4, 1)
    twin = copy.deepcopy(body)
    x = y = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    for number in range(5):
        x = body.run_stage(number, x)
        y = (
            getattr(twin, f"layer{number}")(y)
            if number
            else F.max_pool2d(twin.bn1(twin.conv1(y)).relu(), 3, stride=2, padding=1)
        )
    for found, wanted in zip((x, *backward(x, body)), (y, *backward(y, twin)), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12 * float(wanted.detach().std()))


def backward(features: torch.Tensor, body: nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(features.square().sum(), list(body.parameters())))


def test_norm_is_of_one_kind_throughout() -> None:
    kinds: dict[Norm, type[nn.Module]] = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}
    for norm, kind in kinds.items():
        norms = [m for m in build(norm=norm).modules() if type(m).__name__.endswith("Norm2d")]
        assert len(norms) == 20 and all(type(m) is kind for m in norms)
        assert all(m.eps == 1e-5 for m in norms)


@pytest.mark.parametrize("freeze_depth", [0, 2, 5])
def test_statistics_freeze_with_their_stage(freeze_depth: int) -> None:
    backbone = build(freeze_depth=freeze_depth)
    backbone.eval()
    backbone.train()
    before = {name: value.clone() for name, value in backbone.named_buffers() if name.endswith("running_mean")}
    backbone(torch.rand(2, 3, 64, 64))
    after = dict(backbone.named_buffers())
    moved = {name.split(".")[1] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"bn1", "layer1", "layer2", "layer3", "layer4"} - set(
        ["bn1", "layer1", "layer2", "layer3", "layer4"][:freeze_depth]
    )


@pytest.mark.parametrize(("height", "width"), [(64, 128), (70, 130)])
def test_pyramid_equals_torchvisions_own_forward(height: int, width: int) -> None:
    backbone = build()
    images = torch.rand(2, 3, height, width)
    maps, x = OrderedDict(), images
    for stage in range(5):
        x = backbone.body.run_stage(stage, x)
        if stage:
            maps[f"C{stage + 1}"] = x
    wanted = list(backbone.fpn(maps).values())
    found = backbone(images)
    assert len(found) == len(wanted) == 5
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
