"""Matching: equal to a slow loop over pixels, and COCO's rules for groups, classes and ties."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from cityopt.evaluation.matching import EXCUSED, FALSE, list_instances, match_detections

SIZE = (40, 60)
LABEL_IDS = (24, 25, 26, 27, 28, 31, 32, 33)


def predict(*masks, classes, scores):
    return SimpleNamespace(
        size=SIZE,
        masks=[rle_tools.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
        classes=np.array(classes, np.int64),
        scores=np.array(scores, np.float32),
    )


def fill_box(y0, x0, y1, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def draw_scene(rng):
    """Return a raster with groups and instances of two classes, and detections near them."""
    raster = np.full(SIZE, 7, np.uint16)
    for number in range(rng.integers(0, 7)):
        y, x = rng.integers(0, 28), rng.integers(0, 44)
        raster[y : y + rng.integers(4, 14), x : x + rng.integers(4, 16)] = rng.choice([24, 26]) * (
            1 if number == 0 else 1000
        ) + (0 if number == 0 else number)
    masks, classes = [], []
    for _ in range(rng.integers(0, 9)):
        values = [value for value in np.unique(raster) if value != 7]
        if values and rng.random() < 0.8:
            value = rng.choice(values)
            masks.append(np.roll(raster == value, rng.integers(-2, 3, 2), (0, 1)))
            classes.append(LABEL_IDS.index(value if value < 1000 else value // 1000) + 1)
        else:
            masks.append(fill_box(*np.sort(rng.integers(0, 40, 4))[[0, 1, 2, 3]]) | fill_box(0, 0, 2, 2))
            classes.append(rng.choice([1, 3]))
    scores = np.sort(rng.choice([0.2, 0.5, 0.6, 0.7, 0.9], len(masks)))[::-1]
    return raster, masks, classes, scores


def match_slowly(raster, masks, classes, scores):
    """Return (number found, false, excused, missed) by counting pixels."""
    singles = [int(value) for value in np.unique(raster) if value >= 1000]
    free, found, false, excused = set(singles), 0, 0, 0
    for mask, class_index, score in zip(masks, classes, scores, strict=True):
        if score < np.float32(0.5):
            continue
        own = LABEL_IDS[class_index - 1]
        overlaps = {}
        for value in sorted(free):
            if value // 1000 == own:
                truth = raster == value
                overlaps[value] = (mask & truth).sum() / (mask | truth).sum()
        best = max(overlaps, key=overlaps.get, default=None)
        if best is not None and overlaps[best] >= 0.5:
            free.remove(best)
            found += 1
        elif (mask & (raster == own)).sum() >= 0.5 * mask.sum():
            excused += 1
        else:
            false += 1
    return found, false, excused, len(free)


def test_matching_equals_a_slow_loop_over_pixels_when_scenes_are_random():
    seen = np.zeros(4, int)
    for seed in range(150):
        raster, masks, classes, scores = draw_scene(np.random.default_rng(seed))
        matching = match_detections(predict(*masks, classes=classes, scores=scores), list_instances(raster))
        excused = matching.truth_of.count(EXCUSED)
        counts = (matching.num_found, matching.num_false, excused, matching.num_missed)
        assert counts == match_slowly(raster, masks, classes, scores), seed
        seen += counts
    assert (seen > 10).all()


def test_better_score_takes_the_instance_when_two_detections_want_it():
    raster = np.where(fill_box(5, 5, 25, 25), 26001, 7).astype(np.uint16)
    whole, near = fill_box(5, 5, 25, 25), fill_box(5, 5, 25, 22)
    prediction = predict(near, whole, near, classes=[3, 3, 3], scores=[0.9, 0.8, 0.4])
    matching = match_detections(prediction, list_instances(raster))
    assert matching.truth_of == (0, FALSE) and matching.is_found == (True,)
    assert matching.f1 == pytest.approx(2 / 3)


@pytest.mark.parametrize(("columns", "expected"), [(10, 0), (9, FALSE)])
def test_iou_of_exactly_one_half_is_enough(columns, expected):
    raster = np.where(fill_box(0, 0, 20, 20), 24000, 0).astype(np.uint16)
    matching = match_detections(predict(fill_box(0, 0, 20, columns), classes=[1], scores=[0.5]), list_instances(raster))
    assert matching.truth_of == (expected,)


@pytest.mark.parametrize(
    ("with_truth", "with_detection", "expected"), [(0, 0, 1.0), (1, 0, 0.0), (0, 1, 0.0), (1, 1, 1.0)]
)
def test_f1_has_a_value_when_there_is_nothing_to_count(with_truth, with_detection, expected):
    box = fill_box(5, 5, 25, 25)
    raster = np.where(box & bool(with_truth), 26001, 7).astype(np.uint16)
    prediction = predict(*[box] * with_detection, classes=[3] * with_detection, scores=[0.9] * with_detection)
    assert match_detections(prediction, list_instances(raster)).f1 == float(with_truth == with_detection)


def test_other_classes_and_caravans_excuse_nothing():
    box = fill_box(5, 5, 25, 25)
    for value, truths in ((24001, 1), (24, 1), (29000, 0)):
        matching = match_detections(
            predict(box, classes=[3], scores=[0.9]), list_instances(np.where(box, value, 7).astype(np.uint16))
        )
        assert matching.truth_of == (FALSE,) and len(matching.is_found) == truths


def test_instances_are_those_of_the_raster():
    raster = np.full(SIZE, 7, np.uint16)
    for index, label in itertools.product(range(2), LABEL_IDS):
        raster[20 * index : 20 * index + 9, LABEL_IDS.index(label) * 7 : LABEL_IDS.index(label) * 7 + 5] = (
            label * 1000 if index else label
        )
    found = list_instances(raster)
    assert [(one.class_index, one.is_group) for one in found] == [(c, g) for g in (True, False) for c in range(1, 9)]
    for one in found:
        value = LABEL_IDS[one.class_index - 1] * (1 if one.is_group else 1000)
        np.testing.assert_array_equal(np.asarray(rle_tools.area(one.mask)), (raster == value).sum())
