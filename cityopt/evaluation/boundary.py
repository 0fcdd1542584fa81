"""Boundary AP: COCO's average precision of masks, for which a mask's edge must be right too.

Stands beside the COCO protocol and differs from it in one thing: two masks overlap as much as they do by IoU or by
boundary IoU, whichever is less. A mask's boundary is what an erosion by d pixels takes from it, at the image's edge
too; d is a share of the image's diagonal: .02 for COCO, .005 for Cityscapes, whose masks are finer. A crowd keeps the
mask's own measure. The matching is pycocotools', image by image, so that only its outcome is kept.

Names: `boundary/segm/<ap|ap50|ap75|ap_small|ap_medium|ap_large>` and `boundary/segm/<ap|ap50>/class/<name>`.
Shapes: N detections, G objects, (H, W) the image, (h, w) a crop.

Source: Cheng et al., Boundary IoU (2103.16562), section 4; the ratios are those of its `boundary-iou-api`.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import minimum_filter1d

from cityopt.errors import EvaluationError
from cityopt.evaluation.admission import check_found, check_raster
from cityopt.evaluation.coco_ap import Annotation, annotate_raster, summarize_precision
from cityopt.evaluation.run_lengths import decode_runs
from cityopt.labels import THING_NAMES
from cityopt.models.masks import Rle, encode_crop

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

COCO_RATIO, CITYSCAPES_RATIO = 0.02, 0.005
PREFIX = "boundary/segm"

Floats = NDArray[np.float64]


class BoundaryEvaluator:
    """Collects images with their predictions, and then gives the scores of all of them."""

    def __init__(self, class_names: Sequence[str] = THING_NAMES, *, ratio: float = CITYSCAPES_RATIO) -> None:
        """Begin without images; `class_names` are the names of classes 1, 2, …, `ratio` is d over the diagonal."""
        self.class_names, self.ratio = tuple(class_names), ratio
        self._evaluation = COCOeval(iouType="segm")
        self._evaluation.params.catIds = list(range(1, len(self.class_names) + 1))
        self._outcomes: list[dict[tuple[int, int], dict[str, Any]]] = []
        self._image_ids: set[str] = set()

    def add(self, image_id: str, raster: NDArray[Any], prediction: "Prediction") -> None:
        """Add one image: its raw instanceIds `(H, W)` and what a model found in it; see `CocoEvaluator.add`."""
        check_raster(image_id, raster)
        self.add_annotated(image_id, raster.shape, list(annotate_raster(raster)), prediction)

    def add_annotated(
        self, image_id: str, size: tuple[int, ...], annotations: Sequence[Annotation], prediction: "Prediction"
    ) -> None:
        """Add one image of `size` (height, width) by COCO's annotations, whose masks are compressed codes.

        Raises EvaluationError: an image added twice, or a prediction that `check_found` refuses.
        """
        if image_id in self._image_ids:
            raise EvaluationError(f"every image must be added once, but {image_id!r} came again.")
        check_found(image_id, size, prediction, num_classes=len(self.class_names))
        self._image_ids.add(image_id)
        borders = find_borders(prediction.masks, measure_width(size, self.ratio))
        own = find_borders([x["segmentation"] for x in annotations], measure_width(size, self.ratio))
        outcomes: dict[tuple[int, int], dict[str, Any]] = {}
        for class_index in self._evaluation.params.catIds:
            rows = rank_class(prediction, class_index)[: self._evaluation.params.maxDets[-1]]
            columns = [index for index, x in enumerate(annotations) if x["category_id"] == class_index]
            if len(rows) or columns:
                objects = [annotations[column] for column in columns]
                overlaps = measure_overlaps(
                    [prediction.masks[row] for row in rows],
                    [x["segmentation"] for x in objects],
                    [borders[row] for row in rows],
                    [own[column] for column in columns],
                    [x["iscrowd"] for x in objects],
                )
                outcomes |= self._match(class_index, prediction, rows, objects, overlaps)
        self._outcomes.append(outcomes)

    def summarize(self) -> dict[str, float]:
        """Return every metric in [0, 1]; NaN where there is no ground truth to find. Can be called again."""
        evaluation, areas = self._evaluation, self._evaluation.params.areaRng
        numbers = list(range(len(self._outcomes)))
        evaluation.params.imgIds = numbers
        evaluation.evalImgs = [
            self._outcomes[number].get((class_index, area))
            for class_index in evaluation.params.catIds
            for area in range(len(areas))
            for number in numbers
        ]
        evaluation._paramsEval = evaluation.params
        if not numbers:
            return summarize_precision(PREFIX, np.full((10, 101, len(self.class_names), 4, 3), -1.0), self.class_names)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        return summarize_precision(PREFIX, evaluation.eval["precision"], self.class_names)

    def _match(
        self,
        class_index: int,
        prediction: "Prediction",
        rows: NDArray[np.intp],
        objects: Sequence[Annotation],
        overlaps: Floats,
    ) -> dict[tuple[int, int], dict[str, Any]]:
        """Let pycocotools match the detections of a class with its objects, once for every range of areas."""
        evaluation, key = self._evaluation, (0, class_index)
        areas = coco_mask.area([prediction.masks[row] for row in rows]) if len(rows) else []
        evaluation._gts = {key: [{**x, "ignore": x["iscrowd"], "id": n} for n, x in enumerate(objects, start=1)]}
        evaluation._dts = {
            key: [
                {"id": number, "score": float(prediction.scores[row]), "area": float(area)}
                for number, (row, area) in enumerate(zip(rows, areas, strict=True), start=1)
            ]
        }
        evaluation.ious = {key: overlaps}
        ranges, limit = evaluation.params.areaRng, evaluation.params.maxDets[-1]
        found = {
            (class_index, place): evaluation.evaluateImg(0, class_index, limits, limit)
            for place, limits in enumerate(ranges)
        }
        return {place: _slim(outcome) for place, outcome in found.items()}


def rank_class(prediction: "Prediction", class_index: int) -> NDArray[np.intp]:
    """Return the detections of a class, best score first; equal scores stay in their order."""
    rows = np.flatnonzero(prediction.classes == class_index)
    return rows[np.argsort(-prediction.scores[rows], kind="stable")]


def measure_width(size: tuple[int, ...], ratio: float) -> int:
    """Return the width of a boundary in an image of (height, width): at least 1 px."""
    return max(1, round(ratio * math.hypot(*size)))


def find_border(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels of a mask `(h, w)` at most `width` px (along rows, columns or both) from what is outside.

    Beyond the array all is outside. This is what `width` erosions by 3 x 3 take away.
    """
    inner = mask.astype(np.uint8)
    for axis in (0, 1):
        inner = minimum_filter1d(inner, 2 * width + 1, axis=axis, mode="constant", cval=0)
    border: NDArray[np.bool_] = mask & (inner == 0)
    return border


