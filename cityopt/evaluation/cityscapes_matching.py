"""One image under Cityscapes' instance protocol: what each prediction meets, reduced to a few numbers.

Stands under `cityscapes_ap`, which pools images. Raster and masks are met as runs, once for all thresholds: objects
do not overlap, so that above an IoU of .5 a prediction can match one of them only.

Shapes: N predictions, G objects to be found, R regions of the raster, K runs, (H, W) the raster.

Source: cityscapesScripts, evaluation/evalInstanceLevelSemanticLabeling.py (assignGt2Preds, evaluateMatches).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import DataError, EvaluationError
from cityopt.evaluation.admission import check_prediction
from cityopt.evaluation.run_lengths import RasterRuns, count_shared_pixels, decode_runs, find_raster_runs
from cityopt.labels import CLASS_OF_ID, INSTANCE_IDS, LABELS, MIN_INSTANCE_PX, THING_LABELS
from cityopt.labels import VOID as TRAIN_VOID

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

OTHER, VOID, FIRST_THING = 0, 1, 2
"""Regions of a raster: all that matters to no prediction, what excuses any, and then one per instance or group."""
LOWEST_ID, HIGHEST_VALUE = -1, 33999
VOID_IDS = [label.id for label in LABELS if label.ignore_in_eval]
KNOWN_IDS = {label.id for label in LABELS}
TRAIN_IDS = {label.train_id for label in THING_LABELS}


@dataclass(frozen=True)
class ImageMatches:
    """All that an image adds to the score."""

    object_classes: Ints
    """`(G,)` classes 1..8 of the objects that are to be found."""
    classes: Ints
    """`(N,)` classes 1..8 of the predictions whose masks are not empty."""
    scores: Floats
    """`(N,)`"""
    ious: Floats
    """`(N,)` with the region of its class that a prediction meets best: above .5 there is one at most."""
    objects: Ints
    """`(N,)` that region's index in 0..G-1, or -1: a group, a small object or nothing."""
    ignorable: Floats
    """`(N,)` share of a prediction's pixels on void, groups and small objects of its class."""


@dataclass(frozen=True)
class Things:
    """The instances and groups of a raster, in order of their values."""

    classes: Ints
    """`(R - 2,)` in 1..8."""
    areas: Ints
    """`(R - 2,)` px."""
    is_group: NDArray[np.bool_]
    """`(R - 2,)`"""
    is_small: NDArray[np.bool_]
    """`(R - 2,)`"""

    @property
    def is_object(self) -> NDArray[np.bool_]:
        """Say which ones are to be found."""
        return ~(self.is_group | self.is_small)


def match_image(image_id: str, raster: NDArray[Any], prediction: "Prediction") -> ImageMatches:
    """Return what each prediction meets in a raster `(H, W)` of instanceIds.

    Raises DataError and EvaluationError: what `CityscapesEvaluator.add` lists; `image_id` is for its message.
    """
    check_prediction(image_id, raster, prediction)
    things, regions = _find_things(image_id, find_raster_runs(np.asarray(raster)))
    try:
        masks = decode_runs(prediction.masks)
    except EvaluationError as error:
        raise EvaluationError(f"{error} This is in image {image_id!r}.") from error
    pixels = count_shared_pixels(masks, len(prediction.masks), regions, FIRST_THING + len(things.classes))
    mask_areas = pixels.sum(axis=1)
    classes = np.asarray(prediction.classes, dtype=np.int64)
    shared = pixels[:, FIRST_THING:] * (classes[:, None] == things.classes)
    # A group that is also small counts twice, as officially.
    ignorable = pixels[:, VOID] + shared @ (things.is_group.astype(np.int64) + things.is_small)
    ious, objects = _find_best(shared, mask_areas, things)
    kept = mask_areas > 0
    return ImageMatches(
        object_classes=things.classes[things.is_object],
        classes=classes[kept],
        scores=np.asarray(prediction.scores, dtype=np.float64)[kept],
        ious=ious[kept],
        objects=objects[kept],
        ignorable=ignorable[kept] / mask_areas[kept],
    )


def _find_best(shared: Ints, mask_areas: Ints, things: Things) -> tuple[Floats, Ints]:
    """Return each prediction's highest IoU with a thing, and which object that is; 0 and -1 if it is none."""
    objects = np.where(things.is_object, np.cumsum(things.is_object) - 1, -1)
    if not len(objects):
        return np.zeros(len(shared)), np.full(len(shared), -1)
    # Where nothing is shared, an empty mask and a thing included, the denominator is the thing's area at least.
    ious = shared / (mask_areas[:, None] + things.areas - shared)
    best = ious.argmax(axis=1)
    return ious[np.arange(len(best)), best], objects[best]


def _find_things(image_id: str, runs: RasterRuns) -> tuple[Things, RasterRuns]:
    """Return the things in a raster, and the raster as runs of region indices."""
    values, areas = _measure_values(image_id, runs)
    ids = np.where(values < 1000, values, values // 1000)
    is_thing = np.isin(ids, list(CLASS_OF_ID))
    # Caravans and trailers excuse as groups, with their plain id, but not as instances.
    regions = np.where(np.isin(values, VOID_IDS), VOID, OTHER)
    regions[is_thing] = FIRST_THING + np.arange(np.count_nonzero(is_thing))
    things = Things(
        classes=np.array([CLASS_OF_ID[label_id] for label_id in ids[is_thing].tolist()], dtype=np.int64),
        areas=areas[is_thing],
        is_group=values[is_thing] < 1000,
        is_small=areas[is_thing] < MIN_INSTANCE_PX,
    )
    region_of = np.zeros(values[-1] + 1 - LOWEST_ID, dtype=np.int64)
    region_of[values - LOWEST_ID] = regions
    return things, runs.relabel(region_of[runs.values.astype(np.int64) - LOWEST_ID])


def _measure_values(image_id: str, runs: RasterRuns) -> tuple[Ints, Ints]:
    """Return all values of a raster, ascending, and their areas in px."""
    lowest, highest = int(runs.values.min()), int(runs.values.max())
    if lowest < LOWEST_ID or highest > HIGHEST_VALUE:
        _refuse_value(image_id, lowest if lowest < LOWEST_ID else highest)
    areas = np.bincount(runs.values.astype(np.int64) - LOWEST_ID, weights=runs.lengths)
    values = np.flatnonzero(areas) + LOWEST_ID
    for value in values.tolist():
        if value not in KNOWN_IDS and not (value >= 1000 and value // 1000 in INSTANCE_IDS):
            _refuse_value(image_id, value)
    return values, areas[values - LOWEST_ID].astype(np.int64)


def _refuse_value(image_id: str, value: int) -> NoReturn:
    is_train_id = value == TRAIN_VOID or (value >= 1000 and value // 1000 in TRAIN_IDS)
    hint = " It looks like a map of trainIds: give its *_gtFine_instanceIds.png." if is_train_id else ""
    raise DataError(
        "a raster must hold ids of the Cityscapes table, -1 to 33, or id * 1000 + k of a class with instances, but got "
        f"{value} in image {image_id!r}.{hint}"
    )
