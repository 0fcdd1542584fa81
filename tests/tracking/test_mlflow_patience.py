"""A server that is away: asked again for a while, with one line, and an end that says nothing is lost."""

import threading
from pathlib import Path
from typing import Any

import pytest

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking import mlflow_patience
from cityopt.tracking.deferred_run import CLOSED, DeferredRun, list_unmade, name_request
from cityopt.tracking.mlflow_patience import PATIENCE_S, PatientStore
from cityopt.tracking.mlflow_store import MlflowStore, RefusedError


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(mlflow_patience, "time", clock)
    return clock


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def remote(tmp_path: Path, said: list[str]) -> PatientStore:
    return PatientStore(tmp_path, "http://127.0.0.1:9", on_wait=said.append)


def fail(monkeypatch: pytest.MonkeyPatch, name: str, times: int, kind: type[StoreError] = StoreError) -> list[str]:
    """Let a method of the plain store fail some times, then return its name; returns what was asked."""
    asked: list[str] = []

    def method(self: MlflowStore, *_: Any, **__: Any) -> str:
        asked.append(name)
        if len(asked) <= times:
            raise kind(f"MLflow could not {name}: connection refused.")
        return name

    monkeypatch.setattr(MlflowStore, name, method)
    return asked


CALLS = {
    "open_parent": ("study",),
    "find_run": ("study", "trial-0000"),
}


@pytest.mark.parametrize("name", CALLS)
def test_store_asks_again_with_one_line_when_the_server_was_away(
    name: str, remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fail(monkeypatch, name, 4)
    getattr(remote, name)(*CALLS[name])
    assert len(asked) == 5 and clock.now == 1 + 2 + 4 + 8
    assert len(said) == 2 and "connection refused" in said[0] and said[1] == "MLflow answers again."


def test_store_gives_up_and_says_that_nothing_is_lost_when_the_server_stays_away(
    remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fail(monkeypatch, "open_parent", 10**9)
    with pytest.raises(StoreError, match=r"Nothing is lost.*same command goes on") as error:
        remote.open_parent("study")
    assert "http://127.0.0.1:9" in str(error.value) and str(tmp_path) in str(error.value)
    assert PATIENCE_S / 2 < clock.now <= PATIENCE_S and len(said) == 1


def test_run_is_not_made_twice_when_the_answer_was_lost(
    remote: PatientStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def create(self: MlflowStore, study: str, name: str, *_: Any) -> str:
        made.append(name)
        raise StoreError("the answer was lost")

    monkeypatch.setattr(MlflowStore, "create_run", create)
    monkeypatch.setattr(MlflowStore, "find_run", lambda self, study, name: f"id of {name}" if name in made else None)
    assert remote.create_run("study", "fold-0003", "fold") == "id of fold-0003"
    assert made == ["fold-0003"]


def open_trial(store: PatientStore, number: int, *, may_exist: bool = False) -> str:
    """Open the run of a trial as its coordinator does."""
    run = DeferredRun("study", f"trial-{number:04d}", "trial", {"cityopt.trial": str(number)})
    return store.open_run(name_request("study", number), run, may_exist=may_exist)


def wait_for_probe(store: PatientStore) -> None:
    """Wait until the store's thread has found out whether its server answers."""
    for thread in threading.enumerate():
        if thread.name == "mlflow-probe":
            thread.join()


def test_trial_begins_in_a_folder_of_its_own_when_the_server_is_away(
    remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, probed = fail(monkeypatch, "create_run", 1), fail(monkeypatch, "check", 1)
    first, second = (open_trial(remote, number) for number in range(2))
    assert first != second and clock.now == 0.0
    assert [folder.name for folder in list_unmade(remote.store, "study")] == sorted([first, second])
    assert list_unmade(remote.store, "another") == []
    remote.reopen_run(first)  # a worker crashed meanwhile: MLflow has no such run, and need not be asked
    assert open_trial(remote, 0, may_exist=True) == first, "killed before the trial had its run"
    for number in range(2, 4):  # a look whether it is back comes to nothing, then another is due
        clock.now += 60
        assert open_trial(remote, number) in {folder.name for folder in list_unmade(remote.store, "study")}
        wait_for_probe(remote)
    assert (len(asked), len(probed)) == (1, 2), "no trial waits for a server that is known to be away"
    assert open_trial(remote, 4) == "create_run"
    assert len(said) == 2 and "Training goes on" in said[0] and said[1] == "MLflow answers again."


def test_adopted_trial_without_a_run_goes_on_when_the_server_is_away(
    remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its coordinator was killed between making the run and writing down its id."""
    fail(monkeypatch, "_search", 10**9)
    request = open_trial(remote, 0, may_exist=True)
    assert [folder.name for folder in list_unmade(remote.store, "study")] == [request]
    assert clock.now == 0.0 and len(said) == 1 and "Training goes on" in said[0]


def test_run_that_cannot_be_reopened_goes_on(
    remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fail(monkeypatch, "reopen_run", 1)
    fail(monkeypatch, "check", 0)
    remote.reopen_run("id")
    assert (run_folder(remote.store, "id") / CLOSED).is_file(), "the shipper is to reopen it"
    remote.reopen_run("id")
    clock.now += 60
    remote.reopen_run("id")
    wait_for_probe(remote)
    remote.reopen_run("id")
    assert len(asked) == 2 and clock.now == 60 and len(said) == 2


def test_store_does_not_wait_when_waiting_is_no_use(
    remote: PatientStore, said: list[str], clock: Clock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fail(monkeypatch, "reopen_run", 1, RefusedError)
    with pytest.raises(RefusedError):
        remote.reopen_run("id")
    fail(monkeypatch, "reopen_run", 1)
    with pytest.raises(StoreError, match="connection refused"):
        PatientStore(tmp_path, on_wait=said.append).reopen_run("id")  # its database is a file
    assert (clock.now, said) == (0.0, [])


def test_server_that_is_away_is_an_error_of_the_store(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLflow's own client and a port where nobody listens."""
    monkeypatch.setattr(mlflow_patience, "PATIENCE_S", 0.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreError, match=r"Connection refused\. .*Nothing is lost") as error:
        PatientStore(tmp_path, "http://127.0.0.1:9", on_wait=said.append).open_parent("study")
    assert "Pool" not in str(error.value) and "exception" not in str(error.value)
