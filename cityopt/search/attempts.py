"""Attempts at a trial: one that takes its worker down again and again without a finished epoch has failed."""

from collections.abc import Mapping
from dataclasses import dataclass

import optuna

from cityopt.config import RunConfig

ATTEMPTS = "cityopt:attempts"
NO_ATTEMPT = {"number": 0, "epoch": 0, "stalled": 0}
FIRST_ATTEMPT = {"number": 1, "epoch": 0, "stalled": 1}
"""What stands for the first attempt at a trial, which is not written down: its run says that it began."""
MAX_STALLED = 3
"""Attempts without a finished epoch after which a trial that kills its worker fails."""
MAX_REPEATS = 10
"""Attempts without an epoch that is new to Optuna after which it fails too, though each trained some epochs anew."""


@dataclass(slots=True)
class RunningTrial:
    """A trial in a worker's hands."""

    trial: optuna.Trial
    run_id: str
    config: RunConfig
    reported: dict[int, float]
    """The values that Optuna has heard of, by epoch, or hears of when its database is back."""
    token: str = ""
    """That of the attempt."""
    num_done: int = 0
    """Epochs that the run's folder had when the attempt began: fewer than were reported, if others are elsewhere."""


def count_attempt(trial: optuna.Trial, epoch: int, *, begun: bool) -> str:
    """Count an attempt at a trial that finished `epoch` epochs; say why there may be none, after too many in vain.

    `begun` says whether there was an attempt before.
    """
    seen = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT if begun else NO_ATTEMPT)
    is_further = seen["epoch"] != epoch
    stalled = 1 if is_further else seen["stalled"] + 1
    repeats = 1 if is_further else seen.get("repeats", seen["stalled"]) + 1
    now = {"number": seen["number"] + 1, "epoch": epoch, "stalled": stalled, "repeats": repeats}
    trial.set_user_attr(ATTEMPTS, now)
    if stalled > MAX_STALLED:
        return f"{MAX_STALLED} attempts ended without a finished epoch"
    return f"{MAX_REPEATS} attempts ended without an epoch after {epoch}" if repeats > MAX_REPEATS else ""


def note_progress(trial: optuna.Trial) -> None:
    """Note that an attempt finished an epoch of which Optuna knows already, from an attempt on another machine."""
    seen: Mapping[str, int] = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
    trial.set_user_attr(ATTEMPTS, {**seen, "stalled": 0})


def forgive_attempt(trial: optuna.Trial) -> None:
    """Take back the count of an attempt that was stopped from outside: it says nothing against the trial."""
    seen: Mapping[str, int] = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
    repeats = seen.get("repeats", seen["stalled"]) - 1
    trial.set_user_attr(ATTEMPTS, {**seen, "stalled": seen["stalled"] - 1, "repeats": repeats})
