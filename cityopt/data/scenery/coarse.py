"""Coarse annotations: few corners, well inside each thing, and void where an annotator would not bother.

Derived from a finished scene's raster, so that nearly every coarsely labelled pixel has its true label.
"""

import numpy as np
from numpy.typing import NDArray

from cityopt.data.scenery.outlines import trace_outlines
from cityopt.data.scenery.rasters import Annotated
from cityopt.labels import LABELS

# Shares of the image height: how far polygons keep from borders, how much they cut corners; and of the area.
MARGIN = 0.014
CORNER_CUT = 0.016
MIN_AREA = 0.0015
MAX_PARTS = 5

_NAME_OF_ID = {label.id: label.name for label in LABELS}


def coarsen(instances_HW: NDArray[np.uint16]) -> list[Annotated]:
    """Outline each large region of a raster coarsely, stuff first, then groups and single instances.

    Void regions keep their label; what is too small or too thin is left out and stays unlabeled.
    """
    height, width = instances_HW.shape
    margin = max(1, round(height * MARGIN))
    objects: list[Annotated] = []
    values, counts = np.unique(instances_HW, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value == 0 or count < MIN_AREA * height * width:
            continue
        mask, left, top = _crop(instances_HW == value, margin + 1)
        parts = trace_outlines(_shrink(mask, margin), CORNER_CUT * height)
        for polygon in parts[:1] if value >= 1000 else parts[:MAX_PARTS]:
            objects.append((_name_of(value), [(x + left, y + top) for x, y in polygon]))
    return objects


def _name_of(value: int) -> str:
    if value >= 1000:
        return _NAME_OF_ID[value // 1000]
    name = _NAME_OF_ID[value]
    return f"{name}group" if 24 <= value <= 33 else name


def _crop(mask_HW: NDArray[np.bool_], margin: int) -> tuple[NDArray[np.bool_], int, int]:
    """Cut out the box of a mask that is not empty, with a margin inside the image; return it with its left and top."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    top, left = max(0, int(rows[0]) - margin), max(0, int(columns[0]) - margin)
    return mask_HW[top : int(rows[-1]) + 1 + margin, left : int(columns[-1]) + 1 + margin], left, top


def _shrink(mask_HW: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Erode a mask by a square, one axis after the other, except where it ends at the image border."""
    for axis in (0, 1):
        pad = [(margin, margin) if a == axis else (0, 0) for a in (0, 1)]
        padded, length = np.pad(mask_HW, pad, mode="edge"), mask_HW.shape[axis]
        mask_HW = np.logical_and.reduce([padded.take(range(k, k + length), axis) for k in range(2 * margin + 1)])
    return mask_HW
