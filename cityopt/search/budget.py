"""What a sweep may spend: no trial begins that would not end in time, and the estimate is corrected as it learns.

`max_hours` is the time of one sweep, its preparation included; a sweep that is called again has all of it.
`max_device_hours` adds up what trials trained, of the whole study. `patience` counts trials that ended since the last
better score.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cityopt.search_config import SearchConfig


@dataclass(slots=True)
class _Running:
    begun: float
    epochs: int
    slowest_epoch_s: float = 0.0


@dataclass(slots=True)
class Budget:
    """Says whether another trial may begin. Times are of `clock`, in seconds."""

    search: SearchConfig
    clock: Callable[[], float] = time.monotonic
    begun: float = math.nan
    """When the sweep began; now by default."""
    spent_s: float = 0.0
    """Seconds that trials trained which have ended, earlier sweeps' counted."""
    num_since_best: int = 0
    _longest_s: float = 0.0
    """The longest complete trial."""
    _slowest_s: float = 0.0
    """The longest that a trial would have taken, judged by its slowest epoch; counts while none is complete."""
    _running: dict[int, _Running] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin to count a sweep's hours."""
        if math.isnan(self.begun):
            self.begun = self.clock()

    def start(self, number: int, epochs: int) -> None:
        """Take note that a trial begins, or goes on."""
        self._running[number] = _Running(self.clock(), epochs)

    def take_epoch(self, number: int, seconds: float) -> None:
        """Learn from an epoch how long a whole trial takes."""
        running = self._running.get(number)
        if running is not None:
            running.slowest_epoch_s = max(running.slowest_epoch_s, seconds)
            self._slowest_s = max(self._slowest_s, running.slowest_epoch_s * running.epochs)

    def leave(self, number: int) -> None:
        """Take note that a trial is in nobody's hands: its worker is lost, or it is tried again."""
        self._running.pop(number, None)

    def end(self, number: int, seconds: float, *, is_complete: bool, is_best: bool) -> None:
        """Learn from a trial that has ended and trained for `seconds`, over all attempts."""
        running = self._running.pop(number, None)
        whole_s = self.clock() - running.begun if running is not None else 0.0  # with what goes on around the epochs
        self.recall(max(seconds, whole_s), is_complete=is_complete, is_best=is_best)

    def recall(self, seconds: float | None, *, is_complete: bool, is_best: bool) -> None:
        """Learn from how long a trial took, and whether it was the best so far."""
        self.spent_s += seconds or 0.0
        if is_complete:
            self._longest_s = max(self._longest_s, seconds or 0.0)
        self.num_since_best = 0 if is_best else self.num_since_best + 1

    @property
    def expected_s(self) -> float:
        """Seconds that a trial may take which is not pruned; 0 while nothing is known."""
        return self._longest_s or self._slowest_s

    @property
    def is_over(self) -> bool:
        """Whether the sweep's hours are up: then trials at work are left to the next sweep."""
        hours = self.search.max_hours
        return hours is not None and self.clock() - self.begun >= 3600 * hours

    def find_objection(self) -> str:
        """Say why no trial may begin now; empty where nothing is against it."""
        search, now = self.search, self.clock()
        if search.patience is not None and self.num_since_best >= search.patience:
            return f"{self.num_since_best} trials brought no better score (search.patience)"
        if search.max_hours is not None:
            left_s = 3600 * search.max_hours - (now - self.begun)
            if left_s <= 0 or left_s < self.expected_s:
                return f"{_minutes(left_s)} of --max-hours are left, and a trial takes {_minutes(self.expected_s)}"
        if search.max_device_hours is not None:
            at_work_s = sum(max(now - running.begun, self.expected_s) for running in self._running.values())
            left_s = 3600 * search.max_device_hours - self.spent_s - at_work_s
            if left_s <= 0 or left_s < self.expected_s:
                return (
                    f"{_minutes(left_s)} of --max-device-hours are left, and a trial takes {_minutes(self.expected_s)}"
                )
        return ""


def _minutes(seconds: float) -> str:
    return f"{max(seconds, 0) / 60:.1f} min"
