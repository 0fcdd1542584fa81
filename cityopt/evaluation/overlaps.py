"""Count how often each ground truth value meets each predicted label id, in one pass over an image.

Stands below the semantic protocol, which takes confusion matrix and instance sums from the same small table. Street
scenes come in runs of equal pixels: ground truth and prediction are compared with their left neighbours, and only
the runs, some ten thousand of an image's two million pixels, are counted.

Shapes: (H, W) an image, V distinct ground truth values, L = 34 label ids.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import CityoptError, DataError, EvaluationError
from cityopt.labels import INSTANCE_IDS, LABELS, NUM_IDS, VOID

NUM_TRAIN_IDS = 19
NOISE = 0.3
"""Runs per pixel above which runs cost more than they save."""
# Column of a label's training id, 0 for labels without one, whose rows never count.
TRAIN_IDS = np.array([0 if label.ignore_in_eval else label.train_id for label in LABELS if label.id >= 0])
IGNORED = np.array([label.ignore_in_eval for label in LABELS if label.id >= 0])


def count_overlaps(
    image_id: str, raster: NDArray[Any], predicted_ids: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values of a raw instanceIds raster `(V,)`, ascending, and their pixels per predicted id `(V, L)`.

    Args:
        image_id: Names the image in errors.
        raster: `(H, W)` of any integer type: label ids, and `id * 1000 + k` for single instances.
        predicted_ids: `(H, W)` of any integer type, raw label ids 0 … 33.

    Raises:
        DataError: the raster is no map of integers, or holds what the label table does not know.
        EvaluationError: the prediction has another size or type, an id outside the table, or training ids.
    """
    _check_map(f"the ground truth of image {image_id!r}", raster, DataError)
    _check_map(f"the prediction for image {image_id!r}", predicted_ids, EvaluationError)
    if raster.shape != predicted_ids.shape:
        raise EvaluationError(
            f"prediction and ground truth must have one size (height, width), but got {predicted_ids.shape} and "
            f"{raster.shape} for image {image_id!r}. Predict at the size of the ground truth."
        )
    truth, predicted, lengths = _find_runs(raster.ravel(), predicted_ids.ravel())
    values = _list_values(truth)
    _check_truth(image_id, values)
    _check_prediction(image_id, _list_values(predicted))
    ranks = np.zeros(values[-1] + 1, dtype=np.int64)
    ranks[values] = np.arange(len(values))
    rows = ranks[truth]
    flat = np.bincount(rows * NUM_IDS + predicted, weights=lengths, minlength=len(values) * NUM_IDS)
    table = flat.astype(np.int64).reshape(len(values), NUM_IDS)
    _refuse_train_ids(image_id, find_label_ids(values), table)
    return values, table


def find_label_ids(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the label id of each value of a raw instanceIds raster."""
    return np.where(values < 1000, values, values // 1000)


def _find_runs(
    truth: NDArray[Any], predicted: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64] | None]:
    """Return both values and the length of each run of pixels in which neither changes; each pixel in noise."""
    changes = truth[1:] != truth[:-1]
    changes |= predicted[1:] != predicted[:-1]
    if np.count_nonzero(changes) > truth.size * NOISE:
        return truth.astype(np.int64), predicted.astype(np.int64), None
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    lengths = np.diff(starts, append=truth.size)
    return truth[starts].astype(np.int64), predicted[starts].astype(np.int64), lengths


def _check_map(what: str, pixels: NDArray[Any], error: type[CityoptError]) -> None:
    if pixels.ndim != 2 or not pixels.size or pixels.dtype.kind not in "iu":
        raise error(
            f"{what} must be an array (height, width) of integers, but got {pixels.dtype} {pixels.shape}. "
            "Give one label id per pixel, neither scores nor colours."
        )


def _list_values(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct values, ascending; by counting where they can be right, for sorting noise takes long."""
    if runs.min() < 0 or runs.max() >= 1000 * NUM_IDS:
        return np.unique(runs)
    return np.flatnonzero(np.bincount(runs))


def _check_truth(image_id: str, values: NDArray[np.int64]) -> None:
    for value in values.tolist():
        if not (0 <= value < NUM_IDS or (value >= 1000 and value // 1000 in INSTANCE_IDS)):
            raise DataError(
                f"values of a raw instanceIds raster must be label ids 0 … {NUM_IDS - 1}, or id * 1000 + k of a class "
                f"with instances, but got {value} in image {image_id!r}. Read *_gtFine_instanceIds.png."
            )


def _check_prediction(image_id: str, values: NDArray[np.int64]) -> None:
    ids = values.tolist()
    if all(0 <= value < NUM_IDS for value in ids):
        return
    if ids[-1] == VOID and all(0 <= value < NUM_TRAIN_IDS for value in ids[:-1]):
        raise _describe_train_ids(image_id, ids)
    wrong = next(value for value in ids if not 0 <= value < NUM_IDS)
    raise EvaluationError(
        f"predicted label ids must be in 0 … {NUM_IDS - 1}, but got {wrong} for image {image_id!r}. "
        "Use the ids of the label table; 0 is unlabeled."
    )


def _refuse_train_ids(image_id: str, labels: NDArray[np.int64], table: NDArray[np.int64]) -> None:
    """Raise if a map in range can only be one of training ids.

    It holds nothing above 18, some id that nobody predicts because it is ignored (terrain's training id is parking's
    id), and agrees better with the ground truth as training ids. A poor but honest map passes.
    """
    ids = np.flatnonzero(table.any(axis=0))
    if ids[-1] >= NUM_TRAIN_IDS or not (IGNORED[ids] & (ids > 0)).any():
        return
    counted = ~IGNORED[labels]
    rows, labels = table[counted], labels[counted]
    each = np.arange(len(rows))
    if rows[each, TRAIN_IDS[labels]].sum() > rows[each, labels].sum():
        raise _describe_train_ids(image_id, ids.tolist())


def _describe_train_ids(image_id: str, ids: list[int]) -> EvaluationError:
    return EvaluationError(
        f"predictions must be raw label ids (7 road … 33 bicycle), but those for image {image_id!r} look like training "
        f"ids: {ids}. Map each training id to its label's id, and {VOID} to 0."
    )
