"""What must hold after all kills: nothing lost, nothing doubled, nothing running, and the study that it would be."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from chaos_monkey.lives import EPOCHS, NAME, read_trials
from chaos_monkey.worker import METRIC, judge
from cityopt.search.status import RUN_ID
from cityopt.store import run_folder
from cityopt.tracking.deferred_run import find_mlflow_id
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import read_records

_ENDS = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED"}


def check_finished(before: Mapping[int, FrozenTrial], now: list[FrozenTrial]) -> None:
    """Check that trials that had ended are untouched."""
    for number, trial in before.items():
        assert now[number] == trial, f"trial {number} changed after its end"


def check_store(stores: Sequence[Path], trials: int) -> None:
    """Check that all trials ended once, in Optuna, in MLflow and in a folder alike, with whole curves."""
    found = read_trials(stores[0])
    assert [trial.number for trial in found] == list(range(trials)), [trial.number for trial in found]
    client = MlflowStore(stores[0]).client
    runs = client.search_runs([client.get_experiment_by_name(NAME).experiment_id], max_results=10 * trials)
    by_name = {run.info.run_name: run for run in runs if run.data.tags.get("cityopt.state") != "lost"}
    lost = [run for run in runs if run.data.tags.get("cityopt.state") == "lost"]
    names = Counter(run.info.run_name for run in runs if run not in lost)
    assert len(by_name) + len(lost) == len(runs), f"a run is there twice: {names.most_common(1)}"
    assert len(stores) > 1 or not lost, "a run was given up whose folder is there"
    assert {run.info.status for run in lost} <= {"KILLED"}
    assert by_name.keys() == {NAME, *(f"trial-{number:04d}" for number in range(trials))}
    assert by_name[NAME].info.status == "FINISHED"
    for trial in found:
        assert trial.state in _ENDS, f"trial {trial.number} is {trial.state.name}: {trial.user_attrs}"
        run = by_name[f"trial-{trial.number:04d}"]
        assert run.info.status == _ENDS[trial.state], f"{run.info.run_name} is {run.info.status}"
        [folder] = [path for store in stores if (path := run_folder(store, trial.user_attrs[RUN_ID])).is_dir()]
        assert find_mlflow_id(folder) == run.info.run_id
        rate, last = trial.params["training.learning_rate"], max(trial.intermediate_values)
        history = client.get_metric_history(run.info.run_id, METRIC)
        curve = {epoch: judge(rate, epoch) for epoch in range(1, last + 1)}
        assert [(point.step, point.value) for point in history] == list(curve.items()), f"{run.info.run_name}: {curve}"
        assert {record.step: record.metrics[METRIC] for record in read_records(folder)[0]} == curve
        assert trial.intermediate_values == curve
        assert (trial.state == TrialState.COMPLETE) == (last == EPOCHS), f"trial {trial.number} ended at epoch {last}"


def list_running(store: Path) -> list[str]:
    """Return the names of the runs that MLflow shows as running."""
    mlflow = MlflowStore(store)
    return [mlflow.client.get_run(run_id).info.run_name for run_id in mlflow.list_running(NAME)]


def summarize(trials: Sequence[FrozenTrial]) -> list[tuple[Any, ...]]:
    """Return all that must not depend on kills, with one worker."""
    return [(t.number, t.state, t.params, t.values, t.intermediate_values, dict(t.constraints)) for t in trials]
