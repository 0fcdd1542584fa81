"""What a sweep will cost: measured trainings, times what the pruner leaves of them.

The range reaches from the cheapest trainings that all are pruned as early as may be to the dearest of which none is.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from cityopt.config import StudyConfig
from cityopt.search.pruning import RungPruner, build_pruner
from cityopt.training.costs import TrainingCosts

TOLERANCE = 0.25
"""How far a measurement may be off, either way."""
_OVERHEAD_S = 0.3
"""Of a trial, in the coordinator."""
_SIMULATED, _REPEATS = 200, 20
_COPIES = 2
"""Of each trial's checkpoint: in its run's folder and in MLflow."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number that is not known yet."""

    low: float
    likely: float
    high: float

    def times(self, low: float, likely: float, high: float) -> "Range":
        """Return the product with another range."""
        return Range(self.low * low, self.likely * likely, self.high * high)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `cityopt plan` says. Times in seconds; memory and disk in GiB."""

    study: str
    trials: int
    workers: int
    threads: int
    device: str
    epochs: int
    epoch_s: float
    """Of trial 0's settings."""
    trial_s: Range
    """Of a trial that is not pruned."""
    sweep_s: Range
    """From the first trial's begin to the last one's end, on all workers."""
    device_s: Range
    """Of training, added up over the workers."""
    memory_gib: float
    """Of one worker, with the settings that need most."""
    disk_gib: float
    promotion_s: float | None
    """None where a stage has a model that was not measured."""
    finalists: int = 0
    """How many trainings they are at most."""
    finalists_s: float = 0.0
    """Of all of them, one after the other."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of `cityopt plan --json`."""
        return asdict(self)


def build_forecast(
    config: StudyConfig,
    costs: Sequence[TrainingCosts],
    *,
    num_workers: int,
    threads: int,
    device: str,
    promotion_s: float | None,
    growth: float = 1.0,
) -> Forecast:
    """Turn measured costs, trial 0's first, into a forecast of the sweep and of what follows it.

    Finalists train on `growth` times the trials' images.
    """
    trials, first = config.search.trials, costs[0]
    wholes = [_sum_trial(cost, cost.epochs) for cost in costs]
    trial_s = Range((1 - TOLERANCE) * min(wholes), wholes[0], (1 + TOLERANCE) * max(wholes))
    epochs = count_epochs(config, trials)
    at_once = min(num_workers, trials)
    fixed = trials * _sum_trial(first, 0) + at_once * first.cold_s
    per_epoch = [(whole - _sum_trial(cost, 0)) / cost.epochs for whole, cost in zip(wholes, costs, strict=True)]
    device_s = Range(
        (1 - TOLERANCE) * (fixed + epochs.low * min(per_epoch)),
        fixed + epochs.likely * fmean(per_epoch),
        (1 + TOLERANCE) * (fixed + epochs.high * max(per_epoch)),
    )
    finalists = count_finalists(config)
    finalist = replace(first, steps=math.ceil(growth * first.steps))
    tail_s = trial_s.high if at_once > 1 else 0.0  # the last trial may run alone
    return Forecast(
        study=config.name,
        trials=trials,
        workers=num_workers,
        threads=threads,
        device=device,
        epochs=first.epochs,
        epoch_s=first.epoch_s,
        trial_s=trial_s,
        sweep_s=Range(device_s.low / at_once, device_s.likely / at_once, device_s.high / at_once + tail_s),
        device_s=device_s,
        memory_gib=max(cost.memory_gib for cost in costs),
        disk_gib=(_COPIES * (trials + finalists) + num_workers) * first.checkpoint_gib,
        promotion_s=promotion_s,
        finalists=finalists,
        finalists_s=finalists * _sum_trial(finalist, config.promotion.finalist_epochs or first.epochs),
    )


def count_finalists(config: StudyConfig) -> int:
    """Return how many trainings a promotion's finalists are at most: of the best trials, trial 0 and their rivals."""
    promotion = config.promotion
    if not promotion.has_finalists:
        return 0
    chosen = min(promotion.finalists + bool(config.search.baselines), config.search.trials)
    return chosen * (2 if promotion.rescale else 1) * promotion.seeds


def count_epochs(config: StudyConfig, trials: int) -> Range:
    """Return how many epochs all trials train together: each worse than those before, in no order, none pruned."""
    most, pruner = config.training.epochs, build_pruner(config.search.pruner, config.training.epochs)
    high = float(trials * most)
    if isinstance(pruner, RungPruner):
        some = min(trials, _SIMULATED)
        worse = _simulate(pruner, -np.arange(some, dtype=float), most)
        rng = np.random.default_rng(0)
        mixed = fmean(_simulate(pruner, rng.random(some), most) for _ in range(_REPEATS))
        return Range(worse * trials / some, mixed * trials / some, high)
    if config.search.pruner.name == "median":
        whole = min(config.search.pruner.startup_trials, trials)
        low = float(whole * most + (trials - whole) * min(config.search.pruner.min_epochs + 1, most))
        return Range(low, (low + high) / 2, high)
    return Range(high, high, high)


def _simulate(pruner: RungPruner, scores: np.ndarray[Any, np.dtype[np.float64]], most: int) -> float:
    """Return the epochs of trials whose score is the same from the first epoch on, one after the other."""
    curves: dict[int, dict[int, float]] = {}
    for number, score in enumerate(scores):
        curves[number] = {}
        for epoch in range(1, most + 1):
            curves[number][epoch] = float(score)
            if epoch < most and pruner.stops(number, epoch, curves, maximize=True):
                break
    return float(sum(len(curve) for curve in curves.values()))


def _sum_trial(costs: TrainingCosts, epochs: int) -> float:
    return costs.sum_epochs(epochs) + _OVERHEAD_S
