"""What a prediction must be for a protocol of instances to judge it, the same for all of them.

Stands before Cityscapes' and COCO's evaluators: what they would count wrongly, or not at all, is refused by name.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import DataError, EvaluationError
from cityopt.labels import THING_NAMES

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction


def check_prediction(
    image_id: str, raster: NDArray[Any], prediction: "Prediction", *, num_classes: int = len(THING_NAMES)
) -> None:
    """Check a prediction beside the raster `(H, W)` of its image.

    Raises:
        DataError: the raster is no map of integers.
        EvaluationError: sizes that differ, masks that are no codes, a class outside 1 … `num_classes`, a score that
            is NaN, or masks, scores, classes and boxes that are not equally many.
    """
    check_raster(image_id, raster)
    check_found(image_id, raster.shape, prediction, num_classes=num_classes)


def check_raster(image_id: str, raster: NDArray[Any]) -> None:
    """Check that a raster is a map `(H, W)` of integers. Raises DataError."""
    if raster.ndim != 2 or not raster.size or not np.issubdtype(raster.dtype, np.integer):
        raise DataError(f"a raster must be (H, W) integers, but got {raster.shape} {raster.dtype} for {image_id!r}.")


def check_found(image_id: str, shape: tuple[int, ...], prediction: "Prediction", *, num_classes: int) -> None:
    """Check a prediction for an image of a shape (height, width). Raises EvaluationError as `check_prediction`."""
    _check_masks(image_id, shape, prediction)
    counts = {len(x) for x in (prediction.masks, prediction.scores, prediction.classes, prediction.boxes_xyxy)}
    if len(counts) > 1:
        raise EvaluationError(
            f"masks, scores, classes and boxes must be equally many, but got {sorted(counts)} for image {image_id!r}."
        )
    for value in np.unique(prediction.classes).tolist():
        if value not in range(1, num_classes + 1):
            raise EvaluationError(f"classes must be in 1..{num_classes}, but got {value} for image {image_id!r}.")
    if np.isnan(prediction.scores).any():
        raise EvaluationError(f"scores must be numbers, but got NaN for image {image_id!r}.")


def _check_masks(image_id: str, shape: tuple[int, ...], prediction: "Prediction") -> None:
    for code in prediction.masks:
        if not isinstance(code, dict):
            raise EvaluationError(
                f"masks must be COCO's run-length codes, but got {type(code).__name__} for image {image_id!r}. "
                "Make them of arrays with `Prediction.from_masks`."
            )
    for size in (prediction.size, *(code["size"] for code in prediction.masks)):
        if tuple(size) != shape:
            raise EvaluationError(
                f"masks and ground truth must have one size, but got {tuple(size)} and {shape} for {image_id!r}. "
                "Predict at the size of the ground truth."
            )
