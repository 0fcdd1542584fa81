"""One coordinator in a process of its own, whose training is a clock: `python coordinator_process.py STORE JSON`.

JSON: name, trials, epochs, epoch_s (seconds an epoch takes), lease_s, machine (on which it says that it is). An
epoch's value follows from the settings alone. It says `ready` on stdout when all is imported, and begins when it gets a
line; then `begin TRIAL DONE SEED`, `epoch TRIAL EPOCH`, and what the coordinator says.
"""

import json
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

sys.path.insert(0, str(Path(__file__).parents[1] / "search"))

from small_studies import DECAY, DEPTH, FACTS, RATE, make_config, score

from cityopt.config import RunConfig, StudyConfig
from cityopt.search import processes
from cityopt.search.coordinator import Coordinator
from cityopt.search.executors.base import Answer, EpochDone, Event, Executor, Job, JobEnded
from cityopt.search.leased_owner import open_ownership
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.store import open_store
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.mlflow_store import import_mlflow
from cityopt.tracking.run_folder import RunFolder, StaleAttemptError, begin_attempt, read_records

AP = "val/coco/segm/ap"
BASELINE = {RATE: 1e-3, DECAY: 0.01, DEPTH: 1}


class ClockExecutor(Executor):
    """One slot, in which an epoch is a while; it goes on from the epochs that the run's folder has."""

    def __init__(self, epoch_s: float) -> None:
        self._epoch_s = epoch_s
        self._job: Job | None = None
        self._due = 0.0

    def start(self) -> None: ...

    @property
    def num_free(self) -> int:
        return int(self._job is None)

    def submit(self, job: Job) -> None:
        begin_attempt(job.folder, job.token)
        self._job, self._due = job, time.monotonic() + self._epoch_s
        self._tracker = RunFolder(job.folder, job.token)
        self._done = len(read_records(job.folder)[0])
        self._is_stopped = False
        say(f"begin {job.config.name} {self._done} {job.config.seed}")

    def poll(self, timeout_s: float) -> list[Event]:
        if self._job is None or self._due > time.monotonic() + timeout_s:
            time.sleep(timeout_s)
            return []
        time.sleep(max(0.0, self._due - time.monotonic()))
        job = self._job
        if self._is_stopped or self._done == job.config.training.epochs:
            self._job = None
            outcome = "stopped" if self._is_stopped else "complete"
            return [JobEnded(job.run_id, outcome, result={"seconds": self._done * self._epoch_s})]
        self._done += 1
        try:
            self._tracker.log_metrics(rate(job.config, self._done), self._done)
        except StaleAttemptError as error:
            self._job = None
            return [JobEnded(job.run_id, "failed", reason="disk", message=str(error))]
        say(f"epoch {job.config.name} {self._done}")
        metrics = next(r.metrics for r in read_records(job.folder)[0] if r.step == self._done)
        return [EpochDone(job.run_id, self._done, metrics)]

    def answer(self, run_id: str, answer: Answer) -> None:
        is_over = answer == "stop" or (self._job is not None and self._done == self._job.config.training.epochs)
        self._is_stopped = answer == "stop"
        self._due = time.monotonic() + (0.0 if is_over else self._epoch_s)

    def abandon(self, run_id: str) -> None:
        say(f"abandon {run_id}")
        self._job = None

    def end_survivor(self, folder: Path) -> None: ...

    def close(self) -> None:
        self._job = None


class Loud(Observer):
    """Says all on stdout."""

    def say(self, text: str) -> None:
        say(text)

    def leave(self, text: str) -> None:
        say(text)


def rate(config: RunConfig, epoch: int) -> dict[str, float]:
    """Return an epoch's metrics: later ones are better, by a bit."""
    settings: dict[str, Any] = {
        RATE: config.training.learning_rate,
        DECAY: config.training.weight_decay,
        DEPTH: config.model.freeze_depth,
    }
    return {AP: score(settings) + 0.01 * epoch, "system/epoch_s": 0.1}


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def build_config(name: str, trials: int, epochs: int) -> StudyConfig:
    """Return the study that all coordinators of a test share."""
    return make_config(name=name, trials=trials, training={"epochs": epochs}, baselines=[BASELINE])


def main(store: Path, name: str, trials: int, epochs: int, epoch_s: float, lease_s: float, machine: str) -> None:
    """Run the coordinator to its end."""
    processes._name_machine, socket.gethostname = lambda: machine, lambda: machine
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    import_mlflow()
    say("ready")
    sys.stdin.readline()
    config, observer = build_config(name, trials, epochs), Loud()
    storage = open_storage(open_store(store))
    study, facts = open_study(storage, config, replace(FACTS))
    mlflow = PatientStore(store, on_wait=observer.say)
    with (
        open_ownership(storage, study, lease_s) as ownership,
        open_parent(mlflow, config, facts, observer, ownership) as (parent, shipper),
        ClockExecutor(epoch_s) as executor,
    ):
        coordinator = Coordinator(
            store=store,
            study=study,
            config=config,
            facts=facts,
            device="cpu",
            executor=executor,
            mlflow=mlflow,
            shipper=shipper,
            observer=observer,
            parent=parent,
            ownership=ownership,
        )
        coordinator.run()
    say("left")


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
