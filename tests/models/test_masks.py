import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from small_models import decode_masks
from torch.nn import functional as F

from cityopt.errors import EvaluationError
from cityopt.models.masks import Floats, Prediction, encode_crop, encode_masks, paste_mask, scale_boxes

SIZE = (60, 90)


def draw_boxes(count: int, size: tuple[int, int], seed: int = 0) -> Floats:
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 1, (count, 2, 2)) * size[::-1]
    return np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)


def draw_probabilities(count: int, side: int = 28, seed: int = 0) -> Floats:
    coarse = torch.rand(count, 1, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)[:, 0].numpy()


def paste_whole(probability: Floats, box: Floats, size: tuple[int, int]) -> Floats:
    """Paste into the whole image by grid_sample at pixel centres, as detectron2 does."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    grid_x = (x - box[0]) / (box[2] - box[0]) * 2 - 1
    grid_y = (y - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack([grid_x, grid_y], dim=-1)[None]
    return F.grid_sample(torch.from_numpy(probability)[None, None], grid, align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("seed", range(30))
def test_paste_equals_grid_sample_of_the_whole_image(seed: int) -> None:
    (probability,) = draw_probabilities(1, side=(28, 7, 56)[seed % 3], seed=seed)
    (box,) = draw_boxes(1, SIZE, seed)
    if seed % 3 == 0:
        box = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])])
    crop, top, left = paste_mask(probability, box, SIZE)
    whole = paste_whole(probability, box, SIZE)
    frame = np.zeros(SIZE, dtype=np.float32)
    frame[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    outside = np.ones(SIZE, dtype=bool)
    outside[top : top + crop.shape[0], left : left + crop.shape[1]] = False
    np.testing.assert_allclose(frame[~outside], whole[~outside], atol=1e-4)
    assert whole[outside].max(initial=0) < 0.5
    (code,) = encode_masks(probability[None], box[None], SIZE)
    differs = decode_masks([code])[..., 0] != (whole >= 0.5)
    assert np.abs(whole[differs] - 0.5).max(initial=0) < 1e-4


def test_masks_are_drawn_finely_when_boxes_move_into_a_larger_image() -> None:
    """A mask of the large image must follow the grid there, not be the small image's mask enlarged."""
    large = (SIZE[0] * 6, SIZE[1] * 6)
    probabilities, boxes = draw_probabilities(8), draw_boxes(8, SIZE)
    moved = scale_boxes(boxes, SIZE, large)
    masks = decode_masks(encode_masks(probabilities, moved, large)).transpose(2, 0, 1)
    small = decode_masks(encode_masks(probabilities, boxes, SIZE)).transpose(2, 0, 1)
    for mask, coarse, probability, box in zip(masks, small, probabilities, boxes, strict=True):
        whole = paste_whole(probability, box * 6, large)
        differs = mask != (whole >= 0.5)
        assert np.abs(whole[differs] - 0.5).max(initial=0) < 1e-4
        assert (mask != coarse.repeat(6, 0).repeat(6, 1)).any()


def test_boxes_stay_inside_when_they_move_into_another_image() -> None:
    boxes = np.array([[0, 0, 90, 60], [89.99, 59.99, 90, 60]], dtype=np.float32)
    for size in ((61, 91), (1024, 2048), (7, 3), (60, 180)):
        moved = scale_boxes(boxes, SIZE, size)
        assert (moved <= [size[1], size[0]] * 2).all() and (moved[0] == [0, 0, size[1], size[0]]).all()
        np.testing.assert_allclose(moved[1, :2], [89.99 * size[1] / 90, 59.99 * size[0] / 60], rtol=1e-6)
    assert scale_boxes(boxes, SIZE, SIZE) is boxes


def test_paste_fills_exactly_the_box_when_all_cells_are_sure() -> None:
    box = np.array([[10, 20, 31, 37]], dtype=np.float32)
    (mask,) = decode_masks(encode_masks(np.ones((1, 28, 28), dtype=np.float32), box, SIZE)).transpose(2, 0, 1)
    expected = np.zeros(SIZE, dtype=np.uint8)
    expected[20:37, 10:31] = 1
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0.2, 0.2), (89.9, 59.9, 90, 60), (5, 5, 5, 5), (-20, -20, -3, -3), (95, 10, 99, 20), (-10, -5, 200, 99)],
)
def test_masks_of_tiny_outside_and_huge_boxes_are_valid_codes(box: tuple[float, ...]) -> None:
    boxes = np.array([box], dtype=np.float32)
    code = encode_masks(draw_probabilities(1), boxes, SIZE)
    assert decode_masks(code).shape == (*SIZE, 1)


