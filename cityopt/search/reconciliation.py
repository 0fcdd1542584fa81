"""What an earlier coordinator left half done: it is finished, and trials that it left running are taken up again."""

from collections.abc import Iterable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from cityopt.search.executors.base import Executor
from cityopt.search.ownership import Ownership
from cityopt.search.scorekeeping import Scorekeeper, end_shipping
from cityopt.search.status import ENDING, RUN_ID, describe_trials
from cityopt.store import run_folder
from cityopt.tracking.run_folder import Status, read_records, read_status


def reconcile(keeper: Scorekeeper, executor: Executor, ownership: Ownership) -> list[optuna.Trial]:
    """Finish what was left, fill the keeper's board and curves, and return the trials to go on with."""
    study, name = keeper.study, keeper.config.name
    is_alone = ownership.is_alone()
    open_runs = keeper.mlflow.list_running(name) if is_alone else []
    keeper.read_board(describe_trials(study, live=False))
    keeper.curves |= {t.number: dict(t.intermediate_values) for t in study.get_trials(deepcopy=False)}
    running = [t.number for t in study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))]
    found = [trial for number in ownership.inherit(running) for trial in adopt(number, keeper, executor, ownership)]
    end_stragglers(keeper, open_runs, going_on=study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)))
    keeper.shipper.catch_up(name, ended_only=not is_alone)
    return found


def adopt(number: int, keeper: Scorekeeper, executor: Executor, ownership: Ownership) -> list[optuna.Trial]:
    """Return a trial that was left running and is this coordinator's now; nothing, if it turns out to have ended."""
    frozen = keeper.study.get_trials(deepcopy=False)[number]
    if frozen.state != OptunaState.RUNNING:
        ownership.release(number)
        return []
    with ownership.writing(number):
        trial = _finish(frozen, keeper, executor)
    if trial is None:
        ownership.release(number)
    return [trial] if trial is not None else []


def _finish(frozen: FrozenTrial, keeper: Scorekeeper, executor: Executor) -> optuna.Trial | None:
    """Return a trial to go on with, None for one whose folder says that it has ended."""
    trial = optuna.trial.Trial(keeper.study, frozen._trial_id)
    run_id = frozen.user_attrs.get(RUN_ID)
    if not run_id:
        return trial
    folder = run_folder(keeper.store, run_id)
    status = read_status(folder)
    executor.end_survivor(folder)
    _report_forgotten(trial, frozen, folder, keeper)
    if status is None:
        return trial
    keeper.conclude(trial, str(run_id), status)
    return None


def _report_forgotten(trial: optuna.Trial, frozen: FrozenTrial, folder: Path, keeper: Scorekeeper) -> None:
    """Tell Optuna the epochs that the folder has and it lacks: a power cut may take a database's last commits."""
    metric = keeper.config.search.metric
    for record in read_records(folder)[0]:
        if metric in record.metrics and record.step not in frozen.intermediate_values:
            trial.report(record.metrics[metric], record.step)
            keeper.curves[trial.number][record.step] = record.metrics[metric]


def end_stragglers(keeper: Scorekeeper, open_runs: Iterable[str], going_on: Iterable[FrozenTrial]) -> None:
    """End MLflow runs that are RUNNING though their trial has ended, or never heard of them.

    `open_runs` were listed before the trials that go on: a run is younger than its trial.
    """
    name = keeper.config.name
    known: set[str | None] = {keeper.mlflow.find_parent(name)}
    for trial in going_on:
        known |= {trial.user_attrs.get(RUN_ID), keeper.mlflow.find_run(name, f"trial-{trial.number:04d}")}
    for run_id in set(open_runs) - known:
        status = read_status(run_folder(keeper.store, run_id)) or _read_ending(keeper.study, run_id)
        if status is not None:
            end_shipping(keeper.shipper, run_id, status)
        else:
            keeper.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})


def _read_ending(study: optuna.Study, run_id: str) -> Status | None:
    """Return how the trial of a run ended whose folder is on another machine, None where no trial says so."""
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get(RUN_ID) == run_id and trial.state.is_finished() and ENDING in trial.user_attrs:
            ending = dict(trial.user_attrs[ENDING])
            return Status(outcome=ending.pop("state"), **ending)
    return None
