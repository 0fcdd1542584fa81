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
        promoted = run("promote", *options, "--store", there)  # the store knows its services by now
        assert promoted.code == 0 and "models:/cityopt-tiny@champion (version 1)" in promoted.output, promoted
        model = ("--model", "models:/cityopt-tiny@champion", "--device", "cpu")
        used = run("predict", there / "cache", *model, "--store", here, "--out", tmp_path / "found")
        assert used.code == 0 and list((tmp_path / "found" / "overlays").iterdir()), used
        assert MlflowStore(here).find_run("tiny", "promotion-0001") is not None
        crossed = ("crossval", *options, "--folds", 2, "--no-final", "--store")
        first, again = (run(*crossed, store) for store in (there, here))
        assert (first.code, again.code) == (0, 0), (first, again)
        assert "complete already" in again.output and "fold-" not in again.output, again
        told = [answer.output[answer.output.index("±") :].rpartition("/")[0] for answer in (first, again)]
        assert told[0] == told[1]  # but for the store's name
        where = run("ui", "--store", there)
        assert where.code == 0 and server.url in where.output
