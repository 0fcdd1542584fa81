"""Pictures of what a model found, beside what is there: a person must see at a glance if it works.

Validation draws a few per trial, promotion its best and worst, `predict` one for each picture. An image, a
`Prediction` and perhaps the raw instanceIds raster become one strip: detections left, ground truth right. With both,
outlines tell the found (TP) from the false (FP) and the missed (FN), and the header says how many there are of each.

Shapes: images `(H, W, 3)` uint8, rasters and masks `(H, W)`.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.evaluation.drawing import DARK, Fate, Note, Shape, draw_panel
from cityopt.evaluation.matching import (
    EXCUSED,
    FALSE,
    MIN_IOU,
    SCORE,
    Instance,
    Matching,
    list_instances,
    match_detections,
    pick_rows,
)
from cityopt.labels import THING_NAMES

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

GAP_PX = 6


def draw_overlay(
    image: NDArray[np.uint8],
    prediction: "Prediction",
    raster: NDArray[Any] | None,
    *,
    score: float = SCORE,
) -> Image.Image:
    """Draw the detections of at least `score` on an image `(H, W, 3)`, and beside them the raster's instances.

    Without a raster `(H, W)` the picture has one panel. Each panel is 768 to 1280 px wide, whatever the image.
    Nothing found is said in the panel's header, with the best score there was.

    Raises ValueError: image, prediction and raster of different sizes.
    """
    sizes = {image.shape[:2], tuple(prediction.size)} | (set() if raster is None else {raster.shape})
    if len(sizes) != 1:
        raise ValueError(f"image, prediction and raster must have one size (height, width), but got {sorted(sizes)}.")
    if raster is None:
        return draw_panel(image, outline_detections(prediction, score), _note_detections(prediction, score))
    instances = list_instances(raster)
    matching = match_detections(prediction, instances, score=score)
    left = draw_panel(
        image, outline_detections(prediction, score, matching), _note_detections(prediction, score, matching)
    )
    right = draw_panel(image, outline_instances(instances, matching), _note_instances(instances, matching))
    strip = Image.new("RGB", (left.width + GAP_PX + right.width, left.height), DARK)
    strip.paste(left, (0, 0))
    strip.paste(right, (left.width + GAP_PX, 0))
    return strip


def encode_picture(picture: Image.Image) -> bytes:
    """Return a picture as the bytes of a JPEG, with losses that the eye does not see."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def outline_detections(prediction: "Prediction", score: float, matching: Matching | None = None) -> list[Shape]:
    """Return the detections of at least `score`, best first, with name and score as captions."""
    rows = pick_rows(prediction, score)
    truths = matching.truth_of if matching else (None,) * len(rows)
    return [
        Shape(
            prediction.masks[row],
            int(prediction.classes[row]),
            f"{THING_NAMES[prediction.classes[row] - 1]} {prediction.scores[row]:.2f}",
            _name_fate(truth),
            tuple(prediction.boxes_xyxy[row].tolist()),
        )
        for row, truth in zip(rows, truths, strict=True)
    ]


def outline_instances(instances: Sequence[Instance], matching: Matching) -> list[Shape]:
    """Return instances and groups, large ones first, with their names as captions."""
    from hotcoco import mask

    shapes = []
    for index in sorted(range(len(instances)), key=lambda i: -int(mask.area(dict(instances[i].mask)))):
        instance = instances[index]
        name = THING_NAMES[instance.class_index - 1]
        fate: Fate = "group" if instance.is_group else "found" if matching.is_found[index] else "missed"
        shapes.append(Shape(instance.mask, instance.class_index, f"{name} group" if instance.is_group else name, fate))
    return shapes


def _name_fate(truth: int | None) -> Fate:
    if truth is None:
        return "plain"
    return "false" if truth == FALSE else "excused" if truth == EXCUSED else "found"


def _note_detections(prediction: "Prediction", score: float, matching: Matching | None = None) -> list[Note]:
    scores, count = prediction.scores, len(pick_rows(prediction, score))
    best = f" (best score {scores.max():.2f})" if scores.size and not count else ""
    notes = [Note(f"detections of score {score:.2f} or more: {count or 'none'}{best}")]
    if matching:
        notes.append(Note(f"found (TP) {matching.num_found}", "found"))
        notes.append(Note(f"false (FP) {matching.num_false}", "false"))
        num_excused = matching.truth_of.count(EXCUSED)
        notes += [Note(f"in a group {num_excused}", "excused")] if num_excused else []
    return notes


def _note_instances(instances: Sequence[Instance], matching: Matching) -> list[Note]:
    num_groups = sum(instance.is_group for instance in instances)
    return [
        Note(f"ground truth: {len(instances) - num_groups or 'none'}"),
        Note(f"found (TP) {matching.num_found}", "found"),
        Note(f"missed (FN) {matching.num_missed}", "missed"),
        *([Note(f"group{'s' * (num_groups != 1)} {num_groups}", "group")] if num_groups else []),
        Note(f"F1 {matching.f1:.2f} at IoU {MIN_IOU:.2f}"),
    ]
