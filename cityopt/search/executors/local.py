"""Trials on this machine: warm worker processes, one per slot, each training many trials.

A worker is a fresh interpreter (`worker.py`) that inherits one pipe and no lock. When it dies its job is
reported as lost and a new worker takes its place; so it is with one that gives no sign of life (`silence.py`), but its
job has failed.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from cityopt.errors import StoreError
from cityopt.search.executors.base import (
    NEVER_BEGAN,
    TRACEBACK_SIGNAL,
    Answer,
    EpochDone,
    Event,
    Executor,
    Job,
    JobEnded,
    Progressed,
    WorkerReady,
)
from cityopt.search.executors.silence import HangRule, SilenceMeter
from cityopt.tracking.run_folder import begin_attempt, read_attempt

_MAX_EARLY_DEATHS = 3
_WARM_UP_S = 600.0
"""Seconds after which a worker that is not ready counts as dead: torch comes over slow networks too."""
_LAST_WORDS_S = 0.2
"""Seconds that a hung worker gets to write where it is into its run's log."""
_DEATH_S = 30.0
_MAX_LEFT_GIB = 0.25
"""Device memory that a run may leave behind in its worker, beyond what was there before the first."""
_POISONS_WORKER = ("crash", "oom")
"""Reasons after which a process may hold broken device state or memory: another one takes its slot."""


