"""The worker's side of a training on several devices: torchrun, and a socket on which each rank reports.

As a module it is the process between: `python -m cityopt.search.executors.team N SOCKET` becomes torchrun and starts N
times `rank.py`. All of them end with the worker: each has the one above it as parent, and an end of its socket.

How the training ends is what its ranks tell: `complete` or `stopped` by the leader, or the first failure of any rank. A
rank that dies makes others fail, who may be heard first: a reason that is known (`nan`, `oom`, `disk` …) comes before
the death of a rank, which is `lost` and so tried again, and that before a `crash`. A worker that is asked where
it is, since nothing was heard of it, asks its ranks: it is they who hang.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from cityopt.runtime import die_with_parent
from cityopt.search.executors.base import TRACEBACK_SIGNAL, Answer

_GRACE_S = 1.0
"""How long a failure waits for a better reason from another rank."""
_PARTING_S = 30.0
"""How long ranks that are done may take to leave."""

Ending = dict[str, Any]
OnEpoch = Callable[[int, dict[str, float]], Answer]


class Team:
    """The ranks of one training, started with the block and all gone with its end."""

    def __init__(self, num_ranks: int, threads: int, command: Sequence[str] | None = None) -> None:
        """Get ready to start `num_ranks` processes of `threads` CPU threads; `command` replaces torchrun's."""
        self._num_ranks, self._threads = num_ranks, threads
        self._command = command or [sys.executable, "-m", __name__, str(num_ranks)]
        self._ends: list[socket.socket] = []
        self._ranks: dict[Connection[Any, Any], int] = {}
        self._done: set[int] = set()
        self._pids: set[int] = set()

    def __enter__(self) -> Self:
        """Open the socket and start the processes."""
        self._place = TemporaryDirectory(prefix="cityopt-ranks-")
        path = Path(self._place.name) / "socket"
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen(self._num_ranks)
        self._process = subprocess.Popen(
            [*self._command, str(path)], stdin=subprocess.DEVNULL, env=_build_environment(self._threads)
        )
        faulthandler.unregister(TRACEBACK_SIGNAL)
        self._handler = signal.signal(TRACEBACK_SIGNAL, self._ask_for_tracebacks)
        return self

    def __exit__(self, *_: object) -> None:
        """End what still runs, and wait until its memory and devices are free."""
        signal.signal(TRACEBACK_SIGNAL, self._handler)
        if faulthandler.is_enabled():
            faulthandler.register(TRACEBACK_SIGNAL, 2)
        if len(self._done) == self._num_ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PARTING_S)
        self._process.kill()
        self._process.wait()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)  # a rank that hears it ends at once, and its own end closes
                end.settimeout(_PARTING_S)
                while end.recv(2**16):
                    pass
            end.close()
        for pipe in self._ranks:
            pipe.close()
        self._door.close()
        self._place.cleanup()

    def train(self, job: Mapping[str, Any], on_epoch: OnEpoch, on_progress: Callable[[Any], None]) -> Ending:
        """Give the ranks the worker's message `run`, and return what `ended` has to say when they are done."""
        failures: list[Ending] = []
        deadline = float("inf")
        while time.monotonic() < deadline:
            for source in wait([self._door, *self._ranks], 0.1 if failures else 0.5):
                if isinstance(source, Connection):
                    failures += self._hear(source, on_epoch, on_progress)
                else:
                    self._admit(job)
            if len(self._done) == self._num_ranks:
                return self._result
            if not failures and self._process.poll() is not None:
                failures = [_lost(f"torchrun ended with exit code {self._process.returncode}")]
            if any(_is_known(failure) for failure in failures):
                break
            if failures:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
        return min(failures, key=_order)

    def _admit(self, job: Mapping[str, Any]) -> None:
        self._ends.append(self._door.accept()[0])
        pipe: Connection[Any, Any] = Connection(os.dup(self._ends[-1].fileno()))
        self._ranks[pipe] = -1
        _send(pipe, job)

    def _hear(
        self, pipe: "Connection[Any, Any]", on_epoch: OnEpoch, on_progress: Callable[[Any], None]
    ) -> list[Ending]:
        """Take a message of a rank; return its failure, if it tells of one or is dead."""
        try:
            message = json.loads(pipe.recv_bytes())
        except (EOFError, OSError):
            rank = self._ranks.pop(pipe)
            pipe.close()
            return [] if rank in self._done else [_lost(f"rank {rank} of {self._num_ranks} ended")]
        kind = message.pop("type")
        if kind == "ready":
            self._ranks[pipe] = int(message["rank"])
            self._pids.add(int(message["pid"]))
        elif kind == "progress":
            on_progress(message["progress"])
        elif kind == "epoch":
            _send(pipe, {"type": "answer", "answer": on_epoch(message["epoch"], message["metrics"])})
        else:
            return self._take_ending(self._ranks[pipe], {k: v for k, v in message.items() if k != "run_id"})
        return []

    def _ask_for_tracebacks(self, *_: object) -> None:
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, TRACEBACK_SIGNAL)

    def _take_ending(self, rank: int, ending: Ending) -> list[Ending]:
        if ending["outcome"] == "failed":
            return [ending | {"message": f"{ending['message']} (rank {rank} of {self._num_ranks})"}]
        if rank == 0:
            self._result = ending
        self._done.add(rank)
        return []


def main() -> None:
    """Become torchrun."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    from torch.distributed.run import main as run

    num_ranks, path = sys.argv[1:]
    place = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", num_ranks, "--max-restarts", "0"]
    run([*place, "-m", "cityopt.search.executors.rank", path])


def _build_environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    # Ctrl-C reaches the whole group; the coordinator decides.
    added = {**dict.fromkeys(names, str(threads)), "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM"}
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    return {**loopback, **os.environ, **added}


def _send(pipe: "Connection[Any, Any]", message: Mapping[str, Any]) -> None:
    """Send a message; a dead rank is noticed when it is listened to."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        pipe.send_bytes(json.dumps(message).encode())


def _lost(message: str) -> Ending:
    return {"outcome": "lost", "reason": "crash", "message": message}


def _is_known(failure: Ending) -> bool:
    return bool(failure["outcome"] == "failed" and failure["reason"] != "crash")


def _order(failure: Ending) -> int:
    return 0 if _is_known(failure) else 1 if failure["outcome"] == "lost" else 2


if __name__ == "__main__":
    main()
