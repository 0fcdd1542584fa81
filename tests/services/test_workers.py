"""`cityopt worker` on nodes with stores of their own: they share a study by two addresses, and what one lost."""

import shutil
from pathlib import Path

import optuna
import pytest
from command_line import STUDY, kill, run, run_until
from mlflow_server import run_server
from optuna.trial import TrialState

from cityopt.search.status import RUN_ID
from cityopt.search.storage import open_database
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.services
METRIC = "train/loss/total"


def test_worker_takes_over_a_trial_whose_folder_is_on_a_lost_node(
    database: str, template_store: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for store in (here, there):
        shutil.copytree(template_store, store, ignore=shutil.ignore_patterns("*.db*", "*.lock"))
    with run_server() as server:
        join = ("--study", STUDY, "--device", "cpu", "--trials", 2, "--storage", database, "--tracking-uri", server.url)
        lost = run_until("trial-0000 epoch 2/4", kill, "worker", *join, "--store", here)
        assert lost.code == -9, lost
        done = run("worker", *join, "--store", there)
        assert done.code == 0 and "Next: cityopt promote" in done.output and "Report: " in done.output, done
        assert "trial-0000: what it had is in the store of another machine; it begins again at epoch 1." in done.output
        trials = optuna.load_study(study_name="tiny", storage=open_database(database)).get_trials()
        assert len(trials) == 2 and trials[0].state == TrialState.COMPLETE and trials[1].state.is_finished()
        mlflow = MlflowStore(there)
        experiment = mlflow.open_experiment("tiny")
        runs = mlflow.client.search_runs([experiment], order_by=["attributes.start_time ASC"])
        first, again = [run for run in runs if run.info.run_name == "trial-0000"]
        assert (first.info.status, first.data.tags["cityopt.state"]) == ("KILLED", "lost")
        assert (again.info.status, again.data.tags["cityopt.state"]) == ("FINISHED", "complete")
        assert again.info.run_id == trials[0].user_attrs[RUN_ID] and (there / "runs" / again.info.run_id).is_dir()
        curve = {p.step: p.value for p in mlflow.client.get_metric_history(again.info.run_id, METRIC)}
        assert curve == trials[0].intermediate_values and sorted(curve) == [1, 2, 3, 4]
        assert sorted(run.info.run_name for run in runs) == ["tiny", "trial-0000", "trial-0000", "trial-0001"]
        assert not mlflow.list_running("tiny")
        parent = mlflow.find_parent("tiny")
        assert parent and "report.html" in [file.path for file in mlflow.client.list_artifacts(parent)]


def test_worker_refuses_a_store_that_nobody_could_join(template_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(template_store, tmp_path / "store")
    refused = run("worker", "--study", STUDY, "--store", store)
    assert refused.code == 1 and "--storage" in refused.errors and "cityopt sweep --study tiny" in refused.errors
