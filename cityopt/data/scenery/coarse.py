"""Coarse annotations: few corners, well inside each thing, and void where an annotator would not bother.

Derived from a finished scene's raster, so that every coarsely labelled pixel has its true label.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from cityopt.data.scenery.outlines import trace_outline
from cityopt.data.scenery.rasters import Annotated
from cityopt.labels import LABELS

# Shares of the image height: how far polygons keep from borders, how much they cut corners; and of the area.
MARGIN = 0.012
CORNER_CUT = 0.010
MIN_AREA = 0.0015

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
        shrunk = _shrink(instances_HW == value, margin)
        polygon = trace_outline(shrunk, CORNER_CUT * height)
        if polygon:
            objects.append((_name_of(value), polygon))
    return objects


def _name_of(value: int) -> str:
    if value >= 1000:
        return _NAME_OF_ID[value // 1000]
    name = _NAME_OF_ID[value]
    return f"{name}group" if 24 <= value <= 33 else name


def _shrink(mask_HW: NDArray[np.bool_], margin: int) -> NDArray[np.bool_]:
    """Erode a mask, except where it ends at the image border."""
    padded = np.pad(mask_HW, margin, mode="edge").astype(np.uint8)
    eroded = Image.fromarray(padded).filter(ImageFilter.MinFilter(2 * margin + 1))
    return np.asarray(eroded)[margin:-margin, margin:-margin].astype(bool)
