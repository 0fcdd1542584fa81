"""What every semantic family must keep. A new family is a new row in FAMILIES."""

from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SMALL
from torch import Tensor
from torch.nn import functional

from cityopt.config import ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.build import build_model
from cityopt.models.semantic_model import CLASS_IDS, NUM_CLASSES, SemanticModel

PLAIN = {"weights": "none", "freeze_depth": 0}
FAMILIES = {
    "unet": ModelConfig(family="unet", start_channels=8, depth=3, **PLAIN),
    "unet_group_norm": ModelConfig(family="unet", start_channels=8, depth=2, norm="group", **PLAIN),
    "unet_no_norm": ModelConfig(family="unet", start_channels=8, depth=1, norm="none", **PLAIN),
    "unet_odd_groups": ModelConfig(family="unet", start_channels=6, depth=1, norm="group", **PLAIN),
    "unet_resnet34": ModelConfig(family="unet_resnet34", **PLAIN),
    "semantic_fpn": SMALL.model_copy(update={"family": "semantic_fpn", "semantic_head_channels": 16}),
}
RESNETS = {"unet_resnet34": "network.encoder.", "semantic_fpn": "backbone.body."}
LOSSES = ("cross_entropy", "focal", "dice", "cross_entropy+dice", "focal+dice")
STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


@pytest.fixture(params=FAMILIES, name="config")
def _config(request: pytest.FixtureRequest) -> ModelConfig:
    return FAMILIES[request.param]


def build(config: ModelConfig, seed: int = 0, **changes: object) -> SemanticModel:
    torch.manual_seed(seed)
    model = build_model(config.model_copy(update=changes), download=False)
    assert isinstance(model, SemanticModel)
    return model


