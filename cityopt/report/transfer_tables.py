"""The scores of a transfer study in rows and columns, for the terminal and the page alike.

Every row names its protocol: the same predictions have another AP in each.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cityopt.evaluation.class_maps import WITHOUT_RIDER
from cityopt.evaluation.transfer import GUESSED, SHARED
from cityopt.labels import THING_NAMES
from cityopt.training.transfer_study import COCO, SIZE, STREETS, Ground, Subject, TransferStudy

SIZES = ("small", "medium", "large")
_SIZED = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"} | {f"ap_{size}": f"AP {size}" for size in SIZES}
_COCO_ROWS = [
    *((f"COCO mask {label}", f"coco/segm/{name}") for name, label in _SIZED.items()),
    *((f"COCO box {label}", f"coco/bbox/{name}") for name, label in _SIZED.items()),
    ("boundary mask AP", "boundary/segm/ap"),
]
_STREET_ROWS = [
    ("Cityscapes AP, 8 classes", "cityscapes/ap"),
    ("Cityscapes AP, 7 without rider", f"cityscapes/ap{WITHOUT_RIDER}"),
    ("Cityscapes AP50, 8 classes", "cityscapes/ap50"),
    ("Cityscapes AP50, 7 without rider", f"cityscapes/ap50{WITHOUT_RIDER}"),
    *_COCO_ROWS,
    ("Cityscapes AP, riders guessed (extra)", f"{GUESSED}/cityscapes/ap"),
    ("Cityscapes AP50, riders guessed (extra)", f"{GUESSED}/cityscapes/ap50"),
]
MEASURES = {
    "boundary_iou": "boundary IoU, objects that both found",
    "mask_iou": "mask IoU, objects that both found",
    "cityscapes_ap": "Cityscapes AP",
}
GROUNDS = {STREETS: "Cityscapes", COCO: "COCO"}


@dataclass(frozen=True)
class Row:
    """One score of every model, None where it has none."""

    label: str
    values: tuple[float | None, ...]


def list_scores(study: TransferStudy, ground: Ground) -> list[Row]:
    """Return the summaries of all models on a ground; rows without any value are left out."""
    rows = _STREET_ROWS if ground.key == STREETS else _COCO_ROWS
    found = [Row(label, _read_all(study, ground, name)) for label, name in rows]
    return [row for row in found if any(value is not None for value in row.values)]


def list_classes(study: TransferStudy, ground: Ground, metric: str) -> list[Row]:
    """Return a metric by Cityscapes' classes."""
    return [Row(name, _read_all(study, ground, f"{metric}/class/{name}")) for name in THING_NAMES]


@dataclass(frozen=True)
class Drop:
    """COCO's AP of one model on both grounds: of a class, or of the shared classes' objects of a size."""

    label: str
    coco: float | None
    streets: float | None

    @property
    def difference(self) -> float | None:
        """Return what is lost (negative) or gained on the way."""
        return None if self.coco is None or self.streets is None else self.streets - self.coco


def list_drops(subject: Subject, kind: str = "segm") -> list[Drop]:
    """Return the drop of a model by class and size, over the seven classes that both datasets know.

    `kind` is `segm`, masks, or `bbox`, boxes.
    """
    if not {COCO, STREETS} <= subject.judged.keys():
        return []
    names = {"all seven classes": "ap"} | {f"{size} objects": f"ap_{size}" for size in SIZES}
    names |= {thing: f"ap/class/{thing}" for thing in THING_NAMES if thing != "rider"}
    metrics = [subject.judged[key].metrics for key in (COCO, STREETS)]
    return [
        Drop(label, *(read_score(x, f"{SHARED}/coco/{kind}/{name}") for x in metrics)) for label, name in names.items()
    ]


def read_score(metrics: Mapping[str, float], name: str) -> float | None:
    """Return a metric, None where it is not there or nothing was there to be found."""
    value = metrics.get(name, math.nan)
    return None if math.isnan(value) else value


def describe_ground(ground: Ground) -> str:
    """Say in one line which images were judged, and at which size they were seen."""
    count = f"all {ground.num_images}"
    if ground.num_images < ground.num_in_split:
        count = f"the first {ground.num_images} of {ground.num_in_split}"
    images = f"images of a root without the split’s own {ground.num_published}" if ground.is_other else "images"
    return f"{GROUNDS[ground.key]} {ground.split}, {count} {images}, seen at {ground.seen}"


def list_warnings(study: TransferStudy) -> list[str]:
    """Say why numbers are none to be held against published ones; nothing where they may be."""
    warnings = []
    if any(ground.num_images < ground.num_in_split for ground in study.grounds):
        warnings.append("Only a part of the images was judged: no number here is official.")
    for ground in study.grounds:
        if ground.is_other:
            warnings.append(
                f"The root of {GROUNDS[ground.key]} has {ground.num_in_split} images, but {ground.split} has "
                f"{ground.num_published}: no number here is that of {ground.split}."
            )
    if any(ground.key == STREETS for ground in study.grounds) and study.conditions.size != SIZE:
        height, width = study.conditions.size
        warnings.append(
            f"Models saw Cityscapes at {height} x {width}, not at {SIZE[0]} x {SIZE[1]}: its numbers are not "
            "comparable with published ones."
        )
    return warnings


def describe_conditions(study: TransferStudy) -> str:
    """Say on what and when the times were taken."""
    environment = study.conditions.environment
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "torchvision") if name in environment)
    threads = sorted({subject.config.threads for subject in study.subjects})
    device = f"{environment.get('device', 'unknown hardware')} (--device {study.conditions.device})"
    counts = " or ".join(map(str, threads))
    return f"Measured on {device}, {counts} CPU threads, {versions}, {study.conditions.begun} UTC."


def _read_all(study: TransferStudy, ground: Ground, name: str) -> tuple[float | None, ...]:
    judged = [subject.judged.get(ground.key) for subject in study.subjects]
    return tuple(read_score(one.metrics, name) if one else None for one in judged)
