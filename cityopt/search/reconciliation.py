"""What an earlier coordinator left half done: it is finished, and trials that it left running are taken up again."""

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from cityopt.search.executors.base import Executor
from cityopt.search.scorekeeping import Scorekeeper, end_shipping
from cityopt.search.status import RUN_ID, describe_trials
from cityopt.store import run_folder
from cityopt.tracking.run_folder import read_records, read_status


def reconcile(keeper: Scorekeeper, executor: Executor) -> list[optuna.Trial]:
    """Finish what was left, fill the keeper's board and curves, and return the trials to go on with."""
    study = keeper.study
    keeper.read_board(describe_trials(study, live=False))
    keeper.curves |= {t.number: dict(t.intermediate_values) for t in study.get_trials(deepcopy=False)}
    running = study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
    found = [_adopt(frozen, keeper, executor) for frozen in running]
    adopted = [trial for trial in found if trial is not None]
    _end_stragglers(keeper, adopted)
    keeper.shipper.catch_up(keeper.config.name)
    return adopted


def _adopt(frozen: FrozenTrial, keeper: Scorekeeper, executor: Executor) -> optuna.Trial | None:
    """Return a trial that was left running, None for one whose folder says that it has ended."""
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


def _end_stragglers(keeper: Scorekeeper, adopted: list[optuna.Trial]) -> None:
    """End MLflow runs that are RUNNING though their trial has ended, or never heard of them."""
    name = keeper.config.name
    mine: set[str | None] = {trial.user_attrs.get(RUN_ID) for trial in adopted}
    mine |= {keeper.mlflow.find_run(name, f"trial-{trial.number:04d}") for trial in adopted}
    mine.add(keeper.parent.folder.name)
    for run_id in keeper.mlflow.list_running(name):
        if run_id in mine:
            continue
        status = read_status(run_folder(keeper.store, run_id))
        if status is not None:
            end_shipping(keeper.shipper, run_id, status)
        else:
            keeper.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})