def draw_batch(*sizes: tuple[int, int], seed: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Scenes of two classes that differ in brightness, with a corner of void."""
    images, targets = [], []
    rng = np.random.default_rng(seed)
    for height, width in sizes:
        labels = np.where(np.arange(width) < width // 2, 10, 0)[None].repeat(height, 0).astype(np.uint8)
        noise = rng.uniform(0, 0.2, (3, height, width))
        images.append(torch.from_numpy((np.where(labels == 10, 0.7, 0.1)[None] + noise).astype(np.float32)))
        labels[: height // 4, : width // 4] = 255
        targets.append({"label_map": torch.from_numpy(labels)})
    return images, targets


def test_gradients_reach_every_parameter_when_nothing_is_frozen(config: ModelConfig) -> None:
    model = build(config)
    sum(model.loss(*draw_batch((64, 96), (64, 96))).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    heads = [p for name, p in model.named_parameters() if "weight" in name and p.ndim > 1]
    assert all(p.grad.abs().sum() > 0 for p in heads)


@pytest.mark.parametrize("family", RESNETS)
@pytest.mark.parametrize("freeze_depth", [1, 3, 5])
def test_frozen_stages_keep_weights_and_statistics(freeze_depth: int, family: str) -> None:
    model = build(FAMILIES[family], freeze_depth=freeze_depth).train()
    frozen = tuple(f"{RESNETS[family]}{name}." for stage in STAGES[:freeze_depth] for name in stage)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(model.loss(*draw_batch((64, 96), (64, 96))).values()).backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        if key.startswith(frozen):
            assert torch.equal(value, before[key]), key
        elif key.endswith("running_mean"):
            assert not torch.equal(value, before[key]), key
    assert {n for n, p in model.named_parameters() if p.grad is None} == {
        n for n, _ in model.named_parameters() if n.startswith(frozen)
    }


@pytest.mark.parametrize("sizes", [((67, 101),), ((33, 64), (97, 47)), ((1, 1),)])
def test_loss_and_predict_take_odd_and_different_sizes(config: ModelConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    images, targets = draw_batch(*sizes)
    model = build(config)
    if sizes != ((1, 1),):  # a batch norm has no statistics of one value
        assert all(value.isfinite() for value in model.loss(images, targets).values())
    found = model.eval().predict(images)
    assert [one.size for one in found] == list(sizes)
    assert all(one.label_ids.dtype == np.uint8 and set(np.unique(one.label_ids)) <= set(CLASS_IDS) for one in found)
    assert [one.size for one in model.predict(images, sizes=[(50, 70)] * len(images))] == [(50, 70)] * len(images)


def test_logits_are_those_of_the_image_with_its_border_repeated_when_it_has_no_whole_cells(config: ModelConfig) -> None:
    cell = 2**config.depth if config.family == "unet" else 32
    ((image,), _), model = draw_batch((67, 101)), build(config).eval()
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, -67 % cell), (0, -101 % cell)), mode="edge"))
    expected = model.find_logits([padded])[0][:, :67, :101]
    torch.testing.assert_close(model.find_logits([image])[0], expected, atol=1e-5, rtol=1e-5)


def test_logits_do_not_depend_on_what_else_is_in_the_batch(config: ModelConfig) -> None:
    images, _ = draw_batch((40, 56), (33, 64), (40, 56))
    model = build(config).eval()
    together = model.find_logits(images)
    for image, logits in zip(images, together, strict=True):
        assert logits.shape == (NUM_CLASSES, *image.shape[1:])
        torch.testing.assert_close(model.find_logits([image])[0], logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_is_zero_with_finite_gradients_when_all_is_void(config: ModelConfig, loss: str) -> None:
    images, targets = draw_batch((32, 64), (32, 64))
    void = [{"label_map": torch.full_like(target["label_map"], 255)} for target in targets]
    model = build(config, loss=loss)
    losses = model.loss(images, void)
    assert set(losses) == set(loss.split("+")) and all(value == 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_loss_runs_under_bfloat16_autocast(config: ModelConfig) -> None:
    images, targets = draw_batch((64, 96), (64, 96))
    model = build(config)
    full = sum(model.loss(images, targets).values()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(images, targets)
    assert sum(losses.values()).item() == pytest.approx(full, rel=0.1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_predictions_survive_a_round_trip_through_a_file(config: ModelConfig, tmp_path: Path) -> None:
    images, _ = draw_batch((64, 96))
    model = build(config)
    model.set_class_weights(torch.arange(NUM_CLASSES))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(99)
    again = build_model(config, state=torch.load(tmp_path / "model.pt", weights_only=True))
    assert isinstance(again, SemanticModel) and torch.equal(again.class_weights, model.class_weights)
    before, after = model.eval().find_logits(images)[0], again.eval().find_logits(images)[0]
    assert torch.equal(before, after)


def test_training_learns_two_classes(config: ModelConfig) -> None:
    images, targets = draw_batch((64, 96), (64, 96))
    model = build(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    truth = np.where(targets[0]["label_map"] == 10, 23, 7)  # sky and road as raw ids
    known = targets[0]["label_map"].numpy() != 255
    accuracy, steps = 0.0, 0
    while accuracy < 0.95 and steps < 60:
        for _ in range(10):
            optimizer.zero_grad()
            sum(model.loss(images, targets).values()).backward()
            optimizer.step()
        (found,) = model.predict(images[:1])
        accuracy, steps = (found.label_ids == truth)[known].mean(), steps + 10
    assert accuracy > 0.95


@pytest.mark.parametrize(("channels", "depth", "count"), [(8, 3, 121_691), (16, 4, 1_944_355), (16, 5, 7_781_923)])
def test_unet_has_the_published_number_of_parameters(channels: int, depth: int, count: int) -> None:
    model = build(FAMILIES["unet"], start_channels=channels, depth=depth)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_semantic_fpn_sums_its_levels_at_a_quarter_of_the_image() -> None:
    """The head of Panoptic FPN, written out: P2 one convolution, P3 to P5 as many doublings as they are away."""
    model = build(FAMILIES["semantic_fpn"]).eval()
    state, x = model.state_dict(), torch.randn(2, 3, 64, 96)
    total = torch.zeros(2, 16, 16, 24)
    for level, y in enumerate(model.get_submodule("backbone")(x)[:4]):
        for step in range(max(1, level)):
            place = step * 4  # convolution, norm, ReLU, doubling
            y = functional.conv2d(y, state[f"climb.{level}.{place}.weight"], padding=1)
            norm = (state[f"climb.{level}.{place + 1}.{name}"] for name in ("weight", "bias"))
            y = functional.relu(functional.group_norm(y, 4, *norm))
            if level:
                size = (y.shape[2] * 2, y.shape[3] * 2)
                y = functional.interpolate(y, size, mode="bilinear", align_corners=False)
        total += y
    logits = torch.einsum("bchw,kc->bkhw", total, state["classifier.weight"][:, :, 0, 0])
    logits += state["classifier.bias"].view(1, -1, 1, 1)
    expected = functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.classify(x), expected, atol=1e-4, rtol=1e-4)


def test_weights_of_another_encoder_are_refused_with_what_this_one_takes(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    config = FAMILIES["unet_resnet34"].model_copy(update={"weights": str(tmp_path / "resnet18.pth")})
    with pytest.raises(WeightsError) as caught:
        build_model(config)
    message = str(caught.value)
    assert "resnet18.pth" in message and "  network.encoder.layer1.2.conv1.weight: missing" in message
    assert "a classifier's file of a ResNet-34" in message
    assert "model.backbone" not in message and "stem_channels" not in message


def test_encoder_takes_torchvisions_classifier_when_given_as_path(tmp_path: Path) -> None:
    from torchvision.models import resnet34

    torch.manual_seed(1)
    classifier = resnet34().state_dict()
    torch.save(classifier, tmp_path / "resnet34.pth")
    model = build_model(FAMILIES["unet_resnet34"].model_copy(update={"weights": str(tmp_path / "resnet34.pth")}))
    encoder = model.get_submodule("network.encoder").state_dict()
    assert encoder.keys() == {key for key in classifier if not key.startswith("fc.")}
    assert all(torch.equal(value, classifier[key]) for key, value in encoder.items())
