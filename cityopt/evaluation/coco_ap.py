"""COCO's average precision of masks and boxes, equal to pycocotools' numbers.

Stands between the models' predictions and everything that reads a score: each epoch's validation, promotion and
evaluation. Ground truth comes from the raw instanceIds raster, at whatever size it has: `id * 1000 + k` is one
instance, a thing class' plain `id` is a group, which COCO calls a crowd. What COCO does not know it does not excuse:
a prediction on void, on a caravan or on a trailer counts as false. The engine is hotcoco, which gives pycocotools'
precision arrays to the last bit in about a tenth of the time, and takes images one by one.

Names: `coco/<segm|bbox>/<ap|ap50|ap75|ap_small|ap_medium|ap_large>` and `coco/<segm|bbox>/<ap|ap50>/class/<name>`.

Source: Lin et al., "Microsoft COCO", 2014, and the definitions on cocodataset.org/#detection-eval.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import EvaluationError
from cityopt.evaluation.admission import check_found, check_raster
from cityopt.evaluation.run_lengths import find_raster_runs
from cityopt.labels import CLASS_OF_ID, THING_NAMES

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

Annotation = dict[str, Any]
"""COCO's: `category_id`, which is a class 1, 2, …, `iscrowd`, `area`, `bbox`, and `segmentation` as a code."""

KINDS = ("segm", "bbox")
# Indices into hotcoco's precision array (T, R, K, A, M): thresholds .5:.05:.95, recalls 0:.01:1, classes, areas
# (all, small, medium, large), detections per image (1, 10, 100).
SUMMARIES: dict[str, tuple[slice | int, int]] = {
    "ap": (slice(None), 0),
    "ap50": (0, 0),
    "ap75": (5, 0),
    "ap_small": (slice(None), 1),
    "ap_medium": (slice(None), 2),
    "ap_large": (slice(None), 3),
}
CLASS_SUMMARIES = ("ap", "ap50")


class CocoEvaluator:
    """Collects images with their predictions, and then gives the scores of all of them."""

    def __init__(self, class_names: Sequence[str] = THING_NAMES) -> None:
        """Begin without images; `class_names` are the names of classes 1, 2, …"""
        from hotcoco import StreamingEval

        self.class_names = tuple(class_names)
        categories = [{"id": index, "name": name} for index, name in enumerate(self.class_names, start=1)]
        self._streams = {kind: StreamingEval(categories, kind) for kind in KINDS}
        self._image_ids: set[str] = set()
        self._num_annotations = 0
        self._results: dict[str, float] | None = None

    def add(self, image_id: str, raster: NDArray[Any], prediction: "Prediction") -> None:
        """Add one image: its raw instanceIds `(H, W)` of any integer type, and what a model found in it.

        Images without instances, or without predictions, count too. As in COCO, the 100 best-scored
        predictions of an image and class enter, and equal scores rank in the order of adding.

        Raises:
            DataError: the raster is no map of integers.
            EvaluationError: an image added twice, or a prediction that `check_prediction` refuses.
            ValueError: a call after `summarize`.
        """
        check_raster(image_id, raster)
        self.add_annotated(image_id, raster.shape, annotate_raster(raster), prediction)

    def add_annotated(
        self, image_id: str, size: tuple[int, ...], annotations: Iterable[Annotation], prediction: "Prediction"
    ) -> None:
        """Add one image of `size` (height, width) by COCO's annotations; see `add`."""
        if self._results is not None:
            raise ValueError(f"`add` must come before `summarize`, but image {image_id!r} came after it.")
        if image_id in self._image_ids:
            raise EvaluationError(f"every image must be added once, but {image_id!r} came again.")
        check_found(image_id, size, prediction, num_classes=len(self.class_names))
        self._image_ids.add(image_id)
        number = len(self._image_ids)
        images = [{"id": number, "height": size[0], "width": size[1]}]
        numbered = [self._number(annotation, number) for annotation in annotations]
        for kind, stream in self._streams.items():
            stream.update(images, numbered, describe_results(prediction, number, kind))

    def summarize(self) -> dict[str, float]:
        """Return every metric of `metric_names` in [0, 1]; NaN where there is no ground truth to find.

        Classes without ground truth are left out of the means over classes. Can be called again.
        """
        if self._results is None:
            self._results = {}
            for kind, stream in self._streams.items():
                evaluation = stream.finalize()
                evaluation.accumulate()
                assert evaluation.eval is not None
                precision = np.asarray(evaluation.eval["precision"])
                self._results |= summarize_precision(f"coco/{kind}", precision, self.class_names)
        return dict(self._results)

    def annotate(self, raster: NDArray[Any], image_number: int) -> Iterator[dict[str, Any]]:
        """Yield COCO's annotations of a raw instanceIds raster `(H, W)`; ids count on over all images."""
        for annotation in annotate_raster(raster):
            yield self._number(annotation, image_number)

    def _number(self, annotation: Annotation, image_number: int) -> Annotation:
        # Counted from 1: pycocotools takes annotation 0 for "no match".
        self._num_annotations += 1
        return {**annotation, "id": self._num_annotations, "image_id": image_number}


