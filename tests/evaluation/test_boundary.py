"""Boundary IoU and AP, against slow loops, closed forms, and pycocotools where the two protocols are one."""

import math

import numpy as np
import pytest
from hotcoco import mask as rle_tools
from pycocotools import mask as coco_mask
from test_coco_ap import make_prediction, make_scene

from cityopt.errors import EvaluationError
from cityopt.evaluation.boundary import (
    BoundaryEvaluator,
    cut_mask,
    find_border,
    find_borders,
    measure_overlaps,
    measure_width,
)
from cityopt.evaluation.coco_ap import CocoEvaluator


def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def find_border_slowly(mask, width):
    """Return the pixels of a mask that have a pixel outside of it, or of the image, within a square around them."""
    border = np.zeros_like(mask)
    padded = np.pad(mask, width)
    for y, x in zip(*np.nonzero(mask), strict=True):
        border[y, x] = not padded[y : y + 2 * width + 1, x : x + 2 * width + 1].all()
    return border


@pytest.mark.parametrize("width", [1, 2, 5])
def test_border_equals_a_slow_loop(width):
    rng = np.random.default_rng(width)
    for density in (0.5, 0.9, 0.99):
        mask = rng.random((23, 31)) < density
        np.testing.assert_array_equal(find_border(mask, width), find_border_slowly(mask, width))
        np.testing.assert_array_equal(
            rle_tools.decode(find_borders([encode(mask)], width)[0]), find_border(mask, width)
        )


def test_border_lies_at_the_images_edge_too():
    mask = np.zeros((20, 30), bool)
    mask[:12, 20:] = True
    (border,) = find_borders([encode(mask)], 2)
    np.testing.assert_array_equal(rle_tools.decode(border), find_border_slowly(mask, 2))


@pytest.mark.parametrize("shift", [1, 3, 4, 9])
def test_overlap_of_shifted_squares_is_that_of_their_rings(shift):
    """Squares of side s shifted by d along one axis, rings of width w: the shared area in closed form."""
    side, width = 24, 3
    first, second = np.zeros((60, 60), bool), np.zeros((60, 60), bool)
    first[10 : 10 + side, 10 : 10 + side] = True
    second[10 : 10 + side, 10 + shift : 10 + shift + side] = True
    inner = side - 2 * width
    ring = side**2 - inner**2
    # Pixels in both squares, less those in either's inside, plus those in both insides.
    shared = side * (side - shift) - 2 * inner * min(inner, side - width - shift) + inner * max(0, inner - shift)
    codes = [[encode(mask)] for mask in (first, second)]
    borders = [find_borders(some, width) for some in codes]
    expected = shared / (2 * ring - shared)
    mask_iou = (side - shift) / (side + shift)
    assert expected < mask_iou
    assert measure_overlaps(*codes, *borders, [0])[0, 0] == pytest.approx(expected)
    assert measure_overlaps(*codes, *borders, [1])[0, 0] == pytest.approx((side - shift) / side)  # in a crowd


def test_width_is_a_share_of_the_diagonal_and_at_least_a_pixel():
    assert measure_width((1024, 2048), 0.005) == 11
    assert measure_width((480, 640), 0.02) == 16
    assert measure_width((10, 10), 0.005) == 1


def test_crop_of_a_mask_is_its_smallest_one():
    mask = np.zeros((9, 13), bool)
    mask[2:5, 3:12], mask[8, 12] = True, True
    crop, top, left = cut_mask(encode(mask))
    np.testing.assert_array_equal(crop, mask[2:9, 3:13])
    assert (top, left) == (2, 3)
    assert cut_mask(encode(np.zeros((4, 5), bool)))[0].size == 0


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_coco_when_boundaries_are_as_wide_as_masks(seed):
    """With d of the whole image every pixel is boundary: crowds, ties, empty images and the cut at 100 included."""
    rng = np.random.default_rng(seed)
    boundary, coco = BoundaryEvaluator(ratio=1.0), CocoEvaluator()
    for number, (instances, detections) in enumerate(((12, 160), (0, 5), (8, 0), (20, 60))):
        raster, prediction = make_scene(rng, (50, 70), instances, detections)
        raster[:9, :20] = 26
        prediction.scores[:] = np.sort(rng.choice([0.2, 0.5, 0.8], len(prediction.scores)))[::-1]
        for judge in (boundary, coco):
            judge.add(str(number), raster, prediction)
    found, expected = boundary.summarize(), coco.summarize()
    assert any(0 < value < 1 for value in found.values())
    names = {name.replace("coco/segm", "boundary/segm"): name for name in expected if name.startswith("coco/segm/")}
    assert found.keys() == names.keys()
    for name, own in names.items():
        assert found[name] == pytest.approx(expected[own], abs=1e-12, nan_ok=True), name


def test_mask_with_a_ragged_edge_is_worth_less_than_to_coco():
    raster = np.zeros((100, 160), np.uint16)
    raster[20:80, 30:130] = 26000
    ragged = raster > 0
    ragged[17:20, 30:130:2] = True
    ragged[77:80, 31:130:2] = False
    boundary, coco = BoundaryEvaluator(ratio=0.01), CocoEvaluator()
    for judge in (boundary, coco):
        judge.add("a", raster, make_prediction(raster.shape, [ragged], [3], [0.9]))
    width = measure_width(raster.shape, 0.01)
    own, wanted = find_border_slowly(ragged, width), find_border_slowly(raster > 0, width)
    iou = (own & wanted).sum() / (own | wanted).sum()
    found = boundary.summarize()["boundary/segm/ap"]
    assert found == pytest.approx(np.mean(np.arange(0.5, 1.0, 0.05) <= iou))
    assert found < coco.summarize()["coco/segm/ap"]


def test_evaluator_gives_nan_without_images_and_refuses_one_that_comes_twice():
    evaluator = BoundaryEvaluator()
    assert all(math.isnan(value) for value in evaluator.summarize().values())
    raster = np.zeros((20, 30), np.uint16)
    evaluator.add("a", raster, make_prediction((20, 30), [], [], []))
    with pytest.raises(EvaluationError, match="'a' came again"):
        evaluator.add("a", raster, make_prediction((20, 30), [], [], []))
