"""Benchmark: how long a warm worker is idle between two trials of the demo study.

A sweep of short trials with one worker, as a user runs it. Measured in the coordinator, which polls: from the news of a
trial's last epoch to the news that the next one has made its first training step (news come at most ten a second).
Between them lie the last checkpoint, the end in the folder, Optuna and MLflow's shipper, the next ask and run, and in
the worker a new model, optimiser and loader.
"""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import Bound, Row
from cityopt.search.observer import Observer
from cityopt.search.sweep import run_sweep
from cityopt.study_file import load_study

SWEEP = Path(__file__).parents[2] / "sweeps" / "demo.yaml"


class Stopwatch(Observer):
    """Takes the seconds between trials."""

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self._ended: float | None = None

    def show_epoch(self, name: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Take the end of a trial: its last epoch."""
        if epoch == epochs:
            self._ended = time.perf_counter()

    def show_progress(self, name: str, progress: Mapping[str, Any]) -> None:
        """Take the first step of the next."""
        if self._ended is not None and progress["phase"] == "train" and progress["step"] > 0:
            self.gaps.append(time.perf_counter() - self._ended)
            self._ended = None


def bench_between_trials(*, quick: bool) -> list[Row]:
    """Measure the pauses of a sweep of seven trials with one epoch; quick: of two, on a few small scenes."""
    num_trials = 2 if quick else 7
    settings = ["training.epochs=1", f"search.trials={num_trials}", "search.pruner.name=none", "threads=1"]
    settings += ["data.num_holdout=4", "data.synthetic.num_images=24"] if quick else ["data.synthetic.num_images=80"]
    stopwatch = Stopwatch()
    with tempfile.TemporaryDirectory() as store:
        run_sweep(
            load_study(str(SWEEP), settings=settings), store=Path(store), data=None, device="cpu", observer=stopwatch
        )
    assert len(stopwatch.gaps) == num_trials - 1
    unit = (
        f"s from a trial's last epoch to the next one's first step, demo study, median of {num_trials - 1}; peer: worst"
    )
    return [Row("between-trials", median(stopwatch.gaps), max(stopwatch.gaps), unit, Bound("ours", "<=", 1))]
