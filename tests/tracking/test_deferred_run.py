"""Trials that begin while MLflow is away: made by it once when it answers, whole, whoever died in between."""

from pathlib import Path

import pytest
from test_mlflow_shipper import NUM_EPOCHS, MirroredRun, wait_for

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking import deferred_run
from cityopt.tracking.deferred_run import (
    CLOSED,
    DeferredRun,
    defer_run,
    find_mlflow_id,
    list_closed,
    list_unmade,
    make_deferred,
    name_request,
    note_closed,
)
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import write_dataset


class RunBegunAlone(MirroredRun):
    """A run whose folder MLflow has not heard of."""

    def __init__(self, store: MlflowStore, study: str) -> None:
        self.store, self.study = store, study
        store.open_parent(study)
        run = DeferredRun(study, "trial-0000", "trial", {"cityopt.trial": "0"})
        self.request = defer_run(store.store, name_request(study), run)
        self.folder = run_folder(store.store, self.request)

    @property
    def run_id(self) -> str:
        """The id of the one run that MLflow made."""
        (found,) = self.store._search(self.study, "attributes.run_name = 'trial-0000'", limit=9)
        return found

    def end(self, shipper: Shipper) -> None:
        """As `end`, under the id that the coordinator knows."""
        shipper.end(self.request, "KILLED", {"cityopt.state": "pruned"}, end_ms=99)


@pytest.fixture
def alone(mlflow_store: MlflowStore, study: str) -> RunBegunAlone:
    return RunBegunAlone(mlflow_store, study)


def test_run_is_made_and_goes_on_when_mlflow_answers(mlflow_store: MlflowStore, alone: RunBegunAlone) -> None:
    shipper = Shipper(mlflow_store, interval_s=0.02)
    alone.record(range(1, 3))
    shipper.watch(alone.request, alone.folder)
    wait_for(shipper, lambda: find_mlflow_id(alone.folder) is not None and len(alone.metrics) == 4)
    assert alone.status[0] == "RUNNING" and alone.run_id != alone.request
    alone.record(range(3, NUM_EPOCHS + 1))
    alone.end(shipper)
    assert shipper.drain(20) and shipper.close()
    alone.check_whole()
    tags = mlflow_store.client.get_run(alone.run_id).data.tags
    assert (tags["cityopt.trial"], tags["cityopt.request"]) == ("0", alone.request)
    assert tags["mlflow.parentRunId"] == mlflow_store.find_parent(alone.study)
    assert resolve_checkpoint(mlflow_store.store, alone.run_id).samefile(alone.folder / "best.pt")
    assert list_unmade(mlflow_store.store, alone.study) == []


@pytest.mark.parametrize("noted", [True, False], ids=["noted", "not noted"])
def test_next_process_makes_the_run_once_when_the_first_died_making_it(
    mlflow_store: MlflowStore, alone: RunBegunAlone, monkeypatch: pytest.MonkeyPatch, noted: bool
) -> None:
    """Of the first process MLflow heard; whether it could write down the answer makes no difference."""
    alone.record(range(1, NUM_EPOCHS + 1))

    def die(*_: object, **__: object) -> None:
        raise StoreError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "log", die)
        if not noted:
            patch.setattr(deferred_run, "write_json", die)
        first = Shipper(mlflow_store, interval_s=0.02)
        alone.end(first)
        wait_for(first, lambda: "killed" in first.problem)
        assert not first.close()
    assert (find_mlflow_id(alone.folder) is not None) == noted
    second = Shipper(mlflow_store, interval_s=0.02)
    second.catch_up(alone.study)
    assert second.drain(20) and second.close()
    alone.check_whole()


def test_run_that_mlflow_never_heard_of_is_sent_by_the_next_process(
    mlflow_store: MlflowStore, alone: RunBegunAlone, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.record(range(1, NUM_EPOCHS + 1))

    def refuse(*_: object) -> None:
        raise StoreError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "make_run", refuse)
        first = Shipper(mlflow_store, interval_s=0.02)
        alone.end(first)
        wait_for(first, lambda: "no connection" in first.problem)
        assert not first.close()
    assert list_unmade(mlflow_store.store, alone.study) == [alone.folder]
    second = Shipper(mlflow_store, interval_s=0.02)
    second.catch_up(alone.study)
    assert second.drain(20) and second.close()
    alone.check_whole()


def test_folder_that_nobody_uses_makes_no_run(mlflow_store: MlflowStore, alone: RunBegunAlone) -> None:
    """Its process was killed before the trial had it, so that the trial began in another."""
    shipper = Shipper(mlflow_store, interval_s=0.02)
    shipper.catch_up(alone.study)
    assert shipper.drain(20) and shipper.close()
    assert mlflow_store.find_run(alone.study, "trial-0000") is None


@pytest.mark.parametrize("step", ["symlink_to", "write_json"])
def test_run_whose_process_died_noting_it_is_found_by_the_id_that_mlflow_shows(
    mlflow_store: MlflowStore, alone: RunBegunAlone, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The next process sees it RUNNING, and ends it by that id before it looks for folders."""
    alone.record(range(1, NUM_EPOCHS + 1))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*(Path, step) if step == "symlink_to" else (deferred_run, step), die)
        make_deferred(alone.folder, lambda made: mlflow_store.make_run(alone.request, made))
    assert find_mlflow_id(alone.folder) is None
    folder = run_folder(mlflow_store.store, alone.run_id)
    assert folder.is_symlink() == (step == "write_json")
    shipper = Shipper(mlflow_store, interval_s=0.02)
    shipper.end(
        alone.run_id if folder.is_symlink() else alone.request, "KILLED", {"cityopt.state": "pruned"}, end_ms=99
    )
    assert shipper.drain(20) and shipper.close()
    alone.check_whole()
    assert folder.samefile(alone.folder)


def test_run_that_went_on_while_mlflow_was_away_is_sent_by_the_next_process(
    mlflow_store: MlflowStore, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow shows the end of an earlier attempt, so that it is not among the runs that are RUNNING."""
    run = MirroredRun(mlflow_store, study)
    write_dataset(run.folder, study, "digest", "root")
    mlflow_store.finish_run(run.run_id, "KILLED", {"cityopt.state": "interrupted"}, end_ms=1)
    note_closed(run.folder)
    run.record(range(1, NUM_EPOCHS + 1))

    def refuse(*_: object) -> None:
        raise StoreError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowStore, "reopen_run", refuse)
        first = Shipper(mlflow_store, interval_s=0.02)
        first.end(run.run_id, "KILLED", {"cityopt.state": "pruned"}, end_ms=99)
        wait_for(first, lambda: "no connection" in first.problem)
        assert not first.close()
    assert list_closed(mlflow_store.store, study) == [run.folder] and not list_closed(mlflow_store.store, "another")
    second = Shipper(mlflow_store, interval_s=0.02)
    second.catch_up(study)
    assert second.drain(20) and second.close()
    run.check_whole()
    assert not (run.folder / CLOSED).exists()
