"""Predictions and their masks: from a small grid of probabilities in a box to a run-length code.

A mask is pasted by bilinear interpolation at pixel centres in continuous coordinates, into a crop that
covers its box, and the crop is coded as a COCO RLE of the whole image. Nothing of the image's size is
made, so a hundred masks of 2048 x 1024 cost a few megabytes. numpy only: evaluation needs no torch.

Shapes: N detections, M cells of a mask grid, (h, w) a crop, (H, W) the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cityopt.errors import EvaluationError

Floats = NDArray[np.float32]


class Rle(TypedDict):
    """A compressed COCO run-length code."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class Prediction:
    """What a model finds in one image, best score first."""

    boxes_xyxy: Floats
    """`(N, 4)` px, within the image."""
    scores: Floats
    """`(N,)` in [0, 1], descending."""
    classes: NDArray[np.int64]
    """`(N,)` in 1..8."""
    masks: list[Rle]
    size: tuple[int, int]
    """(height, width) of the image."""

    @classmethod
    def from_masks(
        cls, masks: Sequence[NDArray[Any]], classes: Sequence[int], scores: Sequence[float], size: tuple[int, int]
    ) -> "Prediction":
        """Return what somebody else's model found, given binary masks `(H, W)` of the image's size, in any order.

        Boxes are those of the masks. Raises EvaluationError: a mask of another size or that is not binary, or masks,
        classes and scores that are not equally many.
        """
        if len({len(masks), len(classes), len(scores)}) > 1:
            counts = f"{len(masks)}, {len(classes)} and {len(scores)}"
            raise EvaluationError(f"masks, classes and scores must be equally many, but got {counts}.")
        for mask in masks:
            if mask.shape != tuple(size):
                raise EvaluationError(f"a mask must have the image's size {tuple(size)}, but got {mask.shape}.")
        order = np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")
        codes = [encode_crop(masks[index], 0, 0, size) for index in order]
        boxes_xywh = np.array([coco_mask.toBbox(code) for code in codes], dtype=np.float32).reshape(-1, 4)
        return cls(
            boxes_xyxy=np.concatenate((boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]), axis=1),
            scores=np.asarray(scores, dtype=np.float32)[order],
            classes=np.asarray(classes, dtype=np.int64)[order],
            masks=codes,
            size=size,
        )


@dataclass(frozen=True)
class SemanticMap:
    """The class of each pixel of one image."""

    label_ids: NDArray[np.uint8]
    """`(H, W)` raw label ids."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        height, width = self.label_ids.shape
        return height, width


def scale_boxes(boxes_xyxy: Floats, seen: tuple[int, int], size: tuple[int, int]) -> Floats:
    """Move boxes `(N, 4)` from an image of one (height, width) into the same image at another."""
    if seen == size:
        return boxes_xyxy
    scale_yx = np.array(size, dtype=np.float64) / seen
    limits_yx = np.array(size, dtype=np.float32)
    scaled = (boxes_xyxy * scale_yx[[1, 0, 1, 0]]).astype(np.float32)
    return np.minimum(scaled, limits_yx[[1, 0, 1, 0]])


def encode_masks(probabilities: Floats, boxes_xyxy: Floats, size: tuple[int, int]) -> list[Rle]:
    """Paste masks `(N, M, M)` into their boxes, cut at .5, and return the codes of the whole image."""
    codes = []
    for probability, box in zip(probabilities, boxes_xyxy, strict=True):
        crop, top, left = paste_mask(probability, box, size)
        codes.append(encode_crop(crop >= 0.5, top, left, size))
    return codes


def paste_mask(probability: Floats, box_xyxy: Floats, size: tuple[int, int]) -> tuple[Floats, int, int]:
    """Spread a grid over a box.

    Args:
        probability: `(M, M)` in [0, 1].
        box_xyxy: `(4,)` px, continuous coordinates.
        size: (height, width) of the image.

    Returns:
        Values `(h, w)` at the pixel centres of the crop that covers the box, and the crop's top and left.
        Outside the crop all values are below .5. `h` or `w` is 0 where the box lies outside the image.
    """
    top, rows = _interpolate(box_xyxy[1], box_xyxy[3], size[0], probability.shape[0])
    left, columns = _interpolate(box_xyxy[0], box_xyxy[2], size[1], probability.shape[1])
    return (rows @ probability @ columns.T).astype(np.float32, copy=False), top, left


def _interpolate(low: float, high: float, limit: int, cells: int) -> tuple[int, Floats]:
    """Return the first pixel that a box touches along an axis, and the weights `(pixels, cells)` of its cells."""
    first, last = max(int(np.floor(low)), 0), min(int(np.ceil(high)), limit)
    centre = np.arange(first, max(first, last), dtype=np.float32) + np.float32(0.5)
    position = (centre - np.float32(low)) / np.float32(max(high - low, 1e-6)) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    return first, np.maximum(np.float32(1) - distance, np.float32(0))


def encode_crop(crop: NDArray[Any], top: int, left: int, size: tuple[int, int]) -> Rle:
    """Return the code of an image that is empty but for a crop `(h, w)` of 0 and 1 whose corner is (top, left).

    Raises EvaluationError: the crop is not binary.
    """
    if crop.dtype != np.bool_ and (wrong := crop[(crop != 0) & (crop != 1)]).size:
        raise EvaluationError(
            f"a mask must hold 0 and 1 alone, but got {wrong[0]} ({crop.dtype}). Compare it with a threshold first."
        )
    height, width = size
    lines = np.zeros((crop.shape[1], crop.shape[0] + 2), dtype=np.int8)
    lines[:, 1:-1] = crop.T
    column, edge = np.nonzero(np.diff(lines, axis=1))
    position = (column + left) * height + edge + top
    starts, ends = position[::2], position[1::2]
    apart = starts[1:] != ends[:-1]
    starts, ends = np.concatenate([starts[:1], starts[1:][apart]]), np.concatenate([ends[:-1][apart], ends[-1:]])
    bounds = np.zeros(2 * len(starts) + 2, dtype=np.int64)
    bounds[1:-1:2], bounds[2:-1:2], bounds[-1] = starts, ends, height * width
    runs = np.diff(bounds)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    code: Rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    return code
