"""A model's score of any choice of images, cheap enough to be asked for a thousand times: what paired tests stand on.

Each image is judged once. What is kept of it, matches of detections or pixels by class, adds up to the score of any
images, some of them several times: exactly what the protocol's own evaluator would say of them.

Shapes: N images, D detections of a class, T IoU thresholds, L label ids.

Source: COCO's accumulation as in coco_ap.py; the semantic protocol as in semantic.py.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.evaluation import semantic
from cityopt.evaluation.coco_ap import KINDS, SUMMARIES, CocoEvaluator, describe_results, metric_names
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.labels import THING_NAMES

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

Rows = NDArray[np.int64]
_Place = tuple[int, tuple[float, ...], int]
"""Class from 1, area, image from 1."""
Score = Callable[[Rows], tuple[float, ...]]
"""Takes indices of images, some of them several times, and returns their scores; NaN where nothing is to find."""
AREAS_PX = ((0.0, 1e10), (0.0, 1024.0), (1024.0, 9216.0), (9216.0, 1e10))
"""COCO's areas: all, small, medium, large."""
_RECALLS = np.linspace(0.0, 1.0, 101)


class ImageScores(ABC):
    """What is kept of each image that a model was judged on."""

    def __init__(self) -> None:
        self.names: list[str] = []
        """Of the images, in the order in which they were added."""

    @abstractmethod
    def prepare(self, metrics: Sequence[str]) -> Score:
        """Return what scores choices of images by metrics, given without their split: `coco/segm/ap`.

        Raises KeyError: images are not judged by one of them.
        """


class InstanceScores(ImageScores):
    """Images with detections, scored as `CocoEvaluator` does."""

    def __init__(self, class_names: Sequence[str] = THING_NAMES) -> None:
        """Begin without images; `class_names` are the names of classes 1, 2, …"""
        super().__init__()
        self.class_names = tuple(class_names)
        self._annotator = CocoEvaluator(class_names)
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        self._matches: dict[str, dict[_Place, dict[str, Any]]] = {}

    def add(self, name: str, raster: NDArray[Any], prediction: "Prediction") -> None:
        """Add an image: its raw instanceIds `(H, W)` and what the model found."""
        number = len(self.names) + 1
        self.names.append(name)
        self._images.append({"id": number, "height": raster.shape[0], "width": raster.shape[1]})
        self._annotations += self._annotator.annotate(raster, number)
        for kind, results in self._results.items():
            results += describe_results(prediction, number, kind)
        self._matches = {}

    def prepare(self, metrics: Sequence[str]) -> Score:
        """Return what scores choices of images. Raises KeyError: one is no metric of `coco_ap.metric_names`."""
        if unknown := set(metrics) - set(metric_names(self.class_names)):
            raise KeyError(min(unknown))
        places = [self._place(metric) for metric in metrics]
        tables = {place: self._tabulate(*place) for place in dict.fromkeys(place for some in places for place in some)}

        def score(rows: Rows) -> tuple[float, ...]:
            counts = np.bincount(rows, minlength=len(self.names))
            found = {place: table.score(counts) for place, table in tables.items()}
            return tuple(_average([found[place] for place in some]) for some in places)

        return score

    def _place(self, metric: str) -> list[tuple[str, str, int]]:
        """Return the tables that a metric is the mean of: kind, summary and class from 1."""
        _, kind, summary, *rest = metric.split("/")
        labels = [rest[-1]] if rest else self.class_names
        return [(kind, summary, self.class_names.index(label) + 1) for label in labels]

    def _tabulate(self, kind: str, summary: str, class_index: int) -> "_Table":
        thresholds, area = SUMMARIES[summary]
        found = self._match(kind)
        images = range(1, len(self.names) + 1)
        table = _tabulate([found.get((class_index, AREAS_PX[area], image)) for image in images])
        return table.pick(np.atleast_1d(np.arange(10)[thresholds]))

    def _match(self, kind: str) -> dict[_Place, dict[str, Any]]:
        """Return hotcoco's matches by class, area and image."""
        if kind not in self._matches:
            from hotcoco import COCO, COCOeval

            categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names, start=1)]
            truth = COCO({"images": self._images, "annotations": self._annotations, "categories": categories})
            evaluation = COCOeval(truth, truth.load_res(self._results[kind]), kind)
            evaluation.evaluate()
            found = [image for image in evaluation.evalImgs if image is not None]
            self._matches[kind] = {(it["category_id"], tuple(it["aRng"]), it["image_id"]): it for it in found}
        return self._matches[kind]


