import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from small_models import SMALL
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights, maskrcnn_resnet50_fpn
from torchvision.ops import FrozenBatchNorm2d

from cityopt.config import AnchorTable, ModelConfig
from cityopt.errors import WeightsError
from cityopt.models import weights as weights_module
from cityopt.models.build import build_model
from cityopt.models.mask_rcnn import MaskRCNN
from cityopt.models.weights import fetch_file, find_norm, find_state, find_url, fold_epsilon, read_file

COCO = ModelConfig(backbone="resnet50", weights="coco", anchors="default")
IMAGENET = SMALL.model_copy(update={"weights": "imagenet", "stem_channels": 64})


@pytest.fixture(name="hub")
def _hub(tmp_path: Path) -> Iterator[Path]:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


def shake_norms(network: nn.Module) -> None:
    """Give norms statistics that matter, so that a wrong epsilon or a lost tensor shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.constant_(module.weight, 0.5)
            with torch.no_grad():
                module.running_var[::16] = 1e-4
                module.weight[::16] = 5e-3


@pytest.fixture(scope="module", name="detector")
def _detector() -> nn.Module:
    torch.manual_seed(0)
    detector = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    shake_norms(detector)
    return detector


def compare_features(detector: nn.Module, ours: nn.Module) -> None:
    """Check that backbone, pyramid and proposal head say the same as torchvision's."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = list(detector.backbone(x).values())
        levels = ours.eval().backbone(x)
        for a, b in zip(levels, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)
        for a, b in zip(ours.rpn.head(levels)[0], detector.rpn.head(theirs)[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-3)


@pytest.mark.slow
def test_network_equals_torchvisions_when_its_state_is_loaded_from_a_path(detector: nn.Module, tmp_path: Path) -> None:
    torch.save(detector.state_dict(), tmp_path / "detector.pth")
    ours = build_model(COCO.model_copy(update={"weights": str(tmp_path / "detector.pth")}))
    compare_features(detector, ours)
    assert torch.equal(ours.state_dict()["roi_heads.box_head.fc6.weight"], detector.roi_heads.box_head.fc6.weight)
    assert ours.state_dict()["roi_heads.box_predictor.cls_score.weight"].shape == (9, 1024)


@pytest.mark.slow
def test_coco_equals_torchvisions_network_without_epsilon(detector: nn.Module, hub: Path) -> None:
    """torchvision reads COCO_V1 with epsilon 0 and stores it under the names of 2019."""
    name = MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url.rsplit("/", 1)[-1]
    old = {}
    for key, value in detector.state_dict().items():
        for new_part, old_part in (("conv.0.0.", "conv."), (".0.weight", ".weight"), (".0.bias", ".bias")):
            if key.startswith(("rpn.head.conv", "backbone.fpn")):
                key = key.replace(new_part, old_part)
        for number in range(4):
            key = key.replace(f"mask_head.{number}.0.", f"mask_head.mask_fcn{number + 1}.")
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    assert "backbone.fpn.inner_blocks.0.weight" in old and "rpn.head.conv.weight" in old
    torch.save(old, hub / name)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    try:
        compare_features(detector, build_model(COCO))
    finally:
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5


def test_imagenet_fills_the_backbone_and_leaves_the_rest(hub: Path) -> None:
    classifier = resnet18(weights=None)
    shake_norms(classifier)
    torch.save(classifier.state_dict(), hub / "resnet18-f37072fd.pth")
    torch.manual_seed(3)
    model = build_model(IMAGENET).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = classifier.eval().maxpool(classifier.relu(classifier.bn1(classifier.conv1(x))))
        expected = classifier.layer4(classifier.layer3(classifier.layer2(classifier.layer1(y))))
        z = x
        for number in range(5):
            z = model.backbone.body.run_stage(number, z)
    torch.testing.assert_close(z, expected, atol=1e-4, rtol=1e-4)
    torch.manual_seed(3)
    random = build_model(IMAGENET, download=False).state_dict()
    rest = [key for key in random if not key.startswith("backbone.body.")]
    assert rest and all(torch.equal(random[key], model.state_dict()[key]) for key in rest)


def test_fold_epsilon_keeps_the_norm_without_epsilon() -> None:
    theirs, ours = FrozenBatchNorm2d(8, eps=0.0), FrozenBatchNorm2d(8, eps=1e-5)
    for name in ("weight", "bias", "running_mean"):
        nn.init.normal_(getattr(theirs, name))
    theirs.running_var.copy_(torch.logspace(-6, 1, 8))
    ours.load_state_dict(fold_epsilon(theirs.state_dict()))
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def save_small(path: Path, *, wrapped: bool = False, **changes: object) -> dict[str, Tensor]:
    torch.manual_seed(5)
    state = build_model(SMALL.model_copy(update=changes)).state_dict()
    torch.save({"model": state, "config": {"any": "thing"}, "epoch": 3} if wrapped else state, path)
    return state


def test_norm_learns_with_random_values_and_is_frozen_with_pretrained_ones() -> None:
    assert find_norm(SMALL) == "batch"
    for weights in ("coco", "imagenet", "some.pt"):
        assert find_norm(SMALL.model_copy(update={"weights": weights})) == "frozen"
        for norm in ("batch", "frozen"):
            state = MaskRCNN(SMALL, norm=norm).state_dict()
            assert find_norm(SMALL.model_copy(update={"weights": weights}), state) == norm


def test_norm_learns_on_from_a_path_when_the_config_says_so(tmp_path: Path) -> None:
    network = build_model(SMALL)
    shake_norms(network)
    torch.save(network.state_dict(), tmp_path / "x.pt")
    settings = {"weights": str(tmp_path / "x.pt"), "backbone_norm": "batch"}
    again = build_model(SMALL.model_copy(update=settings))
    assert isinstance(again.get_submodule("backbone.body.bn1"), nn.BatchNorm2d)
    before = network.state_dict()
    assert all(torch.equal(before[key], value) for key, value in again.state_dict().items())


@pytest.mark.parametrize("wrapped", [False, True])
def test_path_loads_a_checkpoint_and_a_plain_state(wrapped: bool, tmp_path: Path) -> None:
    state = save_small(tmp_path / "x.pt", wrapped=wrapped)
    settings = SMALL.model_copy(update={"weights": str(tmp_path / "x.pt"), "freeze_depth": 1})
    loaded = build_model(settings).state_dict()
    assert all(torch.equal(state[key], value) for key, value in loaded.items())
    assert {key for key in state if key not in loaded} == {k for k in state if k.endswith("num_batches_tracked")}


def test_anchor_layers_alone_start_afresh_when_the_number_of_anchors_differs(tmp_path: Path) -> None:
    state = save_small(tmp_path / "x.pt")
    table = AnchorTable(sizes=((8.0, 9.0),) * 5, ratios=((0.5, 1.0),) * 5)
    changes = {"weights": str(tmp_path / "x.pt"), "anchors": "explicit", "anchor_table": table}
    loaded = build_model(SMALL.model_copy(update=changes)).state_dict()
    changed = {
        key for key in loaded if state[key].shape != loaded[key].shape or not torch.equal(state[key], loaded[key])
    }
    assert changed and all(key.startswith(("rpn.head.cls_logits.", "rpn.head.bbox_pred.")) for key in changed)


def test_error_lists_every_tensor_that_does_not_fit(tmp_path: Path) -> None:
    save_small(tmp_path / "x.pt", box_head_channels=48, mask_head_layers=2)
    with pytest.raises(WeightsError) as caught:
        build_model(SMALL.model_copy(update={"weights": str(tmp_path / "x.pt")}))
    message = str(caught.value)
    assert str(tmp_path / "x.pt") in message
    assert "roi_heads.mask_head.1.0.weight: unknown" in message
    assert "roi_heads.box_head.fc7.weight: (48, 48) in the file, (32, 32) in the network" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"backbone": "resnet18", "weights": "coco"}, ["resnet50", "imagenet", "none"]),
        ({"backbone": "resnet101", "weights": "coco"}, ["resnet50"]),
        ({"backbone": "resnet18", "weights": "imagenet", "stem_channels": 32}, ["stem_channels", "64", "32"]),
        ({"weights": "imagnet"}, ["imagenet", "coco", "none", "'imagnet'"]),
    ],
)
def test_weights_that_do_not_exist_are_refused(settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(WeightsError) as caught:
        build_model(SMALL.model_copy(update=settings))
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"weights": "coco", "backbone": "resnet50"}, "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
        ({"weights": "imagenet", "backbone": "resnet18"}, "resnet18-f37072fd.pth"),
        ({"weights": "imagenet", "backbone": "resnet50"}, "resnet50-0676ba61.pth"),
        ({"weights": "imagenet", "backbone": "resnet101"}, "resnet101-63fe2227.pth"),
    ],
)
def test_addresses_are_those_of_the_published_files(settings: dict[str, str], name: str) -> None:
    url = find_url(SMALL.model_copy(update={"stem_channels": 64, **settings}))
    assert url == f"https://download.pytorch.org/models/{name}"