class LocalExecutor(Executor):
    """Runs jobs in a process for each of `devices`, with `threads` CPU threads each."""

    def __init__(
        self, *, devices: Sequence[str], threads: int, log_folder: Path, hang_rule: HangRule | None = None
    ) -> None:
        self._log_folder = log_folder
        self._environment = _worker_environment(threads)
        self._devices = tuple(devices)
        self._workers: list[_Worker] = []
        self._early_deaths = 0
        self._silence = SilenceMeter(hang_rule or HangRule())

    def start(self) -> None:
        """Spawn the workers; they import torch while the caller goes on."""
        self._log_folder.mkdir(parents=True, exist_ok=True)
        self._workers = [self._spawn(slot) for slot in range(len(self._devices))]

    @property
    def num_free(self) -> int:
        """Number of workers without a job, warm or not: a job waits in the pipe of one that warms up."""
        return sum(worker.job is None for worker in self._workers)

    def submit(self, job: Job) -> None:
        """Send a job to a free worker."""
        worker = next(worker for worker in self._workers if worker.job is None)
        worker.job, worker.silence_s, worker.has_epoch = job, 0.0, False
        begin_attempt(job.folder, job.token, worker.pid, read_start_time(worker.pid))
        worker.send(
            {
                "type": "measure" if job.measures_costs else "run",
                "run_id": job.run_id,
                "folder": str(job.folder),
                "token": job.token,
                "config": job.config.model_dump(mode="json"),
            }
        )

    def poll(self, timeout_s: float) -> list[Event]:
        """Return the events of all workers; a dead worker is replaced and its job reported as lost."""
        workers, events, begin = list(self._workers), list[Event](), time.monotonic()
        speaking = wait([worker.pipe for worker in workers], timeout_s)
        waited_s = min(time.monotonic() - begin, timeout_s + 1)  # more than that, and this process was suspended
        for worker in workers:
            worker.silence_s += waited_s
            try:
                if worker.pipe in speaking:
                    events.extend(self._read(worker))
                elif worker.has_ended:  # a process that it started may hold its end of the pipe open
                    events.extend(self._replace(worker))
                elif self._is_hung(worker):
                    events.extend(self._end_hung(worker))
            except (EOFError, OSError):
                events.extend(self._replace(worker))
        return events

    def answer(self, run_id: str, answer: Answer) -> None:
        """Answer the epoch that a run reported."""
        for worker in self._workers:
            if worker.job is not None and worker.job.run_id == run_id:
                worker.send({"type": "answer", "answer": answer})

    def abandon(self, run_id: str) -> None:
        """Kill the worker of a run and put another in its place."""
        for worker in list(self._workers):
            if worker.job is not None and worker.job.run_id == run_id:
                worker.kill()
                self._put_new(worker.slot)

    def end_survivor(self, folder: Path) -> None:
        """Kill the process that the folder's attempt names."""
        kill_survivor(folder)

    def close(self) -> None:
        """Kill the workers: what they have finished is on disk, and a training has nothing else to save."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _spawn(self, slot: int) -> "_Worker":
        return _Worker(slot, self._devices[slot], self._environment, self._log_folder / f"worker-{slot}.log")

    def _read(self, worker: "_Worker") -> list[Event]:
        message: dict[str, Any] = json.loads(worker.pipe.recv_bytes())
        kind, run_id = message.pop("type"), message.pop("run_id", "")
        if worker.is_warm:
            self._silence.learn(worker.silence_s)
        worker.silence_s = 0.0
        worker.has_epoch |= kind == "epoch"
        if kind == "ready":
            self._early_deaths = 0
            worker.is_warm = True
            return [WorkerReady(message["device"])]
        if kind == "progress":
            return [Progressed(run_id, message["progress"])]
        if kind == "epoch":
            return [EpochDone(run_id, message["epoch"], message["metrics"])]
        worker.job = None
        left_gib = message.pop("left_gib", 0.0)
        ended = JobEnded(run_id, **message)
        if (ended.outcome == "failed" and ended.reason in _POISONS_WORKER) or left_gib > _MAX_LEFT_GIB:
            worker.kill()
            self._put_new(worker.slot)
        return [ended]

    def _is_hung(self, worker: "_Worker") -> bool:
        if not worker.is_warm:
            return worker.silence_s > _WARM_UP_S
        return worker.job is not None and worker.silence_s > self._find_limit(worker)

    def _find_limit(self, worker: "_Worker") -> float:
        return self._silence.find_limit(has_epoch=worker.has_epoch)

    def _end_hung(self, worker: "_Worker") -> list[Event]:
        """Kill a worker that gives no sign of life, after it wrote down where it is; its job fails."""
        if worker.job is None or not worker.is_warm:
            return self._replace(worker)
        worker.ask_for_traceback()
        worker.kill()
        self._put_new(worker.slot)
        limit_s = self._find_limit(worker)
        message = (
            f"the worker gave no sign of life for {worker.silence_s:.0f} s, and {limit_s:.0f} s are the limit "
            "(search.hang_limit_s, search.hang_factor). The log of the run ends with where it was."
        )
        return [JobEnded(worker.job.run_id, "failed", reason="hung", message=message)]

    def _put_new(self, slot: int) -> None:
        self._workers[slot] = self._spawn(slot)

    def _replace(self, worker: "_Worker") -> list[Event]:
        ending = worker.kill()
        self._early_deaths += not worker.is_warm
        if self._early_deaths >= _MAX_EARLY_DEATHS:
            raise StoreError(f"workers die before they are ready ({ending}). Their log: {worker.log}")
        self._put_new(worker.slot)
        if worker.job is None:
            return []
        reason = "crash" if worker.is_warm else NEVER_BEGAN
        return [JobEnded(worker.job.run_id, "lost", reason=reason, message=f"the worker ended: {ending}")]


class _Worker:
    """One worker process and the coordinator's end of its pipe."""

    def __init__(self, slot: int, device: str, environment: dict[str, str], log: Path) -> None:
        self.slot, self.log = slot, log
        self.job: Job | None = None
        self.is_warm = False
        self.has_epoch = False
        """Whether its job finished an epoch here."""
        self.silence_s = 0.0
        """Seconds since it last said something, or was given a job."""
        self.pipe, theirs = Pipe()
        with log.open("ab") as file:
            self._process = _start_process(theirs, device, environment, file)
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; a dead worker is noticed by the next poll."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send_bytes(json.dumps(message).encode())

    def ask_for_traceback(self) -> None:
        """Let the process write where each of its threads is, however busy it is."""
        self._process.send_signal(TRACEBACK_SIGNAL)
        time.sleep(_LAST_WORDS_S)

    def kill(self) -> str:
        """End the process and say how it ended."""
        self.pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        try:
            code = self._process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:  # a driver holds it
            return "not even by SIGKILL"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def kill_survivor(folder: Path) -> None:
    """Kill the process that a folder's attempt names, if it is still that process, and on this machine."""
    attempt = read_attempt(folder)
    if attempt is None or attempt.host not in ("", socket.gethostname()):
        return
    if attempt.started and read_start_time(attempt.pid) == attempt.started:
        os.kill(attempt.pid, signal.SIGKILL)


def read_start_time(pid: int) -> float:
    """Return when a process started, in clock ticks since boot; 0 where it is gone or the system does not say."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0.0


def _start_process(
    pipe: "Connection[Any, Any]", device: str, environment: dict[str, str], log: IO[bytes]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cityopt.search.executors.worker", str(pipe.fileno()), device],
        pass_fds=[pipe.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
    )


def _worker_environment(threads: int) -> dict[str, str]:
    """Give each worker its share of the cores: two full thread pools slow each other down tens of times.

    GNU OpenMP's threads spin for milliseconds before they sleep, which costs nothing on idle cores and half the
    speed beside other work; a tenth of that is as fast alone and stays fast in company.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    defaults = {"GOMP_SPINCOUNT": "30000", **os.environ}
    return {**defaults, **dict.fromkeys(names, str(threads)), "PYTHONUNBUFFERED": "1"}
