"""What moves from one stage to the next: every tensor of the ResNet, exactly, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.models import resnet18, resnet34
from torchvision.ops import FrozenBatchNorm2d

from cityopt.config import ModelConfig, RunConfig
from cityopt.errors import WeightsError
from cityopt.models.build import build_model
from cityopt.tracking.run_folder import BEST
from cityopt.training.checkpoint import TrainingState, export_backbone, save_checkpoint
from cityopt.training.stages import BACKBONE, check_handover, check_pretrained, hand_over

BODY = "backbone.body."


@pytest.fixture(name="segmenter")
def _segmenter(config: RunConfig) -> ModelConfig:
    return config.model.model_copy(update={"family": "semantic_fpn", "semantic_head_channels": 16})


def save_trained(path: Path, config: RunConfig, model: ModelConfig) -> dict[str, Tensor]:
    """Save a network whose norms have statistics that matter, and return its state."""
    torch.manual_seed(4)
    network = build_model(model)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            module.num_batches_tracked.fill_(7)
    run = config.model_copy(update={"model": model})
    optimizer = SGD(network.parameters(), lr=0.1)
    save_checkpoint(path, model=network, optimizer=optimizer, state=TrainingState(), config=run, environment={})
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_mask_rcnn_starts_from_every_tensor_of_an_exported_backbone(
    tmp_path: Path, config: RunConfig, segmenter: ModelConfig
) -> None:
    before = save_trained(tmp_path / BEST, config, segmenter)
    path = hand_over(tmp_path, whole=False)
    torch.manual_seed(9)
    network = build_model(config.model.model_copy(update={"weights": str(path), "freeze_depth": 5}))
    found = network.state_dict()
    resnet = {key for key in found if key.startswith(BODY)}
    assert resnet == {k for k in before if k.startswith(BODY) and not k.endswith("num_batches_tracked")}
    assert all(torch.equal(found[key], before[key]) for key in resnet)
    norms = [module for name, module in network.named_modules() if name.startswith(BODY) and "bn" in name]
    assert norms and all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
    torch.manual_seed(9)
    fresh = build_model(config.model.model_copy(update={"weights": str(path)}), download=False).state_dict()
    rest = found.keys() - resnet
    assert {key for key in rest if "fpn" in key} and all(torch.equal(found[key], fresh[key]) for key in rest)


def test_mask_rcnn_sees_the_features_that_the_segmenter_saw(
    tmp_path: Path, config: RunConfig, segmenter: ModelConfig
) -> None:
    state = save_trained(tmp_path / BEST, config, segmenter)
    path = hand_over(tmp_path, whole=False)
    ours = build_model(config.model.model_copy(update={"weights": str(path)})).eval()
    theirs = build_model(segmenter, state=state).eval()
    x = torch.randn(1, 3, 64, 64)
    y = x
    with torch.no_grad():
        for number in range(5):
            x, y = (net.get_submodule("backbone.body").run_stage(number, z) for net, z in ((ours, x), (theirs, y)))
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "peer"), [("semantic_fpn", resnet18), pytest.param("unet_resnet34", resnet34, marks=pytest.mark.slow)]
)
def test_exported_backbone_is_a_state_dict_of_torchvisions_classifier(
    family: str, peer: type[nn.Module], tmp_path: Path, config: RunConfig
) -> None:
    model = ModelConfig(family=family, backbone="resnet18", weights="none", freeze_depth=0, fpn_channels=16)
    before = save_trained(tmp_path / BEST, config, model)
    export_backbone(tmp_path / BEST, tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    classifier = peer()
    lacking = classifier.load_state_dict(content, strict=False)
    assert not lacking.unexpected_keys
    assert all(key.startswith("fc.") for key in lacking.missing_keys if not key.endswith("num_batches_tracked"))
    prefix = BODY if family == "semantic_fpn" else "network.encoder."
    assert all(torch.equal(value, before[prefix + key]) for key, value in content.items())
    again = build_model(model.model_copy(update={"weights": str(tmp_path / "out.pt")})).state_dict()
    assert all(torch.equal(again[prefix + key], value) for key, value in content.items())


def test_backbone_is_exported_once_and_again_when_it_is_missing(
    tmp_path: Path, config: RunConfig, segmenter: ModelConfig
) -> None:
    save_trained(tmp_path / BEST, config, segmenter)
    path = hand_over(tmp_path, whole=False)
    written = path.stat().st_mtime_ns
    assert hand_over(tmp_path, whole=False).stat().st_mtime_ns == written
    path.unlink()
    assert hand_over(tmp_path, whole=False) == tmp_path / BACKBONE and path.is_file()
    assert hand_over(tmp_path, whole=True) == tmp_path / BEST


def test_network_without_a_resnet_has_no_backbone_to_export(tmp_path: Path, config: RunConfig) -> None:
    unet = ModelConfig(family="unet", start_channels=4, depth=1, weights="none", freeze_depth=0)
    save_trained(tmp_path / BEST, config, unet)
    with pytest.raises(WeightsError, match=r"best\.pt must hold a network with a ResNet, but holds a 'unet'"):
        export_backbone(tmp_path / BEST, tmp_path / "out.pt")
    assert [path.name for path in tmp_path.iterdir()] == [BEST]


def test_backbone_of_another_architecture_is_refused_with_the_first_tensors_that_differ(
    tmp_path: Path, config: RunConfig, segmenter: ModelConfig
) -> None:
    save_trained(tmp_path / BEST, config, segmenter)
    path = hand_over(tmp_path, whole=False)
    deeper = config.model.model_copy(update={"weights": str(path), "backbone": "resnet50"})
    wider = config.model.model_copy(update={"weights": str(path), "stem_channels": 16})
    for check in (build_model, check_pretrained):
        with pytest.raises(WeightsError) as caught:
            check(deeper)
        assert str(path) in str(caught.value) and "backbone.body.layer1.0.bn3.bias: missing" in str(caught.value)
        with pytest.raises(WeightsError, match=r"conv1\.weight: \(8, 3, 7, 7\) in the file, \(16, 3, 7, 7\) in the"):
            check(wider)
    check_pretrained(config.model.model_copy(update={"weights": str(path)}))


def test_handover_is_refused_before_any_training_when_the_next_network_is_another(
    config: RunConfig, segmenter: ModelConfig
) -> None:
    """From configs alone, where no file is there yet."""
    model = config.model.model_copy(update={"weights": "stage pretrain"})
    check_handover(model, segmenter, whole=False, origin="stage 'pretrain'")
    check_handover(model, config.model, whole=True, origin="stage 'heads'")
    other = segmenter.model_copy(update={"backbone": "resnet50"})
    with pytest.raises(WeightsError, match=r"(?s)stage 'pretrain'.*layer1\.0\.bn3\.bias: unknown"):
        check_handover(model, other, whole=False, origin="stage 'pretrain'")
    wide = config.model.model_copy(update={"fpn_channels": 32})
    with pytest.raises(WeightsError, match=r"(?s)stage 'heads'.*backbone\.fpn\.inner_blocks.*\(32, "):
        check_handover(model, wide, whole=True, origin="stage 'heads'")
    foreign = model.model_copy(update={"backbone": "resnet50", "flavour": "detectron2"})
    with pytest.raises(WeightsError, match=r"must have `model\.flavour: detectron2`, but has torchvision"):
        check_handover(foreign, other, whole=False, origin="stage 'pretrain'")


def test_semantic_model_keeps_its_own_class_weights_when_it_starts_from_another(
    tmp_path: Path, config: RunConfig, segmenter: ModelConfig
) -> None:
    network = build_model(segmenter)
    network.set_class_weights(torch.arange(19))
    torch.save(network.state_dict(), tmp_path / "whole.pt")
    found = build_model(segmenter.model_copy(update={"weights": str(tmp_path / "whole.pt")})).state_dict()
    assert torch.equal(found["class_weights"], torch.ones(19))
    assert torch.equal(found["classifier.weight"], network.state_dict()["classifier.weight"])
