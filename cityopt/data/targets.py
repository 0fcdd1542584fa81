"""Turn an instanceIds raster into the instances of the eight classes: boxes, classes and one map of pixels.

Stands between cache (or augmentation, which moves raster pixels) and loader, and again under evaluation and anchors,
so that one rule says what an instance is. Instances never overlap, so one map holds all masks without loss.

Rules: a pixel value of at least 24000 whose id // 1000 is one of the eight classes belongs to a single instance;
caravans and trailers are none. An instance with any pixel left stays, so a box is at least 1 px wide and high. A
plain id below 1000 of one of the eight classes is a group: crowd for evaluation, background for training.

Shapes: H, W height and width of the raster, N instances.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cityopt.labels import CLASS_OF_ID

_FIRST_ID = min(CLASS_OF_ID) * 1000
_NUM_IDS = (max(CLASS_OF_ID) + 1) * 1000
_CLASS_OF_THOUSANDS = np.zeros(max(CLASS_OF_ID) + 1, dtype=np.int64)
_CLASS_OF_THOUSANDS[list(CLASS_OF_ID)] = list(CLASS_OF_ID.values())


@dataclass(frozen=True, slots=True)
class Instances:
    """The single instances of a raster, by ascending id."""

    boxes_xyxy: NDArray[np.float32]
    """(N, 4) pixels; a box is tight and its maximum exclusive: pixel i covers [i, i + 1]."""
    classes: NDArray[np.int64]
    """(N,) in 1 … 8."""
    instance_map: NDArray[np.int32]
    """(H, W): i + 1 where instance i is, 0 elsewhere."""
    ids: NDArray[np.int64]
    """(N,) values in the raster, such as 26003."""
    areas: NDArray[np.int64]
    """(N,) pixels."""

    def __len__(self) -> int:
        return len(self.classes)


def find_instances(raster: NDArray[Any]) -> Instances:
    """Find the single instances in an (H, W) raster of instanceIds, of any integer type; there may be none."""
    flat = raster.reshape(-1)
    places = np.flatnonzero(flat >= _FIRST_ID)
    values = flat[places]
    counts = np.bincount(values, minlength=_NUM_IDS)
    ids = np.flatnonzero(counts)
    ids = ids[_CLASS_OF_THOUSANDS[ids // 1000] > 0]
    number = np.zeros(_NUM_IDS, dtype=np.int32)
    number[ids] = np.arange(1, len(ids) + 1)
    numbers = number[values]
    instance_map = np.zeros(raster.shape, dtype=np.int32)
    instance_map.reshape(-1)[places] = numbers
    boxes = _find_boxes(places, numbers, len(ids), raster.shape)
    return Instances(boxes, _CLASS_OF_THOUSANDS[ids // 1000], instance_map, ids.astype(np.int64), counts[ids])


def find_crowds(raster: NDArray[Any]) -> list[tuple[int, NDArray[np.bool_]]]:
    """Find the groups in an (H, W) raster of instanceIds: (class in 1 … 8, (H, W) mask), by ascending class."""
    masks = [(number, raster == label_id) for label_id, number in CLASS_OF_ID.items()]
    return [(number, mask) for number, mask in masks if mask.any()]


def _find_boxes(
    places: NDArray[np.intp], numbers: NDArray[np.int32], num_instances: int, size: tuple[int, ...]
) -> NDArray[np.float32]:
    """Find the tight boxes of the numbers 1 … N at flat places; number 0 is nobody."""
    ys, xs = np.divmod(places, size[1])
    boxes = np.empty((num_instances, 4), dtype=np.float32)
    for axis, (coordinates, length) in enumerate(((xs, size[1]), (ys, size[0]))):
        touched = np.zeros((num_instances + 1, length), dtype=bool)
        touched[numbers, coordinates] = True
        boxes[:, axis] = touched[1:].argmax(axis=1)
        boxes[:, axis + 2] = length - touched[1:, ::-1].argmax(axis=1)
    return boxes
