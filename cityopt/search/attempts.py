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


def may_try(trial: optuna.Trial, epoch: int, *, begun: bool) -> bool:
    """Count an attempt at a trial that finished `epoch` epochs; False after too many that did not finish another.

    `begun` says whether there was an attempt before.
    """
    seen = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT if begun else NO_ATTEMPT)
    stalled = seen["stalled"] + 1 if seen["epoch"] == epoch else 1
    trial.set_user_attr(ATTEMPTS, {"number": seen["number"] + 1, "epoch": epoch, "stalled": stalled})
    return bool(stalled <= MAX_STALLED)


def note_progress(trial: optuna.Trial) -> None:
    """Note that an attempt finished an epoch of which Optuna knows already, from an attempt on another machine."""
    seen: Mapping[str, int] = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
    trial.set_user_attr(ATTEMPTS, {**seen, "stalled": 0})


def forgive_attempt(trial: optuna.Trial) -> None:
    """Take back the count of an attempt that was stopped from outside: it says nothing against the trial."""
    seen: Mapping[str, int] = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
    trial.set_user_attr(ATTEMPTS, {**seen, "stalled": seen["stalled"] - 1})
