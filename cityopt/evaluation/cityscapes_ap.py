"""Cityscapes' average precision of instances, equal to the official script's numbers.

Stands beside the COCO protocol, between the models' predictions at full resolution and everything that reads a
score. The two differ, and their names tell them apart: here a match needs an IoU above its threshold, the best score
of those that match an object counts and every other one is false, objects below 100 px and groups are neither to be
found nor to be punished, void excuses, no limit is set to the number of predictions, and the area under the raw
precision-recall curve is taken by the trapezoid rule, without envelope.

Each image is reduced to a few numbers per prediction as it comes, so memory grows with predictions, not with pixels.
Where the official script dies of an IndexError (objects, and all predictions of their class ignored) the AP is 0.
Left out: AP100m and AP50m, which need distances that the public data does not hold.

Names: `cityscapes/<ap|ap50>` and `cityscapes/<ap|ap50>/class/<name>`.
Shapes: N predictions, T = 10 thresholds, 8 classes.

Source: Cordts et al., "The Cityscapes Dataset", 2016, section 4.2; cityscapesScripts,
evaluation/evalInstanceLevelSemanticLabeling.py.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import EvaluationError
from cityopt.evaluation.cityscapes_matching import ImageMatches, match_image
from cityopt.labels import THING_NAMES

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

# As the official script has them, to the last bit: the sixth is .7500000000000002.
THRESHOLDS: NDArray[np.float64] = np.arange(0.5, 1.0, 0.05)
SUMMARIES: dict[str, slice] = {"ap": slice(None), "ap50": slice(1)}
"""Names, and the thresholds over which each is the mean."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class CityscapesEvaluator:
    """Collects images with their predictions, and then gives the scores of all of them.

    It can be pickled, and those of several ranks be merged; the order of images and ranks changes nothing.
    """

    def __init__(self) -> None:
        """Begin without images."""
        self._images: dict[str, ImageMatches] = {}
        self._matrix: Floats | None = None

    def add(self, image_id: str, raster: NDArray[Any], prediction: "Prediction") -> None:
        """Add one image: its raw instanceIds `(H, W)` of any integer type, and what a model found in it.

        Images without instances, or without predictions, count too; so do all predictions, however many.
        Predictions with empty masks count for nothing.

        Raises:
            DataError: the raster is not one of raw instanceIds; a map of trainIds, for one.
            EvaluationError: an image added twice, sizes that differ, a class outside 1..8, a score that is NaN, or a
                mask that is no run-length code.
            ValueError: a call after `summarize`.
        """
        self._refuse_when_done("add")
        if image_id in self._images:
            raise EvaluationError(f"every image must be added once, but {image_id!r} came again.")
        self._images[image_id] = match_image(image_id, raster, prediction)

    def merge(self, other: "CityscapesEvaluator") -> None:
        """Add the images of another evaluator, such as another rank's.

        Raises:
            EvaluationError: an image that both have.
            ValueError: a call after `summarize`.
        """
        self._refuse_when_done("merge")
        twice = sorted(self._images.keys() & other._images.keys())
        if twice:
            raise EvaluationError(
                f"every image must be added once, but {twice[0]!r} is in both ({len(twice)} images are)."
            )
        self._images |= other._images

    def list_matches(self) -> list[ImageMatches]:
        """Return what each image adds, in the order of adding: `compute_precisions` of some gives their AP."""
        return list(self._images.values())

    def compute_matrix(self) -> Floats:
        """Return the AP per class and threshold, `(8, T)` in [0, 1]; NaN for classes without objects to be found."""
        if self._matrix is None:
            self._matrix = compute_precisions(list(self._images.values()))
        return self._matrix.copy()

    def summarize(self) -> dict[str, float]:
        """Return every metric of `metric_names` in [0, 1]; NaN where there is nothing to be found.

        Classes without objects are left out of the means over classes. Can be called again.
        """
        matrix = self.compute_matrix()
        metrics = {}
        for name, thresholds in SUMMARIES.items():
            metrics[f"cityscapes/{name}"] = _mean(matrix[:, thresholds])
            for label, row in zip(THING_NAMES, matrix, strict=True):
                metrics[f"cityscapes/{name}/class/{label}"] = _mean(row[thresholds])
        return metrics

    def _refuse_when_done(self, name: str) -> None:
        if self._matrix is not None:
            raise ValueError(f"`{name}` must come before `summarize`, but came after it.")


