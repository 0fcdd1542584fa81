"""Score what `cityopt evaluate --export` wrote by the official scripts and pycocotools, under cityopt's names.

The scripts of cityscapesscripts 2.3.0 need numpy's old `in1d`, cannot write their notes on matches, which hold numpy's
numbers, and stop at a class that is there but of which everything found is ignored (`PatientNumpy`); they are otherwise
run as they are, on files alone.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_script
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as pixel_script
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cityopt.labels import EVALUATED_LABELS, THING_NAMES

COCO_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def score_export(export: Path, root: Path, split: str) -> dict[str, float]:
    """Return every number that the scripts find in an export, as `<split>/<protocol>/…`; NaN as they have it."""
    truths = sorted((root / "gtFine" / split).glob("*/*_gtFine_instanceIds.png"))
    found = score_instances(export, truths) | score_pixels(export, truths) | score_coco(export)
    return {f"{split}/{name}": float(value) for name, value in found.items()}


def score_instances(export: Path, truths: list[Path]) -> dict[str, float]:
    args = instance_script.args
    with (
        old_numpy(),
        patch.object(instance_script, "writeDict2JSON", lambda *_: None),
        patch.object(instance_script, "np", PatientNumpy()),
    ):
        _set(args, export / "instances")
        files = [str(path) for path in truths]
        predictions = [instance_script.getPrediction(file, args) for file in files]
        averages = instance_script.evaluateImgLists(predictions, files, args)["averages"]
    found = {"cityscapes/ap": averages["allAp"], "cityscapes/ap50": averages["allAp50%"]}
    for name, scores in averages["classes"].items():
        found |= {f"cityscapes/ap/class/{name}": scores["ap"], f"cityscapes/ap50/class/{name}": scores["ap50%"]}
    return found


def score_pixels(export: Path, truths: list[Path]) -> dict[str, float]:
    args = pixel_script.args
    with old_numpy():
        _set(args, export / "pixels")
        files = [str(path).replace("instanceIds", "labelIds") for path in truths]
        predictions = [pixel_script.getPrediction(args, file) for file in files]
        result = pixel_script.evaluateImgLists(predictions, files, args)
    found = {}
    for key, name in (("classScores", "iou"), ("classInstScores", "iiou")):
        scores = [result[key][label] for label in THING_NAMES]
        found |= {f"semantic_things/{name}/class/{x}": score for x, score in zip(THING_NAMES, scores, strict=True)}
        found["semantic_things/miou" if name == "iou" else "semantic_things/iiou"] = _mean(scores)
    return found


def score_classes(export: Path, root: Path, split: str) -> dict[str, float]:
    """Return what the pixel-level script finds in a semantic model's export: IoU of classes and categories."""
    truths = sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png"))
    args = pixel_script.args
    with old_numpy():
        _set(args, export / "pixels")
        files = [str(path) for path in truths]
        predictions = [pixel_script.getPrediction(args, file) for file in files]
        result = pixel_script.evaluateImgLists(predictions, files, args)
    found = {"semantic/miou": result["averageScoreClasses"], "semantic/iiou": result["averageScoreInstClasses"]}
    found |= {"semantic/category_iou": result["averageScoreCategories"]}
    evaluated = [label.name for label in EVALUATED_LABELS]
    found |= {f"semantic/iou/class/{name}": result["classScores"][name] for name in evaluated}
    return {f"{split}/{name}": float(value) for name, value in found.items()}


def score_coco(export: Path) -> dict[str, float]:
    found = {}
    for kind in ("segm", "bbox"):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(export / "coco" / "ground_truth.json")
            evaluation = COCOeval(truth, truth.loadRes(str(export / "coco" / f"{kind}.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        found |= {f"coco/{kind}/{name}": evaluation.stats[i] for i, name in enumerate(COCO_NAMES)}
        for index, name in enumerate(THING_NAMES):
            for key, rows in (("ap", slice(None)), ("ap50", slice(1))):
                precision = evaluation.eval["precision"][rows, :, index, 0, -1]
                found[f"coco/{kind}/{key}/class/{name}"] = _mean(precision[precision > -1])
    return {name: np.nan if value == -1 else value for name, value in found.items()}


class PatientNumpy:
    """numpy, but for running sums of nothing: the script takes their last value for the number of true positives."""

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def cumsum(self, values: np.ndarray) -> np.ndarray:
        return np.cumsum(values) if len(values) else np.zeros(1)


def _set(args: object, predictions: Path) -> None:
    options = {"predictionPath": str(predictions.absolute()), "predictionWalk": None, "gtInstancesFile": "/none"}
    for name, value in {**options, "JSONOutput": False, "quiet": True}.items():
        setattr(args, name, value)


def _mean(values: object) -> float:
    defined = np.asarray(values, dtype=float)
    defined = defined[~np.isnan(defined)]
    return float(defined.mean()) if defined.size else np.nan


@contextlib.contextmanager
def old_numpy() -> Iterator[None]:
    """Give numpy back the function that the scripts call and that 2.4 removed, for a while."""
    had = hasattr(np, "in1d")
    if not had:
        np.in1d = lambda values, test: np.isin(values, test).ravel()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # means over classes that no image shows
            yield
    finally:
        if not had:
            del np.in1d
