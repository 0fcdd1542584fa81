"""What a sweep or a promotion tells whoever watches: the terminal implements it, tests may ignore it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cityopt.dimension import Scalar

TrialState = Literal["complete", "pruned", "failed", "running", "waiting"]


@dataclass(slots=True)
class Standing:
    """The score board of a study."""

    study: str
    metric: str
    trials: int
    """Trials asked for in all."""
    counts: dict[TrialState, int] = field(
        default_factory=lambda: {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    )
    superseded: int = 0
    """Failed trials whose settings are tried again: they do not count as ended."""
    best_number: int | None = None
    best_value: float | None = None

    @property
    def num_ended(self) -> int:
        """Number of trials that have ended, in whatever way, and are not tried again."""
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"] - self.superseded


class Observer:
    """Watches and does nothing; subclasses show what they like."""

    metric = "val/coco/segm/ap"
    """The objective, whose values are worth showing."""

    def say(self, text: str) -> None:
        """Take one line of news."""

    def leave(self, text: str) -> None:
        """Take a last line: the process ends right after, in the middle of whatever it does."""

    def show_preparation(self, what: str, done: int, total: int) -> None:
        """Take the progress of a scan, a cache or the making of scenes."""

    def reporter(self, what: str) -> Callable[[int, int], None]:
        """Return what takes (done, total) of a preparation."""
        return lambda done, total: self.show_preparation(what, done, total)

    def begin_study(self, standing: Standing) -> None:
        """Take the score board before the first trial; it changes in place."""

    def begin_run(self, name: str, settings: Mapping[str, Scalar], *, resumed: bool) -> None:
        """Take note that a run begins or goes on."""

    def show_progress(self, name: str, progress: Mapping[str, Any]) -> None:
        """Take the progress inside a run (fields of `training.progress.Progress`)."""

    def show_epoch(self, name: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a finished epoch."""

    def end_run(self, name: str, state: TrialState, value: float | None, reason: str, *, is_best: bool) -> None:
        """Take note of a run's end."""