def annotate_raster(raster: NDArray[Any]) -> Iterator[Annotation]:
    """Yield COCO's annotations of a raw instanceIds raster `(H, W)`, in order of its ids."""
    from hotcoco import mask

    for class_index, is_crowd, counts in find_runs(raster):
        rle = mask.frPyObjects({"size": list(raster.shape), "counts": counts}, *raster.shape)
        yield {
            "category_id": class_index,
            "iscrowd": int(is_crowd),
            "area": float(mask.area(rle)),
            "bbox": [float(value) for value in mask.to_bbox(rle)],
            "segmentation": rle,
        }


def metric_names(class_names: Sequence[str] = THING_NAMES) -> list[str]:
    """Return the names of all metrics, in the order of `CocoEvaluator.summarize`."""
    return [
        f"coco/{kind}/{name}"
        for kind in KINDS
        for name in (*SUMMARIES, *(f"{key}/class/{label}" for key in CLASS_SUMMARIES for label in class_names))
    ]


def find_runs(raster: NDArray[Any]) -> Iterator[tuple[int, bool, list[int]]]:
    """Yield class (1 … 8), is-crowd and uncompressed RLE counts of all things in a raster, in order of their ids.

    One pass over the raster `(H, W)` serves all instances, however many there are.
    """
    runs = find_raster_runs(np.asarray(raster))
    for value in np.unique(runs.values).tolist():
        class_index = CLASS_OF_ID.get(value if value < 1000 else value // 1000)
        if class_index is None:
            continue
        own = runs.values == value
        edges = np.column_stack((runs.starts[own], runs.ends[own])).ravel()
        yield class_index, value < 1000, np.diff(edges, prepend=0, append=raster.size).tolist()


def describe_results(prediction: "Prediction", image_number: int, kind: str) -> list[dict[str, Any]]:
    """Return COCO results with either masks or boxes: with both, the area of a mask would be taken from its box."""
    classes, scores = prediction.classes.tolist(), prediction.scores.tolist()
    results = [
        {"image_id": image_number, "category_id": class_index, "score": score}
        for class_index, score in zip(classes, scores, strict=True)
    ]
    if kind == "segm":
        return [result | {"segmentation": rle} for result, rle in zip(results, prediction.masks, strict=True)]
    corners = prediction.boxes_xyxy.astype(np.float64)
    boxes_xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
    return [result | {"bbox": box} for result, box in zip(results, boxes_xywh, strict=True)]


def summarize_precision(prefix: str, precision: NDArray[np.float64], class_names: Sequence[str]) -> dict[str, float]:
    """Return the means of a precision array `(T, R, K, A, M)` as metrics, NaN where there is nothing to find."""
    metrics = {}
    for name, (thresholds, area) in SUMMARIES.items():
        metrics[f"{prefix}/{name}"] = _mean(precision[thresholds, ..., area, -1])
    for name in CLASS_SUMMARIES:
        thresholds, area = SUMMARIES[name]
        for index, label in enumerate(class_names):
            metrics[f"{prefix}/{name}/class/{label}"] = _mean(precision[thresholds, ..., index, area, -1])
    return metrics


def _mean(precision: NDArray[np.float64]) -> float:
    """Return the mean over all that is defined; -1 marks classes without ground truth."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else math.nan
