"""What every benchmark shares: the row that it fills, and measuring two sides by turns on a machine that is not idle.

Both sides of a row run in one process (or in processes that alternate), turn by turn, and medians are compared:
what else the machine does then falls on both.
"""

import gc
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal


@dataclass(frozen=True)
class Bound:
    """A target: `ours` or `ratio` must be at most, or at least, a number."""

    what: Literal["ours", "ratio"]
    relation: Literal["<=", ">=", "<"]
    limit: float

    def holds(self, value: float) -> bool:
        """Say whether a value meets the target."""
        return {"<=": value <= self.limit, ">=": value >= self.limit, "<": value < self.limit}[self.relation]

    def __str__(self) -> str:
        return f"{self.what} {self.relation} {self.limit:g}"


@dataclass(frozen=True)
class Row:
    """One line of the result. `ratio` is `ours / peer`; `met` is None where no target was set."""

    name: str
    ours: float
    peer: float
    unit: str
    """Unit of `ours` and `peer`, and the protocol by which they were measured."""
    bound: Bound | None

    @property
    def ratio(self) -> float:
        """Return `ours / peer`, infinite (null in JSON) where the peer needs nothing."""
        return self.ours / self.peer if self.peer else math.inf

    @property
    def met(self) -> bool | None:
        """Say whether the target is met."""
        return None if self.bound is None else self.bound.holds(getattr(self, self.bound.what))

    def to_json(self) -> dict[str, Any]:
        """Return the row as `--json` prints it."""
        return {
            "name": self.name,
            "ours": round(self.ours, 4),
            "peer": round(self.peer, 4),
            "ratio": round(self.ratio, 4) if math.isfinite(self.ratio) else None,
            "unit": self.unit,
            "target": None if self.bound is None else str(self.bound),
            "met": self.met,
        }


def alternate(sides: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
    """Run all sides by turns, `rounds` times after one that does not count, and return each one's median in seconds.

    The order is reversed every other round, so that no side always comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            taken = measure(sides[name])
            if number:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}


def measure(action: Callable[[], object]) -> float:
    """Return the seconds that an action takes; garbage of the one before is collected first."""
    gc.collect()
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def run_alone(module: str, *arguments: object) -> Any:
    """Run a benchmark's module in a fresh process, whose memory is its own, and return the JSON that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    answer = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(answer.stdout)
