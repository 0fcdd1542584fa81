"""What a transfer study is: images, models and what they were worth, conditions, and all of it as plain data.

Stands between the story of `cityopt transfer`, which fills it, and the report, which shows it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cityopt.config import RunConfig
from cityopt.evaluation.close_ups import CloseUp
from cityopt.evaluation.paired import PairedDifference
from cityopt.evaluation.transfer import Judged

STREETS, COCO = "cityscapes", "coco"
SIZE = (1024, 2048)
"""(height, width) at which models see streets; 800/1333, as for COCO, would shrink Cityscapes' images to .65."""


@dataclass(frozen=True)
class Ground:
    """Images that models were judged on."""

    key: str
    """`cityscapes` or `coco`."""
    root: Path
    split: str
    num_images: int
    num_in_split: int
    """Images that the root has."""
    seen: str
    """The size at which the models saw them."""
    num_published: int | None = None
    """Images that the split has where it comes from; None is as many as the root has."""
    given: str = ""
    """What `--data` or its variable called the root, `synthetic` say; empty means its folder."""

    @property
    def is_other(self) -> bool:
        """Say whether the root has more or less than the split's own images."""
        return self.num_published not in (None, self.num_in_split)

    @property
    def prefix(self) -> str:
        """Return what the names of metrics begin with, which says if they are official."""
        name = f"{COCO}_{self.split}" if self.key == COCO else self.split
        if self.is_other:
            return f"{name}_other_{self.num_images}"
        return name if self.num_images == self.num_in_split else f"{name}_first_{self.num_images}"


@dataclass
class Subject:
    """A model of the study, and what it was worth."""

    label: str
    reference: str
    config: RunConfig
    origin: Mapping[str, str]
    """Of a converted model: the file that it was made from, and its licence."""
    num_parameters: int
    judged: dict[str, Judged] = field(default_factory=dict)
    """By the ground's key."""

    @property
    def knows_coco(self) -> bool:
        """Say whether it has COCO's 80 classes."""
        return self.config.model.classes == "coco"


@dataclass(frozen=True)
class Comparison:
    """A later model beside the first one, in one measure on the same images."""

    ground: str
    first: str
    second: str
    measure: str
    """`boundary_iou`, `mask_iou` (of objects that both found, image by image) or `cityscapes_ap`."""
    found: PairedDifference


@dataclass(frozen=True)
class Conditions:
    """What the numbers depend on beside models and images; each model brings its own CPU threads."""

    size: tuple[int, int] = SIZE
    """(height, width) at which streets were seen."""
    device: str = "cpu"
    """As `--device` takes it."""
    limit: int | None = None
    store: Path | None = None
    begun: str = ""
    """Date and time, UTC."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions, machine, the device's name, commit: see `describe_environment`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "size": list(self.size), "store": str(self.store) if self.store else None}


@dataclass
class TransferStudy:
    """All that a transfer study found."""

    grounds: list[Ground]
    subjects: list[Subject] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    close_ups: list[tuple[str, CloseUp, bytes]] = field(default_factory=list)
    """The object's class, the object, and its picture as JPEG."""
    conditions: Conditions = field(default_factory=Conditions)

    def list_metrics(self, subject: Subject) -> dict[str, float]:
        """Return all metrics of a model under their full names, its seconds per image among them."""
        metrics: dict[str, float] = {}
        for ground in self.grounds:
            if judged := subject.judged.get(ground.key):
                metrics |= {f"{ground.prefix}/{name}": value for name, value in judged.metrics.items()}
                metrics[f"{ground.prefix}/system/seconds_per_image"] = judged.median_seconds
        return metrics

    def to_json(self) -> dict[str, Any]:
        """Return plain data, null for what is not there to be measured."""
        return {
            "conditions": self.conditions.to_json(),
            "grounds": [{**vars(x), "root": str(x.root), "prefix": x.prefix} for x in self.grounds],
            "models": [
                {
                    "label": subject.label,
                    "reference": subject.reference,
                    "family": subject.config.model.family,
                    "backbone": subject.config.model.backbone,
                    "classes": subject.config.model.num_classes,
                    "num_parameters": subject.num_parameters,
                    "threads": subject.config.threads,
                    "origin": dict(subject.origin),
                    "metrics": {k: None if np.isnan(v) else v for k, v in self.list_metrics(subject).items()},
                }
                for subject in self.subjects
            ],
            "comparisons": [{**vars(x), "found": x.found.to_json()} for x in self.comparisons],
        }