def metric_names() -> list[str]:
    """Return the names of all metrics, in the order of `CityscapesEvaluator.summarize`."""
    return [f"cityscapes/{name}{part}" for name in SUMMARIES for part in ("", *(f"/class/{x}" for x in THING_NAMES))]


def compute_precisions(images: list[ImageMatches]) -> Floats:
    """Return the AP `(8, T)` of all images together; NaN for classes without objects to be found."""
    matrix = np.full((len(THING_NAMES), len(THRESHOLDS)), math.nan)
    if not images:
        return matrix
    joined = _join(images)
    for row, class_index in zip(matrix, range(1, len(THING_NAMES) + 1), strict=True):
        num_objects = np.count_nonzero(joined.object_classes == class_index)
        if num_objects:
            own = np.flatnonzero(joined.classes == class_index)
            own = own[np.argsort(-joined.scores[own], kind="stable")]
            for index, threshold in enumerate(THRESHOLDS):
                row[index] = _compute_precision(joined, own, int(num_objects), float(threshold))
    return matrix


def _join(images: list[ImageMatches]) -> ImageMatches:
    """Lay images end to end; objects are numbered through."""
    offsets = np.cumsum([0, *(len(image.object_classes) for image in images[:-1])])
    objects = [np.where(x.objects < 0, -1, x.objects + offset) for x, offset in zip(images, offsets, strict=True)]
    return ImageMatches(
        object_classes=np.concatenate([image.object_classes for image in images]),
        classes=np.concatenate([image.classes for image in images]),
        scores=np.concatenate([image.scores for image in images]),
        ious=np.concatenate([image.ious for image in images]),
        objects=np.concatenate(objects),
        ignorable=np.concatenate([image.ignorable for image in images]),
    )


def _compute_precision(joined: ImageMatches, own: Ints, num_objects: int, threshold: float) -> float:
    """Return the AP of one class at one threshold; `own` are its predictions, best score first."""
    ious, objects = joined.ious[own], joined.objects[own]
    is_true = np.zeros(len(own), dtype=bool)
    matches = np.flatnonzero((ious > threshold) & (objects >= 0))
    # The first of an object is its best score; every other match is false.
    is_true[matches[np.unique(objects[matches], return_index=True)[1]]] = True
    is_kept = np.where(ious > threshold, objects >= 0, joined.ignorable[own] <= threshold)
    return integrate_curve(joined.scores[own][is_kept], is_true[is_kept], num_objects)


def integrate_curve(scores: Floats, is_true: NDArray[np.bool_], num_objects: int) -> float:
    """Return the area under a precision-recall curve, with one point per distinct score.

    The trapezoid rule, beginning at precision 1 and recall 0, as a sum of precision times half the distance between
    the recalls of its neighbours. `scores` `(N,)` descend; without any the area is 0.
    """
    if not len(scores):
        return 0.0
    is_last = np.append(scores[1:] != scores[:-1], True)
    num_found = np.cumsum(is_true)[is_last]
    precision = np.concatenate(([1.0], num_found / (np.flatnonzero(is_last) + 1)))
    recall = np.concatenate(([0.0], num_found / num_objects))
    neighbours = np.pad(recall, 1, mode="edge")
    return float(precision @ (neighbours[2:] - neighbours[:-2]) / 2)


def _mean(precisions: Floats) -> float:
    """Return the mean over all that is defined."""
    defined = precisions[~np.isnan(precisions)]
    return float(defined.mean()) if defined.size else math.nan
