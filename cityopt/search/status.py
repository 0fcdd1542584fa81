"""The leaderboard of a study, read from the store alone: also while a sweep runs, also after a kill."""

import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from cityopt.config import StudyConfig
from cityopt.dimension import Scalar
from cityopt.search.observer import TrialState
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study
from cityopt.search.study_lock import find_sweep
from cityopt.store import find_store

RUN_ID, ENDING = "cityopt:run_id", "cityopt:ending"
RETRY_OF = "cityopt:retry_of"
"""Attribute of a trial: the number of the failed trial whose settings it tries again."""
OUT_OF_MEMORY = "cityopt:oom"
"""What a trial remembers of its first attempt: its peak, and the accumulation that it goes on with."""


_SHOWN = ("number", "state", "reason", "value", "params", "run_id", "seconds")


@dataclass(frozen=True, slots=True)
class TrialStatus:
    """One trial as people see it; `value` is its best so far."""

    number: int
    state: TrialState
    reason: str | None
    value: float | None
    params: dict[str, Scalar]
    run_id: str | None
    seconds: float | None
    message: str = ""
    """What went wrong, in words; not part of the JSON, where `reason` is."""
    retry_of: int | None = None
    """The failed trial whose settings this one tries again."""
    is_retried: bool = False
    """Whether another trial tries the settings of this one again."""
    accumulation: int | None = None
    """Micro-batches per step that it went on with after memory ran out, instead of what its settings say."""
    oom_peak_gib: float | None = None
    """What it needed when memory ran out, where that is known."""

    def to_json(self) -> dict[str, Any]:
        """Return a trial of `cityopt status --json`."""
        return {key: getattr(self, key) for key in _SHOWN}


@dataclass(frozen=True, slots=True)
class Spending:
    """What a study has spent; None for a limit means that there is none."""

    device_hours: float
    """Hours that trials trained which have ended, added up."""
    max_device_hours: float | None
    hours: float | None
    """Since the sweep at work began; None when none is at work."""
    max_hours: float | None
    trials_left: int

    def to_json(self) -> dict[str, Any]:
        """Return the budget of `cityopt status --json`, with what is left of it."""
        left = {
            "device_hours_left": _subtract(self.max_device_hours, self.device_hours),
            "hours_left": _subtract(self.max_hours, self.hours or 0.0),
        }
        return asdict(self) | left


@dataclass(frozen=True, slots=True)
class StudyStatus:
    """A study as people see it."""

    study: str
    metric: str
    direction: str
    best: TrialStatus | None
    trials: list[TrialStatus]
    spending: Spending | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state."""
        states = [trial.state for trial in self.trials]
        return {state: states.count(state) for state in ("complete", "pruned", "failed", "running", "waiting")}

    @property
    def ranked(self) -> list[TrialStatus]:
        """The trials: complete ones first, by value, then pruned ones, then the rest."""
        sign = -1.0 if self.direction == "maximize" else 1.0
        places = {"complete": 0, "pruned": 1, "running": 2, "waiting": 3, "failed": 4}

        def rank(trial: TrialStatus) -> tuple[int, float, int]:
            return places[trial.state], float("inf") if trial.value is None else sign * trial.value, trial.number

        return sorted(self.trials, key=rank)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `cityopt status --json`."""
        best = self.best and {key: getattr(self.best, key) for key in ("number", "value", "params", "run_id")}
        return {
            "study": self.study,
            "metric": self.metric,
            "direction": self.direction,
            "best": best,
            "budget": self.spending.to_json() if self.spending else None,
            "trials": [trial.to_json() for trial in self.trials],
        }


def read_status(store: Path, name: str) -> StudyStatus:
    """Read a study's leaderboard. Raises StoreError when there is no such store or study."""
    store = find_store(store, name)
    study, config, _ = load_stored_study(open_storage(store), name)
    sweep = find_sweep(store, name)
    return build_status(study, config, live=sweep.live if sweep else False, begun=sweep.begun if sweep else None)


def build_status(
    study: optuna.Study, config: StudyConfig, *, live: bool | Collection[int], begun: float | None = None
) -> StudyStatus:
    """Return the leaderboard of an open study; `live` says whether a coordinator is at work on it, or on which trials.

    `begun` says since when, in seconds since 1970.
    """
    trials = describe_trials(study, live=live)
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    pick = max if config.search.direction == "maximize" else min
    best = pick(complete, key=lambda trial: trial.value or 0.0) if complete else None
    spending = _add_up(config, trials, begun)
    return StudyStatus(config.name, config.search.metric, config.search.direction, best, trials, spending)


def _add_up(config: StudyConfig, trials: list[TrialStatus], begun: float | None) -> Spending:
    search = config.search
    num_open = sum(trial.state in ("running", "waiting") for trial in trials)
    num_ended = len(trials) - num_open - sum(trial.is_retried for trial in trials)
    return Spending(
        device_hours=sum(trial.seconds or 0.0 for trial in trials) / 3600,
        max_device_hours=search.max_device_hours,
        hours=None if begun is None else (time.time() - begun) / 3600,
        max_hours=search.max_hours,
        trials_left=max(search.trials - num_ended, 0),
    )


def _subtract(limit: float | None, spent: float) -> float | None:
    return None if limit is None else max(limit - spent, 0.0)


def describe_trials(study: optuna.Study, *, live: bool | Collection[int]) -> list[TrialStatus]:
    """Return all trials in order; without a live coordinator an unfinished one waits to be taken up again.

    Where several share a study, `live` has the numbers of the trials that they are at.
    """
    maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
    found = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs[RETRY_OF] for trial in found if RETRY_OF in trial.user_attrs}
    return [
        _describe(trial, live if isinstance(live, bool) else trial.number in live, maximize, trial.number in retried)
        for trial in found
    ]


def find_best_reported(reported: Iterable[float], maximize: bool) -> float | None:
    """Return the best of the values that a trial reported, None when it reported none."""
    values = [value for value in reported if value == value]
    return None if not values else max(values) if maximize else min(values)


def _describe(trial: FrozenTrial, live: bool, maximize: bool, is_retried: bool) -> TrialStatus:
    ending: dict[str, Any] = trial.user_attrs.get(ENDING, {})
    reason = ending.get("reason") or None
    if trial.state == OptunaState.RUNNING:
        state: TrialState = "running" if live else "waiting"
        reason = None if live else "interrupted"
    elif trial.state == OptunaState.WAITING:
        state = "waiting"
    else:
        state = ending.get(
            "state", {OptunaState.COMPLETE: "complete", OptunaState.PRUNED: "pruned"}.get(trial.state, "failed")
        )
    best = find_best_reported(trial.intermediate_values.values(), maximize)
    value = trial.value if state == "complete" else None if state == "failed" else best
    params = trial.params or trial.system_attrs.get("fixed_params", {})
    return TrialStatus(
        trial.number,
        state,
        reason,
        value,
        dict(params),
        trial.user_attrs.get(RUN_ID),
        ending.get("seconds"),
        ending.get("message", ""),
        trial.user_attrs.get(RETRY_OF),
        is_retried,
        trial.user_attrs.get(OUT_OF_MEMORY, {}).get("accumulation"),
        trial.user_attrs.get(OUT_OF_MEMORY, {}).get("peak_gib"),
    )
