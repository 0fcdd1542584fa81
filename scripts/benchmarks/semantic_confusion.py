"""Benchmark: the semantic protocol at 2048 x 1024, beside the official script's python path on the same pixels.

Both sides get decoded maps in memory and do the same work: confusion matrix and the sums over instances. The peer is
the official `evaluatePair`, given images instead of files; its matrices must be ours to the last pixel. The target
stands on predictions as models make them, the ground truth with shifted borders and wrong patches. For the worst
case, `semantic-confusion-noise` draws each pixel by itself, so that there are no runs to count.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cityscapes_peer import old_numpy
from benchmarks.measuring import Bound, Row, alternate
from cityopt.data.cityscapes import index_split
from cityopt.data.synthetic import write_synthetic
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.labels import EVALUATED_LABELS

FULL = (1024, 2048)
Scene = tuple[NDArray[np.uint16], NDArray[np.uint8]]
"""Raw instanceIds and predicted label ids, both (H, W)."""


def bench_semantic_confusion(*, quick: bool) -> list[Row]:
    """Measure both kinds of predictions on the same synthetic scenes."""
    num_images, rounds = (4, 1) if quick else (12, 7)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder), num_images=num_images, size=FULL, seed=0)
        rasters = [read_raster(frame.instance_ids) for frame in index_split(Path(folder), "train")]
    unit = "images/s at 2048 x 1024, 1 thread, decoded maps in memory; peer: the official python path"
    return [
        _compare(
            "semantic-confusion", [(r, predict_patches(r, rng)) for r in rasters], rounds, unit, Bound("ratio", ">=", 4)
        ),
        _compare(
            "semantic-confusion-noise",
            [(r, rng.integers(0, 34, r.shape, dtype=np.uint8)) for r in rasters[:3]],
            min(rounds, 3),
            f"{unit}; each predicted pixel drawn by itself",
            None,
        ),
    ]


def read_raster(path: Path | None) -> NDArray[np.uint16]:
    """Return a raw instanceIds raster."""
    assert path is not None
    with Image.open(path) as raster:
        return np.array(raster, dtype=np.uint16)


def predict_patches(raster: NDArray[np.uint16], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the raster's label ids with borders off by some pixels, wavily, and a hundred wrong patches."""
    height, width = raster.shape
    y, x = np.mgrid[:height, :width]
    waves = [
        3 * np.sin(rng.uniform(0.02, 0.1) * x + rng.uniform(0.02, 0.1) * y + phase) for phase in rng.uniform(0, 6, 2)
    ]
    moved = raster[(y + waves[0].astype(int)).clip(0, height - 1), (x + waves[1].astype(int)).clip(0, width - 1)]
    predicted = np.where(moved < 1000, moved, moved // 1000).astype(np.uint8)
    for _ in range(100):
        cy, cx, ry, rx = rng.integers((0, 0, 4, 4), (height, width, 40, 60))
        top, left = max(cy - ry, 0), max(cx - rx, 0)
        window = np.s_[top : cy + ry, left : cx + rx]
        inside = ((y[window] - cy) / ry) ** 2 + ((x[window] - cx) / rx) ** 2 <= 1
        predicted[window][inside] = EVALUATED_LABELS[rng.integers(len(EVALUATED_LABELS))].id
    return predicted


def _compare(name: str, scenes: list[Scene], rounds: int, unit: str, bound: Bound | None) -> Row:
    kept: dict[str, NDArray[np.integer]] = {}
    peer = OfficialScript(scenes)

    def run_ours() -> None:
        evaluator = SemanticEvaluator()
        for number, (raster, predicted) in enumerate(scenes):
            evaluator.add(str(number), raster, predicted)
        kept["ours"] = evaluator.confusion

    def run_peer() -> None:
        kept["peer"] = peer.count()

    seconds = alternate({"ours": run_ours, "peer": run_peer}, rounds=rounds)
    assert np.array_equal(kept["ours"], kept["peer"]), "the official script found another confusion matrix"
    return Row(name, len(scenes) / seconds["ours"], len(scenes) / seconds["peer"], unit, bound)


class OfficialScript:
    """The official evaluation of pairs, fed with images in memory where it opens files."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.images: dict[str, Image.Image] = {}
        for number, (raster, predicted) in enumerate(scenes):
            label_ids = np.where(raster < 1000, raster, raster // 1000).astype(np.uint8)
            self.images[f"{number}_predicted"] = Image.fromarray(predicted)
            self.images[f"{number}_labelIds"] = Image.fromarray(label_ids)
            self.images[f"{number}_instanceIds"] = Image.fromarray(raster)
        self.num_scenes = len(scenes)

    def count(self) -> NDArray[np.integer]:
        """Return the confusion matrix of all scenes."""
        official.Image = SimpleNamespace(open=self.images.__getitem__)
        confusion = official.generateMatrix(official.args)
        sums = official.generateInstanceStats(official.args)
        for number in range(self.num_scenes):
            names = f"{number}_predicted", f"{number}_labelIds"
            with old_numpy():
                official.evaluatePair(*names, confusion, sums, {}, official.args)
        return confusion
