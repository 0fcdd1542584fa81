"""Trials that begin while MLflow is away: made by it once when it answers, whole, whoever died in between."""

import pytest
from test_mlflow_shipper import NUM_EPOCHS, MirroredRun, wait_for

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking import deferred_run
from cityopt.tracking.deferred_run import defer_run, find_mlflow_id, list_unmade, new_request
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore


class RunBegunAlone(MirroredRun):
    """A run whose folder MLflow has not heard of."""

    def __init__(self, store: MlflowStore, study: str) -> None:
        self.store, self.study = store, study
        store.open_parent(study)
        self.request = defer_run(store.store, new_request(), study, "trial-0000", "trial", {"cityopt.trial": 0})
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
