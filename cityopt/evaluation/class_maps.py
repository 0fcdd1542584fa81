"""What a model with COCO's 80 classes finds, in Cityscapes' eight: so that both can be judged on the same streets.

Stands between such a model and the protocols. Detections of the seven classes that both know change their numbers, all
others are left out: a traffic light is no false car. COCO has no rider, so none is found, and every protocol counts
that as it is: the mean over eight classes has a zero in it. Beside it stands the mean over the seven.

`guess_riders` is an extra and no part of any protocol: a rule of thumb that calls some persons riders.

Shapes: N detections, P persons and V two-wheelers among them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cityopt.labels import COCO_NAMES, RIDER, THING_NAMES, THING_OF_COCO

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

PERSON = THING_NAMES.index("person") + 1
TWO_WHEELERS = (THING_NAMES.index("motorcycle") + 1, THING_NAMES.index("bicycle") + 1)
RIDER_SCORE, RIDER_SHARE = 0.5, 0.3
RIDER_RULE = (
    f"a person is called a rider where a bicycle or motorcycle of score {RIDER_SCORE} or more was found whose box "
    f"shares with the person's at least {RIDER_SHARE} of the smaller one's area, and reaches lower"
)
WITHOUT_RIDER = "_without_rider"
"""Behind the name of a mean over seven classes: `cityscapes/ap_without_rider`."""

_OF_COCO = np.zeros(len(COCO_NAMES) + 1, dtype=np.int64)
_OF_COCO[list(THING_OF_COCO)] = list(THING_OF_COCO.values())


def map_prediction(prediction: "Prediction") -> "Prediction":
    """Return the detections of Cityscapes' classes in what a model with COCO's 80 found; there are no riders."""
    classes = _OF_COCO[prediction.classes]
    return select_rows(replace(prediction, classes=classes), np.flatnonzero(classes))


def select_rows(prediction: "Prediction", rows: NDArray[np.intp]) -> "Prediction":
    """Return some of the detections, in the order of `rows`."""
    return replace(
        prediction,
        boxes_xyxy=prediction.boxes_xyxy[rows],
        scores=prediction.scores[rows],
        classes=prediction.classes[rows],
        masks=[prediction.masks[row] for row in rows],
    )


def guess_riders(prediction: "Prediction") -> "Prediction":
    """Call persons on bicycles and motorcycles riders, by `RIDER_RULE`; nothing else changes."""
    is_person = prediction.classes == PERSON
    is_vehicle = np.isin(prediction.classes, TWO_WHEELERS) & (prediction.scores >= np.float32(RIDER_SCORE))
    persons, vehicles = prediction.boxes_xyxy[is_person], prediction.boxes_xyxy[is_vehicle]
    is_above = persons[:, None, 3] < vehicles[None, :, 3]
    is_rider = (is_above & (_share_boxes(persons, vehicles) >= RIDER_SHARE)).any(axis=1)
    classes = prediction.classes.copy()
    classes[np.flatnonzero(is_person)[is_rider]] = RIDER
    return replace(prediction, classes=classes)


def average_without_rider(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return for every mean that has classes beside it (`…/ap`, `…/ap/class/<name>`) the one over all but riders.

    Classes without objects count as little as in the mean itself; NaN where no class has any.
    """
    means = {}
    for name in metrics:
        own = [metrics.get(f"{name}/class/{thing}") for thing in THING_NAMES if thing != "rider"]
        known = [value for value in own if value is not None and not np.isnan(value)]
        if any(value is not None for value in own):
            means[name + WITHOUT_RIDER] = float(np.mean(known)) if known else float("nan")
    return means


def _share_boxes(persons: NDArray[np.float32], vehicles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return `(P, V)` which part of the smaller box lies in the other one."""
    low = np.maximum(persons[:, None, :2], vehicles[None, :, :2])
    high = np.minimum(persons[:, None, 2:], vehicles[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (persons, vehicles)]
    smaller = np.minimum(areas[0][:, None], areas[1][None, :])
    share: NDArray[np.float32] = shared / np.maximum(smaller, np.float32(1e-6))
    return share
