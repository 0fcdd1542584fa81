"""What a study fixed when it began and keeps for good, beside its settings."""

from dataclasses import dataclass, field
from typing import Any

from cityopt.config import AnchorTable


@dataclass(frozen=True, slots=True)
class StudyFacts:
    """What a study fixed when it began: its data, in hashes, its anchors and its thread count."""

    root: str
    fingerprint: str
    subset_hash: str
    holdout_hash: str
    num_subset: int
    num_holdout: int
    threads: int
    anchors: dict[str, Any]
    """The report of `cityopt anchors`; its `sizes` and `ratios` are the adopted table. Empty for semantic models."""
    weights: dict[str, str] = field(default_factory=dict)
    """Content hashes of the files of pretrained weights, by path."""

    class_counts: dict[str, list[int]] = field(default_factory=dict)
    """By class: objects and images of the trials' subset, then of the whole split; empty in studies of old."""

    @property
    def anchor_table(self) -> AnchorTable:
        """Return the anchors that every trial uses."""
        return AnchorTable(sizes=self.anchors["sizes"], ratios=self.anchors["ratios"])
