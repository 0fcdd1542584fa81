"""Metrics in words: every number is shown with the protocol that made it, for COCO's and Cityscapes' APs differ."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FAMILIES = {
    "coco/segm": "COCO mask",
    "coco/bbox": "COCO box",
    "cityscapes": "Cityscapes",
    "semantic": "Cityscapes semantic",
}
_SUMMARIES = {
    "ap": "AP",
    "ap50": "AP at IoU .5",
    "ap75": "AP at IoU .75",
    "ap_small": "AP of small objects",
    "ap_medium": "AP of medium objects",
    "ap_large": "AP of large objects",
    "miou": "mean class IoU",
    "iiou": "mean class iIoU",
    "category_iou": "mean category IoU",
    "accuracy": "pixel accuracy",
    "iou": "IoU",
}
_BY_CLASS = re.compile(r"(?P<prefix>.+)/class/(?P<label>[^/]+)")
SIZES = {"small": "under 32² px", "medium": "32² to 96² px", "large": "over 96² px"}
"""COCO's areas, measured at the size that is evaluated."""


@dataclass(frozen=True)
class ClassScores:
    """Scores by class of one protocol."""

    prefix: str
    """Metric name up to `/class/`, such as `val/coco/segm/ap`."""
    label: str
    scores: dict[str, float]


def describe_metric(name: str) -> str:
    """Return what a metric measures and by which protocol, such as `COCO mask AP at IoU .5`; else its name."""
    if name.startswith("train/loss/"):
        return "training loss" + ("" if name.endswith("/total") else f", {name.rsplit('/', 1)[-1]}")
    by_class = _BY_CLASS.fullmatch(name)
    if by_class:
        return f"{describe_metric(by_class['prefix'])} of {by_class['label']}"
    family, _, summary = name.removeprefix("val/").rpartition("/")
    if family not in _FAMILIES:
        return name
    return f"{_FAMILIES[family]} {_SUMMARIES.get(summary, summary.replace('_', ' '))}"


def list_class_scores(metrics: Mapping[str, float]) -> list[ClassScores]:
    """Return the tables of scores by class that a run's metrics hold on its own validation images."""
    tables: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        match = _BY_CLASS.fullmatch(name)
        if match and name.startswith("val/"):
            tables.setdefault(match["prefix"], {})[match["label"]] = value
    return [ClassScores(prefix, describe_metric(prefix), scores) for prefix, scores in tables.items()]


def list_size_scores(metrics: Mapping[str, float]) -> list[tuple[str, dict[str, float]]]:
    """Return, per protocol that tells sizes apart, its name and the AP of small, medium and large objects."""
    found = []
    for family, label in _FAMILIES.items():
        names = {size: f"val/{family}/ap_{size}" for size in SIZES}
        if any(name in metrics for name in names.values()):
            found.append((f"{label} AP", {size: metrics[name] for size, name in names.items() if name in metrics}))
    return found
