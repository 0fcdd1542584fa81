"""Lives of a sweep, each in a process of its own that somebody kills: all of `cityopt sweep` but data and training.

A life is forked, so that it need not import everything anew, and begins with nothing open. The preparation of data is
left out; the worker's process is real, and trains as `worker.py` says.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from cityopt.config import StudyConfig
from cityopt.errors import CityoptError
from cityopt.search import sweep
from cityopt.search.attempts import ATTEMPTS, FIRST_ATTEMPT, MAX_STALLED
from cityopt.search.executors import local
from cityopt.search.observer import Observer, Standing
from cityopt.search.preparation import PreparedStudy
from cityopt.search.storage import join_services, open_storage
from cityopt.settings import validate

NAME = "chaos"
PATIENCE_S = 120.0
_RATE = {"type": "float", "low": 1e-5, "high": 1e-1, "log": True}
_ANCHORS = {
    "sizes": [[8.0] * 3] * 5,
    "ratios": [[0.5, 1.0, 2.0]] * 5,
    "adopted": "default",
    "reason": "none are fitted",
}


def configure(trials: int) -> StudyConfig:
    """Return a study of short trials, some of which are pruned."""
    tree = {
        "name": NAME,
        "threads": 1,
        "model": {"weights": "none", "freeze_depth": 0},
        "training": {"epochs": 6},
        "search": {
            "trials": trials,
            "space": {"training.learning_rate": _RATE},
            "sampler": {"name": "tpe", "startup_trials": 4},
            "pruner": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
        },
    }
    return validate(StudyConfig, tree, origin="scripts/chaos")


class Lives:
    """The lives of one sweep in one store, which may point to a `database` on a server."""

    def __init__(self, store: Path, *, workers: int, database: str | None = None) -> None:
        self.store, self.workers = store, workers
        store.mkdir(parents=True)
        join_services(store, database, None)
        self._num_records = self._cold_kills = 0
        self.marker = store / "reconciled"
        """There once a life has finished what earlier ones left half done."""
        self._python = store / "python"
        stand_in = Path(__file__).with_name("worker.py")
        self._python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
        self._python.chmod(0o755)

    def begin(self, trials: int) -> int:
        """Begin a life and return its process id."""
        sys.stdout.flush()
        self.marker.unlink(missing_ok=True)
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            code = self._live(trials)
        except CityoptError as error:
            code = error.exit_code
            if code == 1:
                print(f"a life ended with: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def _live(self, trials: int) -> int:
        config = configure(trials)
        prepared = PreparedStudy(config, self.store, "f" * 16, ("a",), ("b",), _ANCHORS)
        sweep.check_dataset_exists = lambda root: None
        sweep.prepare_study = lambda *_, **__: prepared
        local.sys = _Python(str(self._python))
        found = sweep.run_sweep(
            config,
            store=self.store,
            data="synthetic",
            device="cpu",
            observer=_Marker(self.marker),
            workers=self.workers,
        )
        return found.exit_code

    def may_kill_worker(self) -> bool:
        """Say whether a worker may be killed: by design a sweep stops when three in a row die before they are ready."""
        records = sum(path.read_bytes().count(b"\n") for path in self.store.glob("runs/*/metrics.jsonl"))
        self._cold_kills = self._cold_kills + 1 if records == self._num_records else 1
        self._num_records = records
        return self._cold_kills <= 2

    def wait_for_moment(self, pid: int, delay_s: float, *, after_begin: bool) -> bool:
        """Wait for a random moment of a life, maybe after its first trial began; False when it ended meanwhile."""
        while after_begin and not self.marker.exists() and not is_over(pid):
            time.sleep(0.01)
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline or is_fragile(self.store):
            if is_over(pid):
                return False
            time.sleep(0.02)
        return True


class _Marker(Observer):
    """Leaves a file when all is reconciled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin_study(self, standing: Standing) -> None:
        """Leave the file."""
        self._path.touch()


class _Python:
    """The `sys` of the local executor, whose interpreter is the stand-in."""

    def __init__(self, executable: str) -> None:
        self.executable = executable


def read_trials(store: Path) -> list[FrozenTrial]:
    """Return the trials as Optuna has them; none where no life got that far."""
    storage = open_storage(store)  # which lets one process at a time make the tables
    names = optuna.get_all_study_names(storage)
    try:
        return optuna.load_study(study_name=NAME, storage=storage).get_trials() if NAME in names else []
    finally:
        storage.engine.dispose()  # the next life, a fork, would have the connections too


def is_fragile(store: Path) -> bool:
    """Say whether one more kill might fail a trial, by design: it has lost attempts in a row without an epoch."""
    for trial in read_trials(store):
        seen = trial.user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
        is_stalled = seen["stalled"] >= MAX_STALLED - 1 and seen["epoch"] == max(trial.intermediate_values, default=0)
        if trial.state == TrialState.RUNNING and is_stalled:
            return True
    return False


def is_over(pid: int) -> bool:
    """Say whether a child has ended, without taking its exit code."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def await_end(pid: int) -> int:
    """Return how a child ended: its exit code, or minus the signal."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_over(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"a life did not end within {PATIENCE_S:.0f} s")
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def list_workers(pid: int) -> list[int]:
    """Return the worker processes of a life."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def no_orphans(pids: list[int]) -> Iterator[None]:
    """Check that workers are gone soon after the block, which ends their coordinator."""
    started = {pid: local.read_start_time(pid) for pid in pids}
    yield
    deadline = time.monotonic() + 10
    while alive := [pid for pid, begun in started.items() if begun and local.read_start_time(pid) == begun]:
        assert time.monotonic() < deadline, f"workers {alive} outlived their coordinator"
        time.sleep(0.01)


def choose_kill(rng: random.Random, *, has_server: bool) -> tuple[str, signal.Signals]:
    """Return whom to kill, and how."""
    return rng.choice(
        [
            *([("database", signal.SIGKILL), ("database", signal.SIGINT)] if has_server else []),
            ("coordinator", signal.SIGKILL),
            ("coordinator", signal.SIGKILL),
            ("coordinator", signal.SIGTERM),
            ("coordinator", signal.SIGINT),
            ("worker", signal.SIGKILL),
            ("worker", signal.SIGTERM),
        ]
    )
