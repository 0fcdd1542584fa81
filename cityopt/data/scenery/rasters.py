"""Rasterise (label, polygon) lists exactly as the official Cityscapes scripts do.

Used by scene for its textures and by synthetic for what is written. Polygons are painted in order with PIL's
fill; single instances get id * 1000 + running number, groups and everything else their plain id.

Source: cityscapesScripts, preparation/json2instanceImg.py and json2labelImg.py.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from cityopt.data.scenery.outlines import Polygon
from cityopt.labels import BY_NAME

Annotated = tuple[str, Polygon]


def rasterise_instances(objects: list[Annotated], height: int, width: int) -> NDArray[np.uint16]:
    """Paint instance ids, (H, W) uint16; an empty list gives 0 (unlabeled) everywhere."""
    image = Image.new("I", (width, height), 0)
    draw = ImageDraw.Draw(image)
    for value, polygon in zip(number_instances([label for label, _ in objects]), (p for _, p in objects), strict=True):
        if value >= 0:
            draw.polygon(polygon, fill=value)
    return np.asarray(image).astype(np.uint16)


def labels_of(instances_HW: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Reduce instance ids to label ids, (H, W) uint8."""
    return np.where(instances_HW >= 1000, instances_HW // 1000, instances_HW).astype(np.uint8)


def number_instances(labels: list[str]) -> list[int]:
    """Give each object its raster value, in painting order; negative ones (licence plates) are not painted."""
    seen: Counter[str] = Counter()
    values = []
    for name in labels:
        label = BY_NAME.get(name) or BY_NAME[name.removesuffix("group")]
        if label.has_instances and label.name == name:
            values.append(label.id * 1000 + seen[name])
            seen[name] += 1
        else:
            values.append(label.id)
    return values


def without_hidden(objects: list[Annotated], instances_HW: NDArray[np.uint16]) -> list[Annotated]:
    """Leave out single instances that nothing is left of behind what was painted over them."""
    visible = set(np.unique(instances_HW).tolist())
    values = number_instances([label for label, _ in objects])
    return [item for item, value in zip(objects, values, strict=True) if value < 1000 or value in visible]
