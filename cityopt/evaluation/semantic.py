"""The Cityscapes semantic protocol, equal to the official script's numbers, and the usual per-pixel scores beside it.

Stands between the models' maps of label ids and everything that reads a score. Ground truth comes from the raw
instanceIds raster, predictions are raw label ids. All scores follow from one confusion matrix and from sums over
instances, which ranks of a distributed run merge.

What counts: pixels whose ground truth is void, or another class that is ignored in evaluation, never count. A counted
pixel that is predicted as void is a miss. A class that is neither there nor predicted is NaN and left out of means;
the official script does so for IoU, and here all scores do. Within other classes 0/0 is 0, as in scikit-learn.

- IoU: TP / (TP + FP + FN) per class, and per category, within which confusions are right.
- iIoU: the same with each instance's pixels weighted by its class' average size over its own; FP are not weighted.
- F1 and Dice of pixels are one number, 2 TP / (2 TP + FP + FN), under both names that people look for.
- Weighted means weigh classes by their pixels in the ground truth, so weighted recall is the accuracy on the classes.
- Accuracy: the share of counted pixels that are right.

Instance models are scored on the eight classes that they know, under `semantic_things/…`: their best-scored masks
are painted on top (`paint_prediction`). There everything else that counts (road, sky …) is one class "other", as is
each pixel without a mask: a thing painted on it is that thing's FP, and leaving it alone is right for the accuracy,
but "other" has no score of its own and enters no mean.

Names: `<prefix>/<miou|iiou|category_iou|category_iiou|accuracy>`,
`<prefix>/<precision|recall|f1|dice>_<macro|weighted>`, `<prefix>/<iou|iiou|precision|recall|f1|dice>/class/<name>`,
`<prefix>/<category_iou|category_iiou>/category/<name>`.

Shapes: L = 34 label ids; confusion `(L, L)`, rows ground truth, columns prediction.

Source: Cordts et al., "The Cityscapes Dataset", 2016, section 4.1, and cityscapesScripts,
evaluation/evalPixelLevelSemanticLabeling.py.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import EvaluationError
from cityopt.evaluation.overlaps import count_overlaps, find_label_ids
from cityopt.labels import BY_NAME, CATEGORIES, EVALUATED_LABELS, LABELS, NUM_IDS, THING_LABELS, Label

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

PREFIX = "semantic"
THINGS_PREFIX = "semantic_things"
SHARES = ("precision", "recall", "f1", "dice")

# Mean pixels of an instance in the training images, from the official script.
AVERAGE_SIZES_PX = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_SIZES_PX = np.zeros(NUM_IDS)
_SIZES_PX[[BY_NAME[name].id for name in AVERAGE_SIZES_PX]] = list(AVERAGE_SIZES_PX.values())
_COUNTED = np.array([label.id for label in EVALUATED_LABELS])
# The official columns of an instance's category include caravan and trailer, which category IoU leaves out.
_CATEGORY = np.array([CATEGORIES.index(label.category) for label in LABELS if label.id >= 0])
# Categories of nothing but instances: the only ones with an iIoU.
_INSTANCE_CATEGORIES = tuple(dict.fromkeys(label.category for label in THING_LABELS))


class SemanticEvaluator:
    """Collects images with their predicted maps, and then gives the scores of all of them."""

    def __init__(self, labels: Sequence[Label] = EVALUATED_LABELS, *, prefix: str = PREFIX) -> None:
        """Begin without images.

        Args:
            labels: Classes that are averaged, of those that are evaluated. Category scores cover the categories
                whose evaluated classes are all among them.
            prefix: Begins all names. Use `THINGS_PREFIX` with `THING_LABELS`: the two must not be mixed.

        Raises ValueError: no label, one twice, or one that is ignored in evaluation.
        """
        if not labels or len(set(labels)) < len(labels) or not set(labels) <= set(EVALUATED_LABELS):
            names = [label.name for label in labels]
            raise ValueError(f"`labels` must be different evaluated classes of the label table, but got {names}.")
        self.labels = tuple(labels)
        self.prefix = prefix
        self.confusion: NDArray[np.int64] = np.zeros((NUM_IDS, NUM_IDS), dtype=np.int64)
        """Pixels `(L, L)` of all images so far, rows ground truth, columns prediction."""
        self.image_ids: set[str] = set()
        # Weighted pixels of instances by label id: right and wrong class, right and wrong category.
        self._weighted = np.zeros((4, NUM_IDS))

    def add(self, image_id: str, raster: NDArray[Any], predicted_ids: NDArray[Any]) -> None:
        """Add one image: its raw instanceIds `(H, W)` and the predicted raw label ids `(H, W)`, any integer types.

        Raises:
            DataError: the raster is not one of raw instance ids.
            EvaluationError: an image added twice; a prediction of another size or type, with ids outside the table,
                or with training ids.
        """
        if image_id in self.image_ids:
            raise EvaluationError(f"every image must be predicted once, but {image_id!r} came again.")
        values, table = count_overlaps(image_id, raster, predicted_ids)
        labels = find_label_ids(values)
        self.image_ids.add(image_id)
        np.add.at(self.confusion, labels, table)
        counted = (values >= 1000) & (_SIZES_PX[labels] > 0)
        self._add_instances(labels[counted], table[counted])

    @property
    def sums(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What all scores follow from: pixels `(L, L)` and weighted pixels of instances `(4, L)`."""
        return self.confusion, self._weighted

    @classmethod
    def from_sums(cls, confusion: NDArray[np.int64], weighted: NDArray[np.float64]) -> "SemanticEvaluator":
        """Return the evaluator of all classes that has seen images with these `sums`."""
        found = cls()
        found.confusion, found._weighted = confusion, weighted
        return found

    def merge(self, other: "SemanticEvaluator") -> None:
        """Add what another evaluator of the same classes has seen, such as another rank's.

        Raises:
            ValueError: the other one has other classes or another prefix.
            EvaluationError: both have seen one image.
        """
        if (self.labels, self.prefix) != (other.labels, other.prefix):
            raise ValueError("evaluators that are merged must have the same labels and prefix.")
        if twice := self.image_ids & other.image_ids:
            raise EvaluationError(f"every image must be predicted once, but {min(twice)!r} came again.")
        self.image_ids |= other.image_ids
        self.confusion += other.confusion
        self._weighted += other._weighted

    def summarize(self) -> dict[str, float]:
        """Return every metric of `metric_names` in [0, 1]; NaN where there is nothing to judge."""
        ids = np.array([label.id for label in self.labels])
        num_true = np.diag(self.confusion)[ids]
        num_found = self.confusion[np.ix_(_COUNTED, ids)].sum(axis=0)
        num_there = self.confusion[ids].sum(axis=1)
        scores = _score_classes(num_true, num_found, num_there)
        scores["iiou"] = self._score_instances(ids, num_found - num_true)
        metrics = {"miou": _mean(scores["iou"]), "iiou": _mean(scores["iiou"]), **self._score_categories()}
        metrics["accuracy"] = self._score_accuracy(ids)
        for name in SHARES:
            metrics[f"{name}_macro"] = _mean(scores[name])
            metrics[f"{name}_weighted"] = _mean(scores[name], num_there)
        for name, values in scores.items():
            metrics |= {f"{name}/class/{x.name}": float(v) for x, v in zip(self.labels, values, strict=True)}
        return {name: metrics[name.removeprefix(f"{self.prefix}/")] for name in metric_names(self.labels, self.prefix)}

    def _add_instances(self, labels: NDArray[np.int64], table: NDArray[np.int64]) -> None:
        """Add instances, given their label ids `(N,)` and pixels per predicted id `(N, L)`."""
        sizes = table.sum(axis=1)
        right = table[np.arange(len(labels)), labels]
        right_category = np.where(_CATEGORY[labels][:, None] == _CATEGORY, table, 0).sum(axis=1)
        pixels = np.stack((right, sizes - right, right_category, sizes - right_category))
        for sums, weighted in zip(self._weighted, pixels * (_SIZES_PX[labels] / sizes), strict=True):
            np.add.at(sums, labels, weighted)

    def _score_instances(self, ids: NDArray[np.int64], false: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return iIoU per class, NaN for classes without instances."""
        true, missed = self._weighted[:2, ids]
        return np.where(_SIZES_PX[ids] > 0, _divide(true, true + false + missed), math.nan)

    def _score_categories(self) -> dict[str, float]:
        """Return the scores of categories and their means."""
        metrics = {}
        for category in _list_categories(self.labels):
            own = np.flatnonzero(CATEGORIES.index(category) == _CATEGORY)
            counted, others = np.intersect1d(_COUNTED, own), np.setdiff1d(_COUNTED, own)
            true = self.confusion[np.ix_(counted, counted)].sum()
            union = self.confusion[counted].sum() + self.confusion[np.ix_(others, counted)].sum()
            metrics[f"category_iou/category/{category}"] = float(_divide(true, union))
            true, missed = self._weighted[2:, own].sum(axis=1)
            # The official script counts a caravan found outside vehicles as false here, and only here.
            union = true + missed + self.confusion[np.ix_(others, own)].sum()
            metrics[f"category_iiou/category/{category}"] = float(_divide(true, union))
        for name in ("category_iou", "category_iiou"):
            shown = _list_categories(self.labels, only_instances=name == "category_iiou")
            metrics[name] = _mean(np.array([metrics[f"{name}/category/{category}"] for category in shown]))
        return metrics

    def _score_accuracy(self, ids: NDArray[np.int64]) -> float:
        """Return the share of counted pixels that are right, all other classes taken as one."""
        rows = np.setdiff1d(_COUNTED, ids)
        columns = np.setdiff1d(np.arange(NUM_IDS), ids)
        right = np.diag(self.confusion)[ids].sum() + self.confusion[np.ix_(rows, columns)].sum()
        return float(_divide(right, self.confusion[_COUNTED].sum()))


def metric_names(labels: Sequence[Label] = EVALUATED_LABELS, prefix: str = PREFIX) -> list[str]:
    """Return the names of all metrics, in the order of `SemanticEvaluator.summarize`."""
    things = [label for label in labels if label.name in AVERAGE_SIZES_PX]
    means = ["miou", "iiou", "category_iou", "category_iiou", "accuracy"]
    means += [f"{name}_{kind}" for name in SHARES for kind in ("macro", "weighted")]
    per_class = [f"{name}/class/{label.name}" for name in ("iou", *SHARES) for label in labels]
    per_class += [f"iiou/class/{label.name}" for label in things]
    per_category = [f"category_iou/category/{name}" for name in _list_categories(labels)]
    per_category += [f"category_iiou/category/{name}" for name in _list_categories(labels, only_instances=True)]
    return [f"{prefix}/{name}" for name in means + per_class + per_category]


def paint_prediction(prediction: "Prediction", *, score: float = 0.5) -> NDArray[np.uint8]:
    """Return the raw label ids `(H, W)` of the detections of at least `score`, 0 (unlabeled) elsewhere.

    Where masks overlap the best score is seen, the earlier one of equals.
    """
    from hotcoco import mask as rle_mask

    painted = np.zeros(prediction.size, dtype=np.uint8)
    order = np.argsort(-prediction.scores, kind="stable")
    for index in order[prediction.scores[order] >= score][::-1].tolist():
        code = dict(prediction.masks[index])
        left, top, width, height = (int(edge) for edge in rle_mask.to_bbox(code))
        window = np.s_[top : top + height, left : left + width]
        label = THING_LABELS[int(prediction.classes[index]) - 1]
        painted[window][rle_mask.decode(code)[window] > 0] = label.id
    return painted


def _list_categories(labels: Sequence[Label], *, only_instances: bool = False) -> list[str]:
    """Return the categories whose evaluated classes are all in `labels`, in official order."""
    missing = {label.category for label in EVALUATED_LABELS if label not in labels} | {"void"}
    kept = _INSTANCE_CATEGORIES if only_instances else CATEGORIES
    return [category for category in kept if category not in missing]


def _score_classes(
    num_true: NDArray[np.int64], num_found: NDArray[np.int64], num_there: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Return scores per class from pixels that are right, predicted and in the ground truth, each `(classes,)`."""
    iou = _divide(num_true, num_found + num_there - num_true)
    absent = np.isnan(iou)
    precision = np.where(absent, math.nan, _divide(num_true, num_found, empty=0))
    recall = np.where(absent, math.nan, _divide(num_true, num_there, empty=0))
    f1 = _divide(2 * num_true, num_found + num_there)
    return {"iou": iou, "precision": precision, "recall": recall, "f1": f1, "dice": f1}


def _divide(numerator: Any, denominator: Any, *, empty: float = math.nan) -> NDArray[np.float64]:
    """Return the quotients, `empty` where the denominator is 0."""
    quotient: NDArray[np.float64] = np.full(np.shape(denominator), empty, dtype=np.float64)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


def _mean(values: NDArray[np.float64], weights: NDArray[np.int64] | None = None) -> float:
    """Return the mean of what is defined, NaN if nothing is or nothing weighs."""
    defined = ~np.isnan(values)
    shares = defined.astype(np.float64) if weights is None else np.where(defined, weights, 0)
    return float(_divide((shares * np.where(defined, values, 0)).sum(), shares.sum()))
