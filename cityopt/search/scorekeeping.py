"""How a trial ends: in its folder, in Optuna, in MLflow, and on the study's score board, in that order.

The order makes a kill at any moment harmless: whoever finds an end in a folder does the rest (`reconciliation.py`).
"""

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState as OptunaState

from cityopt.config import StudyConfig
from cityopt.search.budget import Budget
from cityopt.search.micro_batches import describe_retry
from cityopt.search.note import NoteClock, describe_study
from cityopt.search.observer import Observer, Standing, TrialState
from cityopt.search.status import ENDING, RETRY_OF, TrialStatus, build_status, describe_trials, find_best_reported
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore, RunEnd
from cityopt.tracking.run_folder import (
    LAST,
    NOTE,
    Status,
    Tracker,
    read_log_tail,
    write_atomically,
    write_status,
)

OPTUNA_SEES_PRUNED = ("nan", "oom")
"""Reasons that tell something about the settings: Optuna hears `pruned` with a violated constraint."""


class Scorekeeper:
    """Writes down how trials end, and keeps the score board. `parent` is the study's own run."""

    def __init__(
        self,
        store: Path,
        study: optuna.Study,
        config: StudyConfig,
        *,
        mlflow: MlflowStore,
        shipper: Shipper,
        observer: Observer,
        parent: Tracker,
    ) -> None:
        self.store, self.study, self.config, self.parent = store, study, config, parent
        self.mlflow, self.shipper, self.observer = mlflow, shipper, observer
        self.standing = Standing(config.name, config.search.metric, config.search.trials)
        self.maximize = config.search.direction == "maximize"
        self.curves: dict[int, dict[int, float]] = {}
        """What every trial reported, by epoch: to read it from the database each time costs more than a report."""
        self.budget = Budget(config.search)
        self._note_clock = NoteClock()
        self._counted: set[int] = set()

    def read_board(self, trials: list[TrialStatus]) -> None:
        """Count what has ended, and fill in what the parent run lacks of the best score's climb."""
        for trial in trials:
            if trial.number in self._counted or trial.state not in ("complete", "pruned", "failed"):
                continue
            self._counted.add(trial.number)
            self.standing.counts[trial.state] += 1
            is_best = self._take_best(trial.number, trial.state, trial.value)
            self.budget.recall(trial.seconds, is_complete=trial.state == "complete", is_best=is_best)
            self._log_best(trial.number)
        self.standing.superseded = sum(trial.is_retried for trial in trials)

    def survey(self, own: Container[int]) -> list[int]:
        """Take in what other coordinators' trials reported and came to; returns which of them are RUNNING.

        `own` are the trials in this coordinator's hands.
        """
        found = self.study.get_trials(deepcopy=False)
        others = [t for t in found if t.number not in own and t.number not in self._counted]
        for trial in others:
            self.curves.setdefault(trial.number, {}).update(trial.intermediate_values)
        if any(trial.state.is_finished() for trial in others):
            self.read_board([trial for trial in describe_trials(self.study, live=True) if trial.number not in own])
        self.standing.superseded = len({t.user_attrs[RETRY_OF] for t in found if RETRY_OF in t.user_attrs})
        return [trial.number for trial in others if trial.state == OptunaState.RUNNING]

    def write_down(self, run_id: str, status: Status) -> Status:
        """Say in a trial's folder how it ended, and return that: whatever happens now, it has ended."""
        folder = run_folder(self.store, run_id)
        if status.outcome == "failed":
            status = replace(status, log=read_log_tail(folder))
        write_status(folder, status)
        return status

    def conclude(self, trial: optuna.Trial, run_id: str, status: Status) -> None:
        """Do what is left to do when the folder says how a trial ended: nobody goes on from its last epoch now.

        To do it again does no harm.
        """
        (run_folder(self.store, run_id) / LAST).unlink(missing_ok=True)
        self.tell(trial, status)
        end_shipping(self.shipper, run_id, status, describe_retry(trial))

    def tell(self, trial: optuna.Trial, status: Status) -> None:
        """Tell Optuna how a trial ended, then the board, unless they know."""
        if trial.number in self._counted:
            return
        value = find_best_reported(self.curves.get(trial.number, {}).values(), self.maximize)
        with suppress(UpdateFinishedTrialError):  # told before, and the answer was lost with the database
            self._tell_optuna(trial, status, value)
        self._take_note(trial.number, status, value)

    def _tell_optuna(self, trial: optuna.Trial, status: Status, value: float | None) -> None:
        ending = {"state": status.outcome, **{k: v for k, v in asdict(status).items() if k != "outcome"}}
        trial.set_user_attr(ENDING, ending)
        if status.outcome == "complete" and value is not None:
            self.study.tell(trial, value)
        elif status.outcome == "pruned":
            self.study.tell(trial, state=OptunaState.PRUNED)
        elif status.reason in OPTUNA_SEES_PRUNED:
            if status.reason not in trial.constraints:
                trial.set_constraint(status.reason, 1.0)
            self.study.tell(trial, state=OptunaState.PRUNED)
        else:
            self.study.tell(trial, state=OptunaState.FAIL)

    def describe_study(self, *, is_last: bool = False) -> None:
        """Write the leaderboard as the parent run's description, unless that was done a moment ago."""
        if (is_last or self._note_clock.is_due()) and (folder := self.parent.folder):
            status = build_status(self.study, self.config, live=not is_last)
            text = describe_study(status, self.mlflow.open_experiment(self.config.name))
            write_atomically(folder / NOTE, text.encode())

    def _take_note(self, number: int, status: Status, value: float | None) -> None:
        state: TrialState = status.outcome
        self._counted.add(number)
        self.standing.counts[state] += 1
        is_best = self._take_best(number, state, value)
        self.budget.end(number, status.seconds, is_complete=state == "complete", is_best=is_best)
        self._log_best(number)
        self.describe_study()
        shown = None if state == "failed" else value
        self.observer.end_run(f"trial-{number:04d}", state, shown, status.reason, is_best=is_best)
        if status.message:
            self.observer.say(f"  {status.message}")

    def _log_best(self, number: int) -> None:
        """Let the parent run show the best score as it climbs, one point per ended trial."""
        if self.standing.best_value is not None:
            self.parent.log_metrics({f"best/{self.config.search.metric}": self.standing.best_value}, step=number)

    def _take_best(self, number: int, state: TrialState, value: float | None) -> bool:
        """Say whether an ended trial is the best so far, and put it on the board if it is."""
        if state != "complete" or value is None:
            return False
        best = self.standing.best_value
        is_best = best is None or (value > best if self.maximize else value < best)
        if is_best:
            self.standing.best_number, self.standing.best_value = number, value
        return is_best


def end_shipping(shipper: Shipper, run_id: str, status: Status, more: Mapping[str, Any] | None = None) -> None:
    """Give a run its end in MLflow, after all that its folder holds; `more` are tags beside those of its state."""
    ends: Mapping[Literal["complete", "pruned", "failed"], RunEnd] = {
        "complete": "FINISHED",
        "pruned": "KILLED",
        "failed": "FAILED",
    }
    tags: dict[str, object] = {"cityopt.state": status.outcome, **(more or {})}
    if status.reason:
        tags |= {"cityopt.reason": status.reason, "cityopt.message": status.message}
    if status.log:
        tags["cityopt.log"] = status.log
    shipper.end(run_id, ends[status.outcome], tags)