class SemanticScores(ImageScores):
    """Images with maps of classes, scored as `SemanticEvaluator` does, and the losses of their logits."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        self._losses: list[Mapping[str, float]] = []

    def add(
        self, name: str, raster: NDArray[Any], label_ids: NDArray[Any], losses: Mapping[str, float] | None = None
    ) -> None:
        """Add an image: its raw instanceIds `(H, W)`, the predicted label ids `(H, W)`, and losses by name."""
        evaluator = SemanticEvaluator()
        evaluator.add(name, raster, label_ids)
        self.names.append(name)
        self._sums.append(evaluator.sums)
        self._losses.append(losses or {})

    def prepare(self, metrics: Sequence[str]) -> Score:
        """Return what scores choices of images. Raises KeyError: one is neither a semantic metric nor an added loss."""
        losses = {
            metric: np.array([found[metric.removeprefix("loss/")] for found in self._losses])
            for metric in metrics
            if metric.startswith("loss/")
        }
        others = [metric for metric in metrics if metric not in losses]
        if unknown := set(others) - set(semantic.metric_names()):
            raise KeyError(min(unknown))
        confusions, weighted = (np.stack(parts) for parts in zip(*self._sums, strict=True)) if others else (None, None)

        def score(rows: Rows) -> tuple[float, ...]:
            found = {metric: float(values[rows].mean()) for metric, values in losses.items()}
            if confusions is not None and weighted is not None:
                counts = np.bincount(rows, minlength=len(self.names))
                sums = np.tensordot(counts, confusions, 1), np.tensordot(counts, weighted, 1)
                found |= SemanticEvaluator.from_sums(*sums).summarize()
            return tuple(found[metric] for metric in metrics)

        return score


@dataclass(frozen=True)
class _Table:
    """Detections of one class over all images, the best-scored first."""

    images: Rows
    """`(D,)` index of each detection's image."""
    right: NDArray[np.bool_]
    """`(T, D)` matched, and counted."""
    wrong: NDArray[np.bool_]
    """`(T, D)` not matched, and counted."""
    objects: Rows
    """`(N,)` objects to find in each image."""

    def pick(self, thresholds: Rows) -> "_Table":
        return _Table(self.images, self.right[thresholds], self.wrong[thresholds], self.objects)

    def score(self, counts: Rows) -> float:
        """Return the AP of images that are there so many times `(N,)`; NaN where there is no object."""
        total = int(counts @ self.objects)
        if total == 0:
            return math.nan
        if not len(self.images):
            return 0.0
        times = counts[self.images]
        right, wrong = np.cumsum(self.right * times, axis=1), np.cumsum(self.wrong * times, axis=1)
        recall, precision = right / total, right / (right + wrong + np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.concatenate((envelope, np.zeros((len(envelope), 1))), axis=1)
        places = [np.searchsorted(row, _RECALLS, side="left") for row in recall]
        return float(np.mean([row[place] for row, place in zip(padded, places, strict=True)]))


def _tabulate(found: Sequence[Mapping[str, Any] | None]) -> _Table:
    """Put a class' matches of all images (None: neither objects nor detections) into one table."""
    scores, images, matched, ignored = list[float](), list[int](), [], []
    objects = np.zeros(len(found), np.int64)
    for index, image in enumerate(found):
        if image is None:
            continue
        objects[index] = sum(not is_ignored for is_ignored in image["gtIgnore"])
        scores += image["dtScores"]
        images += [index] * len(image["dtScores"])
        matched.append(np.array(image["dtMatched"], bool).reshape(10, -1))
        ignored.append(np.array(image["dtIgnore"], bool).reshape(10, -1))
    order = np.argsort(-np.array(scores), kind="stable")
    is_matched, is_ignored = (
        (np.concatenate(parts, axis=1) if parts else np.zeros((10, 0), bool))[:, order] for parts in (matched, ignored)
    )
    rows = np.array(images, np.int64)[order]
    return _Table(rows, is_matched & ~is_ignored, ~is_matched & ~is_ignored, objects)


def _average(values: Sequence[float]) -> float:
    """Return the mean of what is known; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
