"""Benchmark: Cityscapes' instance AP at 2048 x 1024, beside the official script, and its growth with images.

`cityscapes-ap` scores the same invented scenes on both sides, to the same numbers. Ours gets what evaluation has in
memory: rasters, and masks as run-length codes. The official script reads its PNGs; writing them is not counted.
`cityscapes-ap-growth` is the time per prediction in a large set beside that in a small one, 1 if growth is linear.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.cityscapes_peer import score_officially, write_scenes
from benchmarks.measuring import Bound, Row, alternate
from cityopt.evaluation.cityscapes_ap import CityscapesEvaluator
from cityopt.labels import CLASS_OF_ID
from cityopt.models.masks import Prediction, Rle, encode_crop

Scene = tuple[NDArray[np.uint16], Prediction]
STUFF = (0, 1, 3, 4, 7, 8, 11, 17, 20, 21, 23)
NUM_OBJECTS, NUM_STUFF = 20, 40
SLACK = 1.2
"""How far from linear growth may seem on a machine that is not idle."""


def bench_cityscapes_ap(*, quick: bool) -> list[Row]:
    """Measure 40 images with 40 predictions each, and growth to 500 images with 100; quick: a few small ones."""
    num_images, num_predictions, size, rounds = (3, 8, (256, 512), 1) if quick else (40, 40, (1024, 2048), 3)
    rng = np.random.default_rng(0)
    scenes = [invent_scene(rng, size, num_predictions) for _ in range(num_images)]
    rows = [_compare(scenes, rounds)]
    crowded = [invent_scene(rng, size, 5 * num_predictions // 2) for _ in range(min(num_images, 10))]
    return [*rows, _measure_growth(crowded, *((2, 6) if quick else (50, 500)), rounds)]


def _compare(scenes: Sequence[Scene], rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), scenes)
        difference = np.abs(score(scenes, len(scenes)) - score_officially(Path(folder)))
        if np.nanmax(difference) > 1e-12:
            raise SystemExit(f"both sides must give the same AP, but they differ by {np.nanmax(difference)}")
        sides = {"ours": lambda: score(scenes, len(scenes)), "peer": lambda: score_officially(Path(folder))}
        seconds = alternate(sides, rounds=rounds)
    height, width = scenes[0][0].shape
    num_predictions = len(scenes) * len(scenes[0][1].masks)
    unit = (
        f"predictions/s, {len(scenes)} images of {width} x {height}, {len(scenes[0][1].masks)} predictions each, "
        "1 process, 1 thread; peer: official script, its PNGs already written"
    )
    ours, peer = (num_predictions / seconds[side] for side in ("ours", "peer"))
    return Row("cityscapes-ap", ours, peer, unit, Bound("ratio", ">=", 30))


def _measure_growth(scenes: Sequence[Scene], few: int, many: int, rounds: int) -> Row:
    sides = {"few": lambda: score(scenes, few), "many": lambda: score(scenes, many)}
    seconds = alternate(sides, rounds=rounds)
    per_image = len(scenes[0][1].masks)
    unit = f"ms per prediction, {many} images with {per_image} predictions each; peer: ours with {few} images"
    ours, peer = (1000 * seconds[side] / (number * per_image) for side, number in (("many", many), ("few", few)))
    return Row("cityscapes-ap-growth", ours, peer, unit, Bound("ratio", "<=", SLACK))


def score(scenes: Sequence[Scene], num_images: int) -> NDArray[np.float64]:
    """Return our AP per class and threshold of `num_images` images, taking the scenes in turn."""
    evaluator = CityscapesEvaluator()
    for number in range(num_images):
        evaluator.add(str(number), *scenes[number % len(scenes)])
    return evaluator.compute_matrix()


def invent_scene(rng: np.random.Generator, size: tuple[int, int], num_predictions: int) -> Scene:
    """Return a raster of ragged blobs, things upon stuff, and predictions near its objects or anywhere."""
    raster = np.full(size, 7, dtype=np.uint16)
    for _ in range(NUM_STUFF):
        _paint(
            raster, *_draw_blob(rng, rng.uniform(0, size), size[0] * rng.uniform(0.05, 0.2), size), rng.choice(STUFF)
        )
    ids, objects = list(CLASS_OF_ID), []
    for number in range(NUM_OBJECTS):
        label_id, center = int(rng.choice(ids)), rng.uniform(0, size)
        radius = size[0] * np.exp(rng.uniform(np.log(0.006), np.log(0.15)))
        value = label_id if rng.random() < 0.1 else label_id * 1000 + number
        _paint(raster, *_draw_blob(rng, center, radius, size), value)
        objects.append((label_id, center, radius))
    masks: list[Rle] = []
    classes = []
    for _ in range(num_predictions):
        label_id, center, radius = objects[rng.integers(NUM_OBJECTS)]
        if rng.random() < 0.3:
            center = rng.uniform(0, size)
        crop, top, left = _draw_blob(rng, center + 0.1 * radius * rng.normal(size=2), radius, size)
        masks.append(encode_crop(crop, top, left, size))
        classes.append(CLASS_OF_ID[label_id])
    scores = np.sort(rng.random(num_predictions).astype(np.float32))[::-1]
    boxes = np.zeros((num_predictions, 4), dtype=np.float32)  # this protocol does not read them
    return raster, Prediction(boxes, scores, np.array(classes, dtype=np.int64), masks, size)


def _paint(raster: NDArray[np.uint16], crop: NDArray[np.bool_], top: int, left: int, value: int) -> None:
    raster[top : top + crop.shape[0], left : left + crop.shape[1]][crop] = value


def _draw_blob(
    rng: np.random.Generator, center: NDArray[np.float64], radius: float, size: tuple[int, int]
) -> tuple[NDArray[np.bool_], int, int]:
    """Return a crop `(h, w)` with a circle of wavy outline, and its top and left in the image."""
    low = np.clip(center - 1.5 * radius, 0, np.array(size) - 1).astype(int)
    high = np.clip(center + 1.5 * radius, low + 1, size).astype(int)
    y, x = np.ogrid[low[0] : high[0], low[1] : high[1]]
    angle = np.arctan2(y - center[0], x - center[1])
    outline = 1 + sum(0.4 / k * rng.normal() * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5, 9))
    return np.hypot(y - center[0], x - center[1]) < radius * outline, int(low[0]), int(low[1])