def find_borders(codes: Sequence[Rle], width: int) -> list[Rle]:
    """Return the boundaries of run-length coded masks; nothing of the image's size is made."""
    borders = []
    for code in codes:
        crop, top, left = cut_mask(code)
        height, image_width = code["size"]
        borders.append(encode_crop(find_border(crop, width), top, left, (height, image_width)))
    return borders


def cut_mask(code: Rle) -> tuple[NDArray[np.bool_], int, int]:
    """Return the smallest crop `(h, w)` that holds a mask, and the crop's top and left; `(0, 0)` of an empty one."""
    runs, height = decode_runs([code]), code["size"][0]
    if not len(runs.starts):
        return np.zeros((0, 0), dtype=bool), 0, 0
    left, last = runs.starts[0] // height, (runs.ends[-1] - 1) // height
    steps = np.zeros((last + 1 - left) * height + 1, dtype=np.int8)
    steps[runs.starts - left * height] += 1
    steps[runs.ends - left * height] -= 1
    columns = np.cumsum(steps[:-1], dtype=np.int8).reshape(-1, height).view(bool)
    rows = np.flatnonzero(columns.any(axis=0))
    return columns[:, rows[0] : rows[-1] + 1].T, int(rows[0]), int(left)


def measure_overlaps(
    found: Sequence[Rle],
    objects: Sequence[Rle],
    found_borders: Sequence[Rle],
    object_borders: Sequence[Rle],
    is_crowd: Sequence[int],
) -> Floats:
    """Return `(N, G)` the lesser of mask IoU and boundary IoU; with a crowd, the share of the detection inside it."""
    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    overlaps: Floats = np.asarray(coco_mask.iou(list(found), list(objects), list(is_crowd)))
    borders = np.asarray(coco_mask.iou(list(found_borders), list(object_borders), [0] * len(objects)))
    return np.where(np.asarray(is_crowd, dtype=bool), overlaps, np.minimum(overlaps, borders))


def _slim(outcome: dict[str, Any]) -> dict[str, Any]:
    """Keep what `accumulate` reads, in small types: it reads matches as yes and no."""
    return {
        "dtScores": outcome["dtScores"],
        "dtMatches": outcome["dtMatches"] > 0,
        "dtIgnore": outcome["dtIgnore"],
        "gtIgnore": outcome["gtIgnore"],
    }
