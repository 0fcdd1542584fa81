"""A machine that has nothing but the two addresses: it reports, promotes and predicts what another one searched, and
what it cross-validates itself is there for the other one."""

import shutil
from pathlib import Path

import pytest
from command_line import STUDY, run
from mlflow_server import run_server

from cityopt.search.status import read_status
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import read_records
from cityopt.tracking.run_folder import read_status as read_end

pytestmark = pytest.mark.services
LOSS = "train/loss/total"
STAGES = (
    "--set",
    "promotion.stages=[{name: pretrain, model: semantic_fpn, epochs: 1, overrides: {model.semantic_head_channels: 16}},"
    " {name: tune, start_from: pretrain, epochs: 2}]",
)


def check_stages(mlflow: MlflowStore) -> None:
    """Look for the two trainings of a promotion, of which the second began with the weights of the first."""
    found = [mlflow.client.get_run(mlflow.find_run("tiny", f"promotion-0001{end}") or "") for end in ("-pretrain", "")]
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert [run.data.tags["cityopt.stage"] for run in found] == ["pretrain", "tune"]
    assert [run.data.params["model.family"] for run in found] == ["semantic_fpn", "mask_rcnn"]
    assert [len(mlflow.client.get_metric_history(run.info.run_id, LOSS)) for run in found] == [1, 2]
    assert found[0].info.run_id in found[1].data.params["model.weights"]


def test_study_is_read_promoted_and_used_from_another_store(
    database: str, template_store: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    ignored = shutil.ignore_patterns("*.db*", "*.lock")
    for store in (here, there):
        shutil.copytree(template_store, store, ignore=ignored)  # both have the data, as nodes of a cluster do
    with run_server() as server:
        services = ("--storage", database, "--tracking-uri", server.url)
        options = ("--study", STUDY, "--device", "cpu")
        done = run("sweep", *options, "--trials", 3, "--store", here, *services)
        assert done.code == 0, done
        told = run("report", "--study", STUDY, "--store", there, "--out", tmp_path / "report.html", *services)
        assert told.code == 0 and "may lack" not in told.output, told
        best = read_status(there, "tiny").best
        assert best is not None and best.run_id is not None
        mine, theirs = (store / "runs" / best.run_id for store in (here, there))
        assert read_records(theirs) == read_records(mine) and read_end(theirs) == read_end(mine)
        pictures = [{p.name: p.read_bytes() for p in folder.glob("artifacts/overlays/*")} for folder in (mine, theirs)]
        assert pictures[0] == pictures[1] != {} and not (theirs / "best.pt").exists()
        promoted = run("promote", *options, *STAGES, "--store", there)  # the store knows its services by now
        assert promoted.code == 0 and "models:/cityopt-tiny@champion (version 1)" in promoted.output, promoted
        model = ("--model", "models:/cityopt-tiny@champion", "--device", "cpu")
        used = run("predict", there / "cache", *model, "--store", here, "--out", tmp_path / "found")
        assert used.code == 0 and list((tmp_path / "found" / "overlays").iterdir()), used
        check_stages(MlflowStore(here))
        crossed = ("crossval", *options, "--folds", 2, "--no-final", "--store")
        first, again = (run(*crossed, store) for store in (there, here))
        assert (first.code, again.code) == (0, 0), (first, again)
        assert "complete already" in again.output and "fold-" not in again.output, again
        told = [answer.output[answer.output.index("±") :].rpartition("/")[0] for answer in (first, again)]
        assert told[0] == told[1]  # but for the store's name
        where = run("ui", "--store", there)
        assert where.code == 0 and server.url in where.output
