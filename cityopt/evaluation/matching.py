"""Match detections with the ground truth of one image: what is found, what is false, what is missed.

Stands between predictions and pictures: overlays outline what came of each object, and a gallery ranks images by
`Matching.f1`. Numbers to compare models by come from the protocols (`coco_ap`), which look at all scores and many
thresholds; this looks at one of each, as a person does who sees a picture.

The rules are COCO's: detections choose in order of their scores; each takes the instance of its class that it overlaps
most, of those nobody took, if their masks' IoU is at least `min_iou`. One that finds none, but lies at least by
`min_iou` of its area in a group of its class, is excused.

Source: Lin et al., "Microsoft COCO", 2014; cocodataset.org/#detection-eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.evaluation.coco_ap import find_runs

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction, Rle

SCORE, MIN_IOU = 0.5, 0.5
FALSE, EXCUSED = -1, -2


@dataclass(frozen=True)
class Instance:
    """One object of the ground truth: its class 1 … 8, its mask, and whether it is a group."""

    class_index: int
    mask: "Rle"
    is_group: bool


@dataclass(frozen=True)
class Matching:
    """What came of the detections of at least `SCORE`, in the prediction's order, and of the instances."""

    truth_of: tuple[int, ...]
    """For each detection the index of its instance, or `FALSE`, or `EXCUSED`."""
    is_found: tuple[bool, ...]
    """For each instance; a group is never found, and never missed."""
    num_missed: int

    @property
    def num_found(self) -> int:
        """Number of true positives."""
        return sum(self.is_found)

    @property
    def num_false(self) -> int:
        """Number of false positives."""
        return self.truth_of.count(FALSE)

    @property
    def f1(self) -> float:
        """`2 TP / (2 TP + FP + FN)` in [0, 1]; 1 where there is nothing to find and nothing was found."""
        errors = self.num_false + self.num_missed
        return 2 * self.num_found / (2 * self.num_found + errors) if self.num_found + errors else 1.0


def list_instances(raster: NDArray[Any]) -> list[Instance]:
    """Return instances and groups of the eight classes in a raw instanceIds raster `(H, W)`, in order of their ids."""
    from hotcoco import mask

    size = list(raster.shape)
    found = []
    for class_index, is_group, counts in find_runs(raster):
        code = mask.frPyObjects({"size": size, "counts": counts}, *size)
        found.append(Instance(class_index, {"size": size, "counts": code["counts"]}, is_group))
    return found


def match_detections(
    prediction: "Prediction", instances: Sequence[Instance], *, score: float = SCORE, min_iou: float = MIN_IOU
) -> Matching:
    """Match the detections of at least `score` with the instances of the same image, by masks.

    Equal scores choose in the prediction's order; of equal overlaps the first instance is taken.
    """
    rows = pick_rows(prediction, score)
    overlap_DG = _measure_overlaps(prediction, rows, instances)
    is_group_G = np.array([instance.is_group for instance in instances], dtype=bool)
    is_free_G = ~is_group_G
    truth_of = np.full(len(rows), FALSE)
    for index in np.argsort(-prediction.scores[rows], kind="stable").tolist():
        best = int(np.argmax(np.where(is_free_G, overlap_DG[index], -1.0))) if len(instances) else FALSE
        if best != FALSE and is_free_G[best] and overlap_DG[index, best] >= min_iou:
            truth_of[index], is_free_G[best] = best, False
        elif (overlap_DG[index, is_group_G] >= min_iou).any():
            truth_of[index] = EXCUSED
    is_found_G = ~is_free_G & ~is_group_G
    return Matching(tuple(truth_of.tolist()), tuple(is_found_G.tolist()), int(is_free_G.sum()))


def pick_rows(prediction: "Prediction", score: float) -> list[int]:
    """Return the indices of the detections of at least `score`."""
    rows: list[int] = np.flatnonzero(prediction.scores >= np.float32(score)).tolist()
    return rows


def _measure_overlaps(
    prediction: "Prediction", rows: Sequence[int], instances: Sequence[Instance]
) -> NDArray[np.float64]:
    """Return `(D, G)` IoUs, 0 between different classes; with a group, the share of the detection inside it."""
    from hotcoco import mask

    if not rows or not instances:
        return np.zeros((len(rows), len(instances)))
    detected = [dict(prediction.masks[row]) for row in rows]
    truths = [dict(instance.mask) for instance in instances]
    overlap_DG = np.asarray(mask.iou(detected, truths, [int(instance.is_group) for instance in instances]))
    classes = np.array([instance.class_index for instance in instances])
    return np.where(prediction.classes[list(rows)][:, None] == classes, overlap_DG, 0.0)
