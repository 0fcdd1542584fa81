"""What a model is worth on a dataset: what is shown to it, and what the shared classes are judged by."""

from fractions import Fraction

import numpy as np
import pytest

from cityopt.evaluation.class_maps import PERSON
from cityopt.evaluation.transfer import StreetJudge, fit_short_side
from cityopt.labels import RIDER
from cityopt.models.masks import Prediction

SIZE = (60, 120)
PLACES = {24: np.s_[10:50, 10:40], 25: np.s_[10:50, 60:90]}
"""A person and a rider, by their ids."""


def draw(*ids: int) -> np.ndarray:
    raster = np.full(SIZE, 7, np.uint16)
    for number in ids:
        raster[PLACES[number]] = number * 1000
    return raster


def find(*classes: int, ids: tuple[int, ...] = (24, 25)) -> Prediction:
    masks = [draw(number) > 1000 for number in ids]
    scores = [0.8 + 0.1 * place for place in range(len(ids))]
    return Prediction.from_masks(masks, list(classes), scores, SIZE)


def judge(raster: np.ndarray, prediction: Prediction, *, is_coco: bool = True) -> dict[str, float]:
    streets = StreetJudge(is_coco)
    streets.add("ulm", raster, prediction)
    return streets.finish().metrics


def test_shared_classes_do_not_punish_whom_coco_calls_a_rider():
    """COCO's annotators call riders persons, so a model of COCO that finds both is right."""
    metrics = judge(draw(24, 25), find(PERSON, PERSON))
    for kind in ("segm", "bbox"):
        assert metrics[f"shared/coco/{kind}/ap/class/person"] == pytest.approx(1)
    assert metrics["coco/segm/ap/class/person"] == pytest.approx(0.5, abs=0.01)  # Cityscapes' own labels do


def test_shared_classes_do_not_ask_for_riders():
    only_person = judge(draw(24, 25), find(PERSON, ids=(24,)))
    called_rider = judge(draw(24, 25), find(PERSON, RIDER), is_coco=False)
    for metrics in (only_person, called_rider):
        assert metrics["shared/coco/segm/ap/class/person"] == pytest.approx(1)
        assert np.isnan(metrics["shared/coco/segm/ap/class/rider"])


def test_shared_classes_still_punish_persons_where_nobody_is():
    metrics = judge(draw(24), find(PERSON, PERSON))
    assert metrics["shared/coco/segm/ap/class/person"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((640, 427), (1199, 800)),
        ((300, 900), (444, 1333)),
        ((1024, 2048), (667, 1333)),
        ((622, 311), (1333, 667)),
        ((620, 210), (1333, 451)),
        ((800, 800), (800, 800)),
        ((50, 50), (800, 800)),
    ],
)
def test_images_of_coco_are_shown_as_detectron2_shows_them(size, seen):
    assert fit_short_side(size) == seen


def test_size_is_what_exact_arithmetic_says():
    for height in range(100, 1500, 37):
        for width in range(100, 1500, 41):
            scale = min(Fraction(800, min(height, width)), Fraction(1333, max(height, width)))
            wanted = [float(side * scale) for side in (height, width)]
            seen = fit_short_side((height, width))
            assert all(abs(own - side) <= 0.5 + 1e-9 for own, side in zip(seen, wanted, strict=True)), (height, width)
