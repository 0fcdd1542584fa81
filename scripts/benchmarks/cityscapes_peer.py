"""The official Cityscapes instance evaluation, on files that it can read: a benchmark's peer, and the tests' judge.

It needs PNGs of ground truth and of every mask, a text file per image, and `np.in1d`, which numpy has removed.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
from cityscapesscripts.evaluation.instances2dict import instances2dict
from hotcoco import mask as rle_mask
from numpy.typing import NDArray
from PIL import Image

from cityopt.labels import THING_LABELS
from cityopt.models.masks import Prediction


def write_scenes(folder: Path, scenes: Sequence[tuple[NDArray[np.uint16], Prediction]]) -> None:
    """Write rasters and predictions as the official script reads them."""
    for number, (raster, prediction) in enumerate(scenes):
        Image.fromarray(raster).save(folder / f"gt_{number:04d}.png")
        lines = []
        for index, (code, class_index, score) in enumerate(
            zip(prediction.masks, prediction.classes, prediction.scores, strict=True)
        ):
            name = f"mask_{number:04d}_{index:04d}.png"
            Image.fromarray(rle_mask.decode(dict(code)) * np.uint8(255)).save(folder / name, compress_level=1)
            lines.append(f"{name} {THING_LABELS[class_index - 1].id} {float(score)!r}\n")
        (folder / f"pred_{number:04d}.txt").write_text("".join(lines), encoding="utf-8")


def old_numpy() -> Any:
    """Give numpy back the function that the official scripts call and that 2.4 removed, while the context lasts."""
    return mock.patch.object(np, "in1d", lambda values, some: np.isin(values, some).ravel(), create=True)


def score_officially(folder: Path) -> NDArray[np.float64]:
    """Return the official AP per class and threshold, `(8, 10)`, of what `write_scenes` wrote.

    Where the script dies of an IndexError, for a class and threshold whose predictions are all ignored, AP is 0.
    """
    rasters, predictions = ([str(path) for path in sorted(folder.glob(name))] for name in ("gt_*.png", "pred_*.txt"))
    settings = copy.copy(official.args)
    settings.quiet, settings.predictionPath = True, str(folder.resolve())
    official.setInstanceLabels(settings)
    with old_numpy():
        instances = instances2dict(rasters, verbose=False)
        matches = official.matchGtWithPreds(predictions, rasters, instances, settings)
        try:
            return np.asarray(official.evaluateMatches(matches, settings))[0]
        except IndexError:
            return _score_apart(matches, settings)


def _score_apart(matches: dict[str, Any], settings: Any) -> NDArray[np.float64]:
    """Score one class and threshold at a time, so that an error spoils no other."""
    matrix = np.zeros((len(settings.instLabels), len(settings.overlaps)))
    for row, column in np.ndindex(matrix.shape):
        one = copy.copy(settings)
        one.instLabels, one.overlaps = [settings.instLabels[row]], settings.overlaps[column : column + 1]
        try:
            matrix[row, column] = official.evaluateMatches(matches, one).item()
        except IndexError:
            matrix[row, column] = 0.0
    return matrix
