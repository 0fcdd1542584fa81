"""What every model family on our backbone must keep. A new family is a new row in FAMILIES, or in SEMANTIC.

What a semantic family predicts has a contract of its own: `test_semantic_model_contract.py`.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import SMALL, decode_masks, draw_scene
from torch import Tensor

from cityopt.config import ModelConfig
from cityopt.models.build import SegmentationModel, build_model

FAMILIES = {
    "mask_rcnn": SMALL,
    "point_rend": SMALL.model_copy(update={"family": "point_rend", "coarse_head_channels": 32}),
}
SEMANTIC = {"semantic_fpn": SMALL.model_copy(update={"family": "semantic_fpn", "semantic_head_channels": 16})}
FROZEN_PREFIXES = ("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)


@pytest.fixture(params=FAMILIES, name="config")
def _config(request: pytest.FixtureRequest) -> ModelConfig:
    return FAMILIES[request.param]


@pytest.fixture(params=[*FAMILIES, *SEMANTIC], name="any_config")
def _any_config(request: pytest.FixtureRequest) -> ModelConfig:
    return {**FAMILIES, **SEMANTIC}[request.param]


def build(config: ModelConfig, seed: int = 0, **changes: object) -> SegmentationModel:
    torch.manual_seed(seed)
    return build_model(config.model_copy(update=changes), download=False)


def build_finder(config: ModelConfig) -> SegmentationModel:
    """Build a network that finds something in anything."""
    return build(config, score_threshold=0.0, num_detections=20).eval()


def draw_batch(*sizes: tuple[int, int], num_instances: int = 4) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    scenes = [draw_scene(seed, size=size, num_instances=num_instances) for seed, size in enumerate(sizes)]
    return [image for image, _ in scenes], [target for _, target in scenes]


@pytest.mark.parametrize("freeze_depth", [0, 1, 2, 5])
def test_gradients_reach_exactly_the_unfrozen_parameters(any_config: ModelConfig, freeze_depth: int) -> None:
    model = build(any_config, freeze_depth=freeze_depth)
    sum(model.loss(*draw_batch((96, 160), (96, 160))).values()).backward()
    frozen = tuple(f"backbone.body.{name}" for stage in FROZEN_PREFIXES[:freeze_depth] for name in stage)
    for name, parameter in model.named_parameters():
        if frozen and name.startswith(frozen):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_loss_is_a_dict_of_finite_scalars(any_config: ModelConfig) -> None:
    losses = build(any_config).loss(*draw_batch((96, 160), (96, 160)))
    assert losses
    for name, value in losses.items():
        assert value.shape == () and value.isfinite() and value > 0, name


@pytest.mark.parametrize("sizes", [((67, 101),), ((33, 64), (97, 47)), ((96, 160), (50, 51))])
def test_loss_and_predict_take_odd_and_different_sizes(config: ModelConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    images, targets = draw_batch(*sizes, num_instances=1)
    assert all(value.isfinite() for value in build(config).loss(images, targets).values())
    predictions = build_finder(config).predict(images)
    assert [p.size for p in predictions] == list(sizes)
    for prediction, (height, width) in zip(predictions, sizes, strict=True):
        assert len(prediction.boxes_xyxy) > 0
        assert (prediction.boxes_xyxy >= 0).all()
        assert (prediction.boxes_xyxy <= [width, height, width, height]).all()
        assert decode_masks(prediction.masks).shape == (height, width, len(prediction.masks))


def test_predict_gives_sorted_arrays_of_one_length(config: ModelConfig) -> None:
    (prediction,) = build_finder(config).predict(draw_batch((96, 160))[0])
    count = len(prediction.scores)
    assert 0 < count <= 20
    assert prediction.boxes_xyxy.shape == (count, 4) and prediction.boxes_xyxy.dtype == np.float32
    assert prediction.scores.dtype == np.float32 and (np.diff(prediction.scores) <= 0).all()
    assert prediction.classes.dtype == np.int64 and set(prediction.classes.tolist()) <= set(range(1, 9))
    assert len(prediction.masks) == count


@pytest.mark.parametrize("counts", [(0,), (0, 3), (0, 0)])
def test_loss_is_finite_and_trains_everything_when_images_are_empty(
    any_config: ModelConfig, counts: tuple[int, ...]
) -> None:
    scenes = [draw_scene(seed, num_instances=count) for seed, count in enumerate(counts)]
    model = build(any_config)
    losses = model.loss([image for image, _ in scenes], [target for _, target in scenes])
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_predict_gives_the_same_bits_when_the_wanted_sizes_are_those_of_the_images(config: ModelConfig) -> None:
    images, model = draw_batch((96, 160), (50, 51))[0], build_finder(config)
    for plain, sized in zip(model.predict(images), model.predict(images, [(96, 160), (50, 51)]), strict=True):
        np.testing.assert_array_equal(plain.boxes_xyxy, sized.boxes_xyxy)
        np.testing.assert_array_equal(plain.scores, sized.scores)
        assert (plain.masks, plain.size) == (sized.masks, sized.size)


@pytest.mark.parametrize("sizes", [((192, 320), (40, 153)), ((33, 161), (50, 51))])
def test_predict_draws_each_image_at_its_wanted_size(config: ModelConfig, sizes: tuple[tuple[int, int], ...]) -> None:
    images, model = draw_batch((96, 160), (50, 51))[0], build_finder(config)
    for plain, sized, size in zip(model.predict(images), model.predict(images, sizes), sizes, strict=True):
        assert sized.size == size
        np.testing.assert_array_equal(plain.scores, sized.scores)
        np.testing.assert_array_equal(plain.classes, sized.classes)
        scale_y, scale_x = size[0] / plain.size[0], size[1] / plain.size[1]
        np.testing.assert_allclose(sized.boxes_xyxy, plain.boxes_xyxy * [scale_x, scale_y, scale_x, scale_y], rtol=1e-5)
        assert sized.boxes_xyxy.dtype == np.float32 and (sized.boxes_xyxy <= [size[1], size[0]] * 2).all()
        small, masks = decode_masks(plain.masks), decode_masks(sized.masks)
        assert masks.shape == (*size, len(sized.scores))
        shares = small.mean(axis=(0, 1)), masks.mean(axis=(0, 1))
        np.testing.assert_allclose(*shares, atol=0.03)


def test_predict_refuses_sizes_when_they_are_fewer_than_the_images(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="zip"):
        build_finder(config).predict(draw_batch((96, 160), (50, 51))[0], [(96, 160)])


def test_predict_is_empty_when_nothing_passes_the_threshold(config: ModelConfig) -> None:
    model = build(config, score_threshold=1.0).eval()
    (prediction,) = model.predict(draw_batch((64, 96))[0])
    assert prediction.boxes_xyxy.shape == (0, 4) and prediction.scores.shape == (0,)
    assert prediction.classes.shape == (0,) and prediction.masks == []


def test_predict_leaves_no_graph_and_no_gradients(any_config: ModelConfig) -> None:
    model = build_finder(any_config)
    model.predict(draw_batch((64, 96))[0])
    assert all(p.grad is None for p in model.parameters())


def test_loss_and_predict_run_under_bfloat16_autocast(config: ModelConfig) -> None:
    images, targets = draw_batch((96, 160), (64, 96))
    model = build(config)
    full = sum(model.loss(images, targets).values()).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(images, targets)
        predictions = build_finder(config).predict(images)
    assert sum(losses.values()).item() == pytest.approx(full, rel=0.1)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(np.isfinite(p.boxes_xyxy).all() and p.boxes_xyxy.dtype == np.float32 for p in predictions)


def test_predictions_survive_a_round_trip_through_a_file(config: ModelConfig, tmp_path: Path) -> None:
    images = draw_batch((96, 160))[0]
    settings = config.model_copy(update={"score_threshold": 0.0, "num_detections": 20})
    model = build_finder(config)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.manual_seed(99)
    again = build_model(settings, state=state).eval()
    (before,), (after,) = model.predict(images), again.predict(images)
    np.testing.assert_array_equal(before.boxes_xyxy, after.boxes_xyxy)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert before.masks == after.masks


@pytest.mark.parametrize("threads", [1, 2])
def test_two_steps_give_the_same_bits_when_the_seed_is_the_same(any_config: ModelConfig, threads: int) -> None:
    images, targets = draw_batch((96, 160), (96, 160), (64, 96))

    def train() -> dict[str, Tensor]:
        model = build(any_config, seed=7)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            sum(model.loss(images, targets).values()).backward()
            optimizer.step()
        return copy.deepcopy(model.state_dict())

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = train(), train()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_training_lowers_the_loss_of_one_scene(any_config: ModelConfig) -> None:
    images, targets = draw_batch((96, 160))
    model = build(any_config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    history = []
    for _ in range(40):
        loss = sum(model.loss(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-5:]) < 0.5 * history[0]
