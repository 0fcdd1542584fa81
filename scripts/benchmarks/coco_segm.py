"""Benchmark: COCO's mask AP of 500 images with 100 detections each at 1024 x 512, beside pycocotools.

`coco-segm` is the evaluation itself: both sides get the same annotations and results in memory, and must give the
same precision array. Ours is the engine of `CocoEvaluator`, fed image by image as it feeds it. `coco-evaluator` is
all of `CocoEvaluator`: from instanceIds rasters to the scores of masks and boxes. Its peer is pycocotools on masks
and boxes, from annotations made beforehand, so that it has less to do.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from hotcoco import StreamingEval
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.measuring import Bound, Row, alternate
from cityopt.evaluation.coco_ap import KINDS, CocoEvaluator, describe_results
from cityopt.labels import THING_LABELS, THING_NAMES
from cityopt.models.masks import Prediction, encode_crop

SIZE = (512, 1024)
NUM_SCENES = 20
"""Different scenes; an image is one of them, so that 500 fit into memory."""
NUM_DETECTIONS, NUM_OBJECTS = 100, 30

Scene = tuple[NDArray[np.uint16], Prediction]
Annotations = list[dict[str, Any]]
CATEGORIES = [{"id": index, "name": name} for index, name in enumerate(THING_NAMES, start=1)]


def bench_coco_segm(*, quick: bool) -> list[Row]:
    """Measure the engine and the evaluator on the same random scenes."""
    num_images, rounds = (20, 1) if quick else (500, 3)
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng) for _ in range(min(NUM_SCENES, num_images))]
    images = [scenes[number % len(scenes)] for number in range(num_images)]
    annotations = annotate([raster for raster, _ in images])
    unit = f"images/s, {num_images} images x {NUM_DETECTIONS} detections at 1024 x 512, 1 thread; peer: pycocotools"
    engine = _compare_engines(images, annotations, rounds)
    whole = alternate(
        {
            "ours": lambda: run_evaluator(images),
            "peer": lambda: [run_pycocotools(images, annotations, kind) for kind in KINDS],
        },
        rounds=min(rounds, 2),
    )
    return [
        _count("coco-segm", engine, num_images, unit, Bound("ratio", ">=", 5)),
        _count("coco-evaluator", whole, num_images, f"{unit}, masks and boxes; ours from rasters", None),
    ]


def _count(name: str, seconds: dict[str, float], num_images: int, unit: str, bound: Bound | None) -> Row:
    return Row(name, num_images / seconds["ours"], num_images / seconds["peer"], unit, bound)


def _compare_engines(images: list[Scene], annotations: list[Annotations], rounds: int) -> dict[str, float]:
    kept: dict[str, NDArray[np.float64]] = {}

    def keep(name: str, run: Callable[..., NDArray[np.float64]]) -> Callable[[], None]:
        return lambda: kept.update({name: run(images, annotations, "segm")})

    sides = {"ours": keep("ours", run_engine), "peer": keep("peer", run_pycocotools)}
    seconds = alternate(sides, rounds=rounds)
    assert np.abs(kept["ours"] - kept["peer"]).max() < 1e-9, "pycocotools found other precisions"
    return seconds


def run_engine(images: list[Scene], annotations: list[Annotations], kind: str) -> NDArray[np.float64]:
    """Return the precision array of our engine."""
    stream = StreamingEval(CATEGORIES, kind)
    for number, (_, prediction) in enumerate(images, start=1):
        stream.update([describe_image(number)], annotations[number - 1], describe_results(prediction, number, kind))
    evaluation = stream.finalize()
    evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"])


def run_pycocotools(images: list[Scene], annotations: list[Annotations], kind: str) -> NDArray[np.float64]:
    """Return the precision array of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [describe_image(number) for number in range(1, len(images) + 1)],
            "annotations": [annotation for some in annotations for annotation in some],
            "categories": CATEGORIES,
        }
        truth.createIndex()
        found = truth.loadRes(
            [
                result
                for number, (_, prediction) in enumerate(images, start=1)
                for result in describe_results(prediction, number, kind)
            ]
        )
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"]
    return precision


def run_evaluator(images: list[Scene]) -> dict[str, float]:
    """Return the scores of our evaluator."""
    evaluator = CocoEvaluator()
    for number, (raster, prediction) in enumerate(images):
        evaluator.add(str(number), raster, prediction)
    return evaluator.summarize()


def describe_image(number: int) -> dict[str, int]:
    """Return COCO's record of an image."""
    return {"id": number, "height": SIZE[0], "width": SIZE[1]}


def annotate(rasters: list[NDArray[np.uint16]]) -> list[Annotations]:
    """Return COCO's annotations of each image."""
    evaluator = CocoEvaluator()
    return [list(evaluator.annotate(raster, number)) for number, raster in enumerate(rasters, start=1)]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Return ellipses of street sizes as a raster, and detections that hit them, more or less, or nothing."""
    raster = np.full(SIZE, 7, dtype=np.uint16)
    shapes = [draw_shape(rng) for _ in range(NUM_OBJECTS)]
    for number, (class_index, ellipse) in enumerate(shapes):
        top, left, mask = fill_ellipse(*ellipse)
        label = THING_LABELS[class_index - 1].id
        window = raster[top : top + mask.shape[0], left : left + mask.shape[1]]
        window[mask] = label if rng.random() < 0.1 else label * 1000 + number
    found = [
        shapes[rng.integers(NUM_OBJECTS)] if rng.random() < 0.7 else draw_shape(rng) for _ in range(NUM_DETECTIONS)
    ]
    parts = [fill_ellipse(*(ellipse * rng.normal(1, (0.005, 0.005, 0.1, 0.1)))) for _, ellipse in found]
    boxes = [[left, top, left + mask.shape[1], top + mask.shape[0]] for top, left, mask in parts]
    return raster, Prediction(
        boxes_xyxy=np.array(boxes, dtype=np.float32),
        scores=np.sort(rng.random(NUM_DETECTIONS).astype(np.float32))[::-1],
        classes=np.array([class_index for class_index, _ in found]),
        masks=[encode_crop(mask, top, left, SIZE) for top, left, mask in parts],
        size=SIZE,
    )


def draw_shape(rng: np.random.Generator) -> tuple[int, NDArray[np.float64]]:
    """Return a class 1 … 8 and an ellipse: centre and radii in px, vertical first."""
    center = rng.uniform((40, 40), (SIZE[0] - 40, SIZE[1] - 40))
    return int(rng.integers(1, 9)), np.concatenate((center, np.exp(rng.uniform(np.log(4), np.log(80), 2))))


def fill_ellipse(cy: float, cx: float, ry: float, rx: float) -> tuple[int, int, NDArray[np.bool_]]:
    """Return top, left and mask of an ellipse within the image."""
    top, left = int(np.clip(cy - ry, 0, SIZE[0] - 2)), int(np.clip(cx - rx, 0, SIZE[1] - 2))
    y, x = np.ogrid[top : int(min(cy + ry, SIZE[0])) + 1, left : int(min(cx + rx, SIZE[1])) + 1]
    mask = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
    return top, left, mask[: SIZE[0] - top, : SIZE[1] - left]
