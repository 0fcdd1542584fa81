"""Lives of a sweep, each in a process of its own that somebody kills: all of `cityopt sweep` but data and training.

Where the study is on a server, several live at once, as `cityopt worker` does, in one store or each in its own.

A life is forked, so that it need not import everything anew, and begins with nothing open. The preparation of data is
left out; the worker's process is real, and trains as `worker.py` says.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from cityopt.config import StudyConfig
from cityopt.errors import CityoptError
from cityopt.search import sweep
from cityopt.search.attempts import ATTEMPTS, FIRST_ATTEMPT, MAX_STALLED
from cityopt.search.executors import local
from cityopt.search.file_storage import FileStorage
from cityopt.search.observer import Observer, Standing
from cityopt.search.preparation import PreparedStudy
from cityopt.search.storage import join_services, open_storage
from cityopt.settings import validate
from cityopt.tracking import mlflow_patience

NAME = "chaos"
EPOCHS, STARTUP = 6, 4
"""Of each trial; trials whose settings follow from the seed alone."""
PATIENCE_S = 400.0
"""An MLflow server that starts on a busy machine takes a minute or two."""
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
        "training": {"epochs": EPOCHS},
        "search": {
            "trials": trials,
            "space": {"training.learning_rate": _RATE},
            "sampler": {"name": "tpe", "startup_trials": STARTUP},
            "pruner": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
        },
    }
    return validate(StudyConfig, tree, origin="scripts/chaos")


@dataclass(slots=True)
class Life:
    """One process, and what it has come to."""

    pid: int
    store: Path
    marker: Path
    """There once the life has finished what earlier ones left half done; a byte for each epoch since."""
    num_epochs: int = 0
    cold_kills: int = 0

    @property
    def has_begun(self) -> bool:
        """Whether it is at its trials."""
        return self.marker.exists()

    def may_kill_worker(self) -> bool:
        """Say whether a worker may be killed: by design a sweep stops when three in a row die before they are ready."""
        seen = self.marker.stat().st_size if self.has_begun else 0
        self.cold_kills = self.cold_kills + 1 if seen == self.num_epochs else 1
        self.num_epochs = seen
        return self.cold_kills <= 2


class Lives:
    """The lives of one study, in `stores` of which each may point to a `database` and an MLflow server."""

    def __init__(
        self, *stores: Path, workers: int = 1, database: str | None = None, tracking_uri: str | None = None
    ) -> None:
        self.stores, self.workers = stores, workers
        self._numbers = count()
        for store in stores:
            store.mkdir(parents=True)
            join_services(store, database, tracking_uri)
            stand_in = Path(__file__).with_name("worker.py")
            (store / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
            (store / "python").chmod(0o755)

    @property
    def store(self) -> Path:
        """One of the stores: studies and runs are the same in all."""
        return self.stores[0]

    def begin(self, trials: int, store: Path | None = None) -> Life:
        """Begin a life in a store."""
        sys.stdout.flush()
        place = store or self.store
        marker = place / f"life-{next(self._numbers)}"
        pid = os.fork()
        if pid:
            return Life(pid, place, marker)
        code = 1
        try:
            code = self._live(trials, place, marker)
        except CityoptError as error:
            code = error.exit_code
            if code == 1:
                print(f"a life ended with: {error}", file=sys.stderr, flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _live(self, trials: int, store: Path, marker: Path) -> int:
        config = configure(trials)
        prepared = PreparedStudy(config, store, "f" * 16, ("a",), ("b",), _ANCHORS)
        sweep.check_dataset_exists = lambda root: None
        sweep.prepare_study = lambda *_, **__: prepared
        local.sys = _Python(str(store / "python"))
        mlflow_patience.PATIENCE_S = PATIENCE_S / 2
        found = sweep.run_sweep(
            config, store=store, data="synthetic", device="cpu", observer=_Marker(marker), workers=self.workers
        )
        return found.exit_code

    def wait_for_moment(self, life: Life, delay_s: float, *, after_begin: bool) -> bool:
        """Wait for a random moment of a life, maybe after its first trial began; False when it ended meanwhile."""
        while after_begin and not life.has_begun and not is_over(life.pid):
            time.sleep(0.01)
        deadline = time.monotonic() + delay_s
        while time.monotonic() < deadline or is_fragile(self.store):
            if is_over(life.pid):
                return False
            time.sleep(0.02)
        return True


class _Marker(Observer):
    """Leaves a file when all is reconciled, and notes there that a worker lives."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin_study(self, standing: Standing) -> None:
        """Leave the file."""
        self._path.touch()

    def show_epoch(self, name: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Add a byte."""
        with self._path.open("a") as file:
            file.write(".")


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
        storage.engine.dispose()  # the next life, a fork, would have the connections too, and undo their work
        if isinstance(storage, FileStorage):
            storage._connection.close()


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


def await_end(life: Life) -> int:
    """Return how a life ended: its exit code, or minus the signal."""
    pid = life.pid
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


def choose_kill(rng: random.Random, servers: list[str]) -> tuple[str, signal.Signals]:
    """Return whom to kill, and how."""
    return rng.choice(
        [
            *((server, how) for server in servers for how in (signal.SIGKILL, signal.SIGINT)),
            ("coordinator", signal.SIGKILL),
            ("coordinator", signal.SIGKILL),
            ("coordinator", signal.SIGTERM),
            ("coordinator", signal.SIGINT),
            ("worker", signal.SIGKILL),
            ("worker", signal.SIGTERM),
        ]
    )
