"""How often a trial was tried: one that takes its worker down again and again without a finished epoch has failed."""

from collections.abc import Mapping

import optuna

ATTEMPTS = "cityopt:attempts"
NO_ATTEMPT = {"number": 0, "epoch": 0, "stalled": 0}
FIRST_ATTEMPT = {"number": 1, "epoch": 0, "stalled": 1}
"""What stands for the first attempt at a trial, which is not written down: its run says that it began."""
MAX_STALLED = 3
"""Attempts without a finished epoch after which a trial that kills its worker fails."""


def may_try(trial: optuna.Trial, epoch: int, *, begun: bool) -> bool:
    """Count an attempt at a trial that finished `epoch` epochs; False after too many that did not finish another.

    `begun` says whether there was an attempt before.
    """
    seen = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT if begun else NO_ATTEMPT)
    stalled = seen["stalled"] + 1 if seen["epoch"] == epoch else 1
    trial.set_user_attr(ATTEMPTS, {"number": seen["number"] + 1, "epoch": epoch, "stalled": stalled})
    return bool(stalled <= MAX_STALLED)


def forgive_attempt(trial: optuna.Trial) -> None:
    """Take back the count of an attempt that was stopped from outside: it says nothing against the trial."""
    seen: Mapping[str, int] = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
    trial.set_user_attr(ATTEMPTS, {**seen, "stalled": seen["stalled"] - 1})
