"""Benchmark: how far `evaluate` raises memory, 500 images of 2048 x 1024 with 100 detections each, all protocols.

Ours is the very stream of `cityopt evaluate`: PNGs are decoded ahead, masks are drawn at full size and go to all three
protocols. The network alone is left out, since a CPU would take hours: grids and boxes are drawn at random for every
image in its place (`validation-memory` measures the network). The peer is pycocotools' mask AP alone, on the same
predictions and from the same rasters, as run-length codes in memory. Each side runs in a process of its own, which
notes its resident memory before and its high-water mark after.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.coco_segm import annotate, run_pycocotools
from benchmarks.measuring import Bound, Row, run_alone
from cityopt.data.cityscapes import Frame, read_instance_ids
from cityopt.evaluation.full_resolution import judge_frames
from cityopt.evaluation.protocols import PROTOCOLS, open_judges
from cityopt.labels import THING_LABELS
from cityopt.models.masks import Prediction, encode_masks
from cityopt.models.segmentation_model import SegmentationModel, Target
from cityopt.runtime import GIB, measure_memory_gib

DETECTIONS, OBJECTS, GRID = 100, 30, 28
TINY = (64, 128)
NUM_FILES = 4
"""Different images; the rest are these again under other names, for disks are small."""


def bench_evaluate_memory(*, quick: bool) -> list[Row]:
    """Measure each side in a process of its own; quick: one process, 8 images of 512 x 256."""
    num_images, height = (8, 256) if quick else (500, 1024)
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder), (height, 2 * height))
        write_files(Path(folder) / "tiny", TINY)
        measure = measure_rise if quick else partial(run_alone, __name__)
        ours, peer = (measure(side, folder, num_images, height) for side in ("ours", "peer"))
    unit = (
        f"GB above the loaded libraries, {num_images} images of {2 * height} x {height}, {DETECTIONS} detections each, "
        "the network left out; ours: all protocols; peer: pycocotools' mask AP"
    )
    return [Row("evaluate-memory", ours, peer, unit, Bound("ours", "<=", 4))]


def measure_rise(side: str, folder: str, num_images: int, height: int) -> float:
    """Run one side in this process and return how far it raised its memory, in GB."""
    run = {"ours": run_ours, "peer": run_peer}[side]
    run(list_frames(Path(folder) / "tiny", 1), TINY)  # libraries load their code when it is first needed
    loaded = measure_memory_gib() * GIB / 1e9
    run(list_frames(Path(folder), num_images), (height, 2 * height))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return max(0.0, peak - loaded)


class Inventor(SegmentationModel):
    """Finds things at random places, other ones in each image."""

    task = "instance"

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Refuse: nothing is trained here."""
        raise NotImplementedError

    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        """Invent `DETECTIONS` objects per image."""
        return [self.invent(size) for size in sizes or [(image.shape[1], image.shape[2]) for image in images]]

    def invent(self, size: tuple[int, int]) -> Prediction:
        """Draw boxes, and in each a blob with a ragged edge."""
        boxes = draw_boxes(self.rng, size, DETECTIONS)
        y, x = (np.mgrid[:GRID, :GRID] + 0.5) / GRID * 2 - 1
        noise = self.rng.normal(0, 0.1, (DETECTIONS, GRID, GRID))
        grids = (1.2 - np.hypot(y, x) + noise).clip(0, 1).astype(np.float32)
        return Prediction(
            boxes_xyxy=boxes,
            scores=np.sort(self.rng.random(DETECTIONS).astype(np.float32))[::-1],
            classes=self.rng.integers(1, 9, DETECTIONS),
            masks=encode_masks(grids, boxes, size),
            size=size,
        )


def draw_boxes(rng: np.random.Generator, size: tuple[int, int], count: int) -> NDArray[np.float32]:
    """Draw boxes `(N, 4)` of street scenes' sizes: many small ones, a few large ones."""
    sides = np.exp(rng.uniform(np.log(0.02), np.log(0.4), (count, 2))) * size[0]
    corners = rng.random((count, 2)) * (np.array(size[::-1]) - sides)
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


def write_files(folder: Path, size: tuple[int, int]) -> None:
    """Write images of noise in blocks, and rasters with `OBJECTS` instances."""
    rng = np.random.default_rng(1)
    folder.mkdir(exist_ok=True)
    for number in range(NUM_FILES):
        blocks = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / f"image-{number}.png")
        raster = np.full(size, 7, dtype=np.uint16)
        for index, (x0, y0, x1, y1) in enumerate(draw_boxes(rng, size, OBJECTS).astype(int)):
            raster[y0:y1, x0:x1] = THING_LABELS[index % 8].id * 1000 + index
        Image.fromarray(raster).save(folder / f"raster-{number}.png")


def list_frames(folder: Path, count: int) -> list[Frame]:
    """Return as many frames as are wanted, with names of their own."""
    files = [(folder / f"image-{i % NUM_FILES}.png", folder / f"raster-{i % NUM_FILES}.png") for i in range(count)]
    return [Frame(f"image-{i}", "val", "city", image, raster, None, None) for i, (image, raster) in enumerate(files)]


def run_ours(frames: list[Frame], size: tuple[int, int]) -> None:
    """Evaluate as the command does."""
    judges = open_judges(list(PROTOCOLS))
    judge_frames(Inventor(), frames, judges, size=size, device=torch.device("cpu"))
    scores = [judge.summarize() for judge in judges]
    if len(scores) != len(PROTOCOLS):
        raise SystemExit("every protocol must have scores")


def run_peer(frames: list[Frame], size: tuple[int, int]) -> None:
    """Collect the same predictions, and score their masks by pycocotools."""
    model = Inventor()
    rasters = [read_instance_ids(frame.instance_ids) for frame in frames[:NUM_FILES] if frame.instance_ids]
    images = [(rasters[number % len(rasters)], model.invent(size)) for number in range(len(frames))]
    run_pycocotools(images, annotate([raster for raster, _ in images]), "segm")


if __name__ == "__main__":
    print(json.dumps(measure_rise(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
