"""The worker process: takes runs from a pipe, trains them, reports, and dies with its coordinator.

Started by `local.py` as `python -m cityopt.search.executors.worker FD DEVICE`. It imports neither optuna nor mlflow.
Messages are JSON, one per packet. In: `run`, `measure`, `answer`. Out: `ready`, `progress`, `epoch`, `ended`.
"""

import faulthandler
import gc
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cityopt.config import RunConfig
from cityopt.errors import CityoptError, ConfigError, DataError, StoreError, TrainingError, WeightsError
from cityopt.runtime import GIB, die_with_parent, measure_peak_gib, resolve_device
from cityopt.search.executors.base import TRACEBACK_SIGNAL, Answer
from cityopt.search.executors.team import Team
from cityopt.training.progress import Progress


def main() -> None:
    """Serve until the coordinator closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the coordinator decides
    faulthandler.enable(2)  # where a segmentation fault was, into the log
    faulthandler.register(TRACEBACK_SIGNAL, 2)
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    Session(Connection(int(sys.argv[1])), device=sys.argv[2]).serve()


class Session:
    """The worker's side of the pipe. A thread reads, so that a lost coordinator ends even a busy worker."""

    def __init__(self, pipe: "Connection[Any, Any]", device: str, *, in_team: bool = False) -> None:
        """Take the pipe; `in_team`: this process is one of several (`rank.py`) that a worker started for a run."""
        self._pipe, self._device, self._in_team = pipe, device, in_team
        self._jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._answers: queue.Queue[Answer] = queue.Queue()

    def serve(self) -> None:
        """Warm up, then run job after job."""
        threading.Thread(target=self._read, daemon=True).start()
        from cityopt.training import run  # noqa: F401  (imported now, so that the first trial need not wait)

        self._send({"type": "ready", "device": str(resolve_device(self._device))})
        while True:
            self._run(self._jobs.get())

    def serve_one(self, rank: int) -> dict[str, Any]:
        """Train one run as a rank of its team, and return how it ended."""
        self._send({"type": "ready", "rank": rank, "pid": os.getpid()})
        threading.Thread(target=self._read, daemon=True).start()
        return self._run(self._jobs.get())

    def _read(self) -> None:
        while True:
            try:
                message = json.loads(self._pipe.recv_bytes())
            except (EOFError, OSError):
                os._exit(3)
            if message["type"] == "answer":
                self._answers.put(message["answer"])
            else:
                self._jobs.put(message)

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        run_id, folder = message["run_id"], Path(message["folder"])
        _log_into(folder / "log.txt")
        self._answers = queue.Queue()
        try:
            work = self._measure if message["type"] == "measure" else self._train
            ending = work(run_id, folder, message)
        except Exception as error:
            traceback.print_exc()
            ending = _describe_failure(error, self._device)
        self._send({"type": "ended", "run_id": run_id, "left_gib": _measure_left_gib(self._device), **ending})
        return ending

    def _train(self, run_id: str, folder: Path, message: dict[str, Any]) -> dict[str, Any]:
        from cityopt.tracking.run_folder import RunFolder
        from cityopt.training.run import run_training

        def on_epoch(epoch: int, metrics: dict[str, float]) -> Answer:
            self._send({"type": "epoch", "run_id": run_id, "epoch": epoch, "metrics": metrics})
            return self._answers.get()

        config, pass_on = self._read_config(message), self._pass_on(run_id)
        if config.devices > 1 and not self._in_team:
            with Team(config.devices, config.threads) as team:
                return team.train(message, on_epoch, lambda progress: pass_on(Progress(**progress)))
        tracker = RunFolder(folder, message["token"])
        result = run_training(config, tracker, on_epoch, on_progress=pass_on)
        return {"outcome": result.outcome, "result": json.loads(json.dumps(asdict(result), default=str))}

    def _measure(self, run_id: str, folder: Path, message: dict[str, Any]) -> dict[str, Any]:
        from cityopt.training.measurement import measure_costs

        costs = measure_costs(self._read_config(message), on_progress=self._pass_on(run_id))
        return {"outcome": "complete", "result": asdict(costs)}

    def _read_config(self, message: dict[str, Any]) -> RunConfig:
        """Return the run to train, on this worker's device; a rank finds its own."""
        config = message["config"]
        return RunConfig.model_validate(config if self._in_team else {**config, "device": self._device})

    def _pass_on(self, run_id: str) -> Callable[[Any], None]:
        return lambda progress: self._send({"type": "progress", "run_id": run_id, "progress": asdict(progress)})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._pipe.send_bytes(json.dumps(message).encode())
        except OSError:
            os._exit(3)


def _describe_failure(error: Exception, device: str) -> dict[str, Any]:
    """Tell the reasons of a failed trial apart; `device` is empty in a rank, whose memory is not measured."""
    reasons = {DataError: "data", ConfigError: "config", WeightsError: "config", StoreError: "disk"}
    known = next((reason for kind, reason in reasons.items() if isinstance(error, kind)), "crash")
    reason = error.reason if isinstance(error, TrainingError) else known
    text = str(error) if isinstance(error, CityoptError) else f"{type(error).__name__}: {error}"
    if reason != "oom" or not device:
        return {"outcome": "failed", "reason": reason, "message": text}
    peak_gib = measure_peak_gib(device)
    text = f"{text} (peak {peak_gib:.2f} GiB)"
    return {"outcome": "failed", "reason": reason, "message": text, "result": {"peak_gib": peak_gib}}


def _measure_left_gib(device: str) -> float:
    """Return the memory that a finished run has left behind on a GPU; a rank, which has no device, ends anyway."""
    if not device or (place := resolve_device(device)).type != "cuda":
        return 0.0
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(place) / GIB


def _log_into(path: Path) -> None:
    """Send stdout and stderr, those of C code too, to the run's log."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} attempt begins, pid {os.getpid()}", flush=True)


if __name__ == "__main__":
    main()