def test_fetch_downloads_once_and_checks_the_hash(hub: Path, tmp_path: Path) -> None:
    content = b"weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    url = (tmp_path / name).as_uri()
    assert fetch_file(url) == hub / name
    (tmp_path / name).unlink()
    assert fetch_file(url).read_bytes() == content
    assert [path.name for path in hub.iterdir()] == [name]


def test_fetch_counts_the_mebibytes_up_to_the_end(hub: Path, tmp_path: Path) -> None:
    counts: list[tuple[int, int]] = []
    (tmp_path / "net.pth").write_bytes(bytes(2**21 + 5))
    fetch_file((tmp_path / "net.pth").as_uri(), lambda done, total: counts.append((done, total)))
    assert counts == [(1, 3), (2, 3), (2, 3), (3, 3)]
    assert (hub / "net.pth").stat().st_size == 2**21 + 5


def test_fetch_leaves_nothing_when_the_download_breaks_off(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Torn(io.BytesIO):
        headers: ClassVar = {"Content-Length": "10"}

    monkeypatch.setattr(weights_module, "urlopen", lambda *_, **__: Torn(b"half"))
    with pytest.raises(WeightsError, match="broke off after 4 of 10 bytes"):
        fetch_file("https://somewhere/net.pth")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize("name", ["gone-00000000.pth", "net-00000000.pth"])
def test_failed_download_says_where_to_put_the_file_and_leaves_nothing(name: str, hub: Path, tmp_path: Path) -> None:
    (tmp_path / "net-00000000.pth").write_bytes(b"not what the name says")
    url = (tmp_path / name).as_uri()
    with pytest.raises(WeightsError) as caught:
        fetch_file(url)
    message = str(caught.value)
    assert url in message and str(hub / name) in message and "--set model.weights=none" in message
    assert list(hub.iterdir()) == []


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("content", [b"", b"rubbish", None, [1, 2], {"a": 1}, {}])
def test_files_that_hold_no_weights_are_refused_and_never_run(
    content: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(Evil() if content is None else content, path)
    with pytest.raises(WeightsError, match=r"x\.pt"):
        find_state(read_file(path), path)
    assert capsys.readouterr().out == ""


def test_weights_of_another_flavour_are_refused(tmp_path: Path) -> None:
    """Their tensors would fit, and mean something else."""
    config = {"model": {"flavour": "detectron2"}}
    torch.save({"config": config, "model": build_model(SMALL).state_dict()}, tmp_path / "theirs.pt")
    with pytest.raises(WeightsError, match=r"--set model\.flavour=detectron2"):
        build_model(SMALL.model_copy(update={"weights": str(tmp_path / "theirs.pt")}))


def test_layers_of_point_rend_that_depend_on_the_classes_start_afresh_together(tmp_path: Path) -> None:
    small = SMALL.model_copy(update={"family": "point_rend", "coarse_head_channels": 32})
    coco = build_model(small.model_copy(update={"classes": "coco"})).state_dict()
    torch.save(coco, tmp_path / "coco.pt")
    found = build_model(small.model_copy(update={"weights": str(tmp_path / "coco.pt")})).state_dict()
    head = "roi_heads.mask_head."
    assert torch.equal(found[f"{head}coarse_head.fc1.weight"], coco[f"{head}coarse_head.fc1.weight"])
    assert torch.equal(found["rpn.head.cls_logits.weight"], coco["rpn.head.cls_logits.weight"])
    assert found[f"{head}point_head.fc1.weight"].shape == (16, 24, 1)
    assert found[f"{head}coarse_head.prediction.bias"].shape == (8 * 49,)
