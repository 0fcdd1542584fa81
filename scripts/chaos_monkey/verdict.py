"""What must hold after all kills: nothing lost, nothing doubled, nothing running, and the study that it would be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from chaos_monkey.lives import NAME, read_trials
from chaos_monkey.worker import METRIC, judge
from cityopt.search.status import RUN_ID
from cityopt.tracking.mlflow_store import MlflowStore


def check_finished(before: Mapping[int, FrozenTrial], now: list[FrozenTrial]) -> None:
    """Check that trials that had ended are untouched."""
    for number, trial in before.items():
        assert now[number] == trial, f"trial {number} changed after its end"


def check_store(store: Path, trials: int) -> None:
    """Check that all trials ended once, in Optuna and in MLflow alike, with whole curves."""
    found = read_trials(store)
    assert [trial.number for trial in found] == list(range(trials)), [trial.number for trial in found]
    client = MlflowStore(store).client
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id], max_results=10 * trials)
    by_name = {run.info.run_name: run for run in runs}
    assert len(by_name) == len(runs), "a run is there twice"
    assert by_name.keys() == {NAME, *(f"trial-{number:04d}" for number in range(trials))}
    ends = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}
    assert by_name[NAME].info.status == "FINISHED"
    for trial in found:
        assert trial.state in ends, f"trial {trial.number} is {trial.state.name}: {trial.user_attrs}"
        run = by_name[f"trial-{trial.number:04d}"]
        assert run.info.status == ends[trial.state], f"{run.info.run_name} is {run.info.status}"
        assert run.info.run_id == trial.user_attrs[RUN_ID]
        rate = trial.params["training.learning_rate"]
        curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, METRIC)]
        last = max(trial.intermediate_values)
        assert curve == [(epoch, judge(rate, epoch)) for epoch in range(1, last + 1)], f"{run.info.run_name}: {curve}"
        assert trial.intermediate_values == dict(curve)
        assert (trial.state == TrialState.COMPLETE) == (last == 6), f"trial {trial.number} ended at epoch {last}"


def list_running(store: Path) -> list[str]:
    """Return the names of the runs that MLflow shows as running."""
    mlflow = MlflowStore(store)
    return [mlflow.client.get_run(run_id).info.run_name for run_id in mlflow.list_running(NAME)]


def summarize(store: Path) -> list[tuple[Any, ...]]:
    """Return all that must not depend on kills, with one worker."""
    return [
        (t.number, t.state, t.params, t.values, t.intermediate_values, dict(t.constraints)) for t in read_trials(store)
    ]