def draw_crop(kind: str, shape: tuple[int, int], generator: np.random.Generator) -> NDArray[np.bool_]:
    if kind == "blobs":
        coarse = generator.random((shape[0] // 3 + 1, shape[1] // 3 + 1)) < 0.6
        return coarse.repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]]
    return {
        "empty": np.zeros(shape, dtype=bool),
        "full": np.ones(shape, dtype=bool),
        "noise": generator.random(shape) < 0.5,
    }[kind]


@pytest.mark.parametrize("kind", ["noise", "blobs", "empty", "full"])
@pytest.mark.parametrize("seed", range(12))
def test_code_of_a_crop_equals_pycocotools_code_of_the_whole_image(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 40, 2)
    if seed % 4 == 0:
        top, bottom, left, right = 0, height, 0, width
    else:
        top, left = generator.integers(0, height), generator.integers(0, width)
        bottom = height if seed % 4 == 1 else generator.integers(top, height) + 1
        right = width if seed % 4 == 2 else generator.integers(left, width) + 1
        top = 0 if seed % 4 == 1 else top
    crop = draw_crop(kind, (bottom - top, right - left), generator)
    whole = np.zeros((height, width), dtype=np.uint8, order="F")
    whole[top:bottom, left:right] = crop
    assert encode_crop(crop, int(top), int(left), (int(height), int(width))) == coco_mask.encode(whole)


def test_code_is_that_of_an_empty_image_when_the_crop_has_no_pixels() -> None:
    empty = coco_mask.encode(np.zeros((5, 7), dtype=np.uint8, order="F"))
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert encode_crop(np.zeros(shape, dtype=bool), 0, 0, (5, 7)) == empty


def test_hundred_masks_of_a_large_image_take_little_memory() -> None:
    size = (1024, 2048)
    boxes, probabilities = draw_boxes(100, size), draw_probabilities(100)
    tracemalloc.start()
    encode_masks(probabilities, boxes, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    "mask",
    [np.full((3, 4), 255, np.uint8), np.full((3, 4), 0.7), np.full((3, 4), np.nan), np.full((3, 4), -1, np.int8)],
    ids=["0/255", "probabilities", "nan", "negative"],
)
def test_mask_is_refused_when_it_is_not_binary(mask) -> None:
    mask[0, 0] = 0
    with pytest.raises(EvaluationError, match="0 and 1 alone"):
        encode_crop(mask, 0, 0, (3, 4))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_prediction_of_arrays_is_that_of_pycocotools_codes_best_score_first(dtype) -> None:
    masks = np.random.default_rng(0).random((4, 9, 13)) < 0.4
    masks[2] = False
    found = Prediction.from_masks(list(masks.astype(dtype)), [1, 8, 3, 2], [0.2, 0.9, 0.5, 0.9], (9, 13))
    order = [1, 3, 2, 0]
    assert found.masks == [coco_mask.encode(np.asfortranarray(masks[i]).astype(np.uint8)) for i in order]
    assert found.classes.tolist() == [8, 2, 3, 1] and found.scores.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.2])
    rows, columns = np.nonzero(masks[1])
    corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.boxes_xyxy[0].tolist() == corners and found.boxes_xyxy.shape == (4, 4)
    assert len(Prediction.from_masks([], [], [], (9, 13)).boxes_xyxy) == 0


def test_prediction_of_arrays_is_refused_when_they_do_not_fit() -> None:
    with pytest.raises(EvaluationError, match="equally many"):
        Prediction.from_masks([np.zeros((3, 4), bool)], [1, 2], [0.5], (3, 4))
    with pytest.raises(EvaluationError, match=r"size \(3, 4\), but got \(4, 3\)"):
        Prediction.from_masks([np.zeros((4, 3), bool)], [1], [0.5], (3, 4))
