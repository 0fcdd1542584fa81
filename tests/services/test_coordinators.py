"""Several coordinators on one study in PostgreSQL: each a process, with a clock for a training, and killed."""

import itertools
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from coordinator_process import AP, build_config
from optuna.trial import FrozenTrial, TrialState
from postgres import Cluster

from cityopt.runtime import derive_seed
from cityopt.search.requests import retry_failed, stop_study
from cityopt.search.status import RUN_ID, read_status
from cityopt.search.storage import join_services, open_storage
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.services
PATIENCE_S = 90
LEASE_S = 6.0
NAME = "shared"
_NUMBERS = itertools.count()
Prepare = Callable[..., list["Process"]]


class Process:
    """A coordinator, on a machine of its own unless it is told otherwise, and the lines that it said."""

    def __init__(self, store: Path, **options: Any) -> None:
        machine = f"machine {next(_NUMBERS)}"
        given = {
            "machine": machine,
            "name": NAME,
            "trials": 6,
            "epochs": 4,
            "epoch_s": 0.4,
            "lease_s": LEASE_S,
            **options,
        }
        command = [sys.executable, str(Path(__file__).with_name("coordinator_process.py")), str(store)]
        self._process = subprocess.Popen(
            [*command, json.dumps(given | options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._fresh: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Wait for a line that has not been looked at."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                line = self._fresh.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"nobody said {pattern!r}:\n" + "\n".join(self.lines))
            if found := re.search(pattern, line):
                return found

    def go(self) -> "Process":
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self

    def send(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def end(self) -> int:
        """Wait for its end."""
        code = self._process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def kill(self) -> None:
        """End it if it is still there."""
        self._process.kill()
        self.end()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    @property
    def begun(self) -> list[tuple[int, int, int]]:
        """The trials that it began: number, epochs that were done, seed."""
        found = [re.fullmatch(r"begin trial-(\d+) (\d+) (\d+)", line) for line in self.lines]
        return [(int(m[1]), int(m[2]), int(m[3])) for m in found if m]

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self.lines.append(line.rstrip())
            self._fresh.put(line)


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = MlflowStore(tmp_path_factory.mktemp("mlflow"))
    store.open_experiment("another study")
    return store.store


@pytest.fixture
def store(database: str, postgres: Cluster, empty_mlflow: Path, tmp_path: Path) -> Path:
    """A store, shared by all machines, whose studies are on the server."""
    shutil.copytree(empty_mlflow, tmp_path / "store")
    postgres.wait_until_up_for(LEASE_S)
    return join_services(tmp_path / "store", database, None)


@pytest.fixture
def prepare(store: Path) -> Iterator[Prepare]:
    """Return a function that prepares coordinators, which begin together when they are let `go`."""
    prepared: list[Process] = []

    def prepare(count: int, **options: Any) -> list[Process]:
        fresh = [Process(store, **options) for _ in range(count)]
        prepared.extend(fresh)
        for process in fresh:
            process.wait_for("ready")
        return fresh

    yield prepare
    for process in prepared:
        process.kill()


def read_trials(store: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=NAME, storage=open_storage(store)).get_trials()


def read_runs(store: Path) -> dict[str, Any]:
    client = MlflowStore(store).client
    found = client.search_runs([client.get_experiment_by_name(NAME).experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), sorted(run.info.run_name for run in found)
    return runs


def check_whole(store: Path, trials: int, epochs: int = 4) -> None:
    """Check that a study is as if one coordinator had run it undisturbed."""
    found = read_trials(store)
    config = build_config(NAME, trials, epochs)
    assert [t.number for t in found] == list(range(trials)) and {t.state for t in found} == {TrialState.COMPLETE}
    assert [t.params for t in found if t.params == config.search.baselines[0]] == [found[0].params]
    runs = read_runs(store)
    assert sorted(runs) == sorted([NAME, *(f"trial-{number:04d}" for number in range(trials))])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = MlflowStore(store).client
    for trial in found:
        run = runs[f"trial-{trial.number:04d}"]
        assert trial.user_attrs[RUN_ID] == run.info.run_id
        assert run.data.tags["mlflow.parentRunId"] == runs[NAME].info.run_id
        assert run.data.tags["cityopt.seed"] == str(derive_seed(0, "trial", trial.number))
        curve = {point.step: point.value for point in client.get_metric_history(run.info.run_id, AP)}
        assert curve == trial.intermediate_values and len(curve) == epochs
    best = {p.step: p.value for p in client.get_metric_history(runs[NAME].info.run_id, f"best/{AP}")}
    assert sorted(best) == list(range(trials)) and max(best.values()) == max(t.value for t in found)
    status = read_status(store, NAME)
    assert status.counts["complete"] == trials and status.spending is not None and status.spending.trials_left == 0
    assert f"{trials} complete" in runs[NAME].data.tags["mlflow.note.content"]
    assert read_leases(store) == []


def read_leases(store: Path) -> list[tuple[str, str]]:
    with open_storage(store).engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT subject, owner FROM cityopt_leases ORDER BY subject").all()
    return [(str(subject), str(owner)) for subject, owner in rows if owner != "nobody"]


def test_four_coordinators_complete_exactly_the_trials_asked_for(store: Path, prepare: Prepare):
    coordinators = prepare(4, trials=14, epoch_s=0.3)
    for one in coordinators:
        one.go()
    assert [one.end() for one in coordinators] == [0] * 4, "\n".join(coordinators[0].lines)
    begun = [number for one in coordinators for number, _, _ in one.begun]
    assert sorted(begun) == list(range(14)) and all(one.begun for one in coordinators)
    check_whole(store, 14)


def test_trial_of_a_killed_coordinator_goes_on_under_its_number_and_seed(store: Path, prepare: Prepare):
    doomed, other = prepare(2, trials=3, epochs=12)
    other.go()
    number = int(doomed.go().wait_for(r"epoch trial-(\d+) 5")[1])
    doomed.send(signal.SIGKILL)
    killed = time.monotonic()
    other.wait_for(rf"begin trial-{number:04d} ")
    assert time.monotonic() - killed > 0.5 * LEASE_S  # not before its lease ran out
    assert other.end() == 0
    (resumed,) = [one for one in other.begun if one[0] == number]
    assert resumed[1] >= 5 and resumed[2] == derive_seed(0, "trial", number)
    assert sorted({n for n, _, _ in doomed.begun + other.begun}) == list(range(3))
    check_whole(store, 3, epochs=12)


def test_trial_goes_on_at_once_when_its_coordinator_was_killed_on_the_same_machine(store: Path, prepare: Prepare):
    doomed, other = prepare(2, trials=2, lease_s=600.0, machine="one")
    doomed.go().wait_for(r"epoch trial-0000 2")
    doomed.send(signal.SIGKILL)
    doomed.end()
    assert other.go().end() == 0
    assert [(number, done >= 2) for number, done, _ in other.begun] == [(0, True), (1, False)]
    check_whole(store, 2)


def test_trial_of_a_slow_coordinator_is_not_taken(store: Path, prepare: Prepare):
    lease_s = 8.0
    slow, other = prepare(2, trials=5, epochs=8, lease_s=lease_s)
    slow.go().wait_for(r"epoch trial-\d+ 2")
    other.go()
    for _ in range(2):
        slow.send(signal.SIGSTOP)
        time.sleep(0.5 * lease_s)  # with the renewal before it, and seconds to wake up, less than a lease
        slow.send(signal.SIGCONT)
        time.sleep(0.5 * lease_s)
    assert slow.end() == other.end() == 0
    assert sorted(number for one in (slow, other) for number, _, _ in one.begun) == list(range(5))
    check_whole(store, 5, epochs=8)


def test_coordinator_writes_nothing_more_when_it_wakes_after_its_lease(store: Path, prepare: Prepare):
    sleeper, other = prepare(2, trials=2, epochs=8)
    sleeper.go().wait_for(r"epoch trial-0000 2")
    sleeper.send(signal.SIGSTOP)
    other.go().wait_for("begin trial-0000 ")
    before = sum(line.startswith("epoch trial-0000") for line in sleeper.lines)
    sleeper.send(signal.SIGCONT)
    sleeper.wait_for("Trial 0 is another coordinator's")
    assert sleeper.end() == other.end() == 0
    assert sum(line.startswith("epoch trial-0000") for line in sleeper.lines) <= before + 1
    check_whole(store, 2, epochs=8)


def test_trials_go_on_at_once_when_their_coordinator_is_told_to_leave(store: Path, prepare: Prepare):
    leaver, other = prepare(2, trials=3, epochs=20, lease_s=600.0)
    other.go()
    number = int(leaver.go().wait_for(r"epoch trial-(\d+) 3")[1])
    leaver.send(signal.SIGTERM)
    assert leaver.end() == 0 and leaver.lines[-1] == "left"
    assert other.end() == 0
    (resumed,) = [one for one in other.begun if one[0] == number]
    assert resumed[1] >= 3
    check_whole(store, 3, epochs=20)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_is_lost_when_the_database_is_away_for_a_while(
    store: Path, prepare: Prepare, postgres: Cluster, end: str
):
    away_s = 30.0 if end == "stop" else 2 * LEASE_S
    coordinators = prepare(2, trials=3, epochs=10, epoch_s=0.8)
    for one in coordinators:
        one.go()
    for one in coordinators:
        one.wait_for(r"epoch trial-\d+ 2")
    getattr(postgres, end)()
    begin = time.monotonic()
    try:
        for one in coordinators:
            one.wait_for("database does not answer")
            one.wait_for(r"epoch trial-\d+ 10")  # training went on
        time.sleep(max(0.0, away_s - (time.monotonic() - begin)))
    finally:
        postgres.start()
    for one in coordinators:
        one.wait_for("database answers again")
        assert one.end() == 0
    begun = [number for one in coordinators for number, _, _ in one.begun]
    assert sorted(begun) == list(range(3)), [one.lines for one in coordinators]  # nobody took another's trial
    check_whole(store, 3, epochs=10)


def test_all_coordinators_stop_and_go_on_when_they_are_asked_to(store: Path, prepare: Prepare):
    *coordinators, again = prepare(3, trials=2, epochs=30)
    for one in coordinators:
        one.go()
    for one in coordinators:
        one.wait_for(r"epoch trial-\d+ 2")
    assert "nothing is lost" in stop_study(NAME, store=store)
    assert [one.end() for one in coordinators] == [0, 0]
    assert {t.state for t in read_trials(store)} == {TrialState.RUNNING}
    assert {run.info.status for run in read_runs(store).values()} == {"FINISHED", "KILLED"}
    assert read_status(store, NAME).counts["waiting"] == 2
    assert "No trial" in retry_failed(NAME, "any", store=store)
    assert again.go().end() == 0
    assert [done >= 2 for _, done, _ in again.begun] == [True, True]
    check_whole(store, 2, epochs=30)


def test_study_run_is_written_on_when_its_writer_leaves(store: Path, prepare: Prepare):
    writer, other = prepare(2, trials=5)
    writer.go().wait_for(r"epoch trial-0000 1")
    other.go().wait_for(r"epoch trial-\d+ 2")
    writer.send(signal.SIGTERM)
    assert writer.end() == other.end() == 0
    check_whole(store, 5)
