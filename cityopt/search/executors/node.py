"""One slot on a node of a cluster: a local executor of one worker, and what its machine has to find for itself.

A remote executor (`ray.py`) makes it in a process on the node and calls its methods one after the other; there is
nothing of any cluster's software in here. Hang detection, tracebacks and the replacement of workers are the local
executor's.

A node that sees the coordinator's store trains right in the run's folder there. Another one trains in a folder of its
own and reports the files with the events: an event is told when all that was on disk before it has been sent. Images
are decoded into the node's own cache, `~/.cache/cityopt`, but for the coordinator's machine, which has the store's.
"""

import fcntl
import os
import shutil
import socket
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from cityopt.config import RunConfig
from cityopt.data.roots import ROOT_VARIABLE, cache_folder, place_scenes
from cityopt.search.executors.base import Answer, EpochDone, Event, Job, JobEnded, WorkerReady
from cityopt.search.executors.local import LocalExecutor
from cityopt.search.executors.mirror import Inbox, Outbox, Piece
from cityopt.search.executors.silence import HangRule
from cityopt.search.executors.versions import describe_versions


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """What a coordinator tells its slots: where its store lies, and how to train."""

    study: str
    store: Path
    probe: str
    """Name of a file in the store: who finds it sees the store."""
    host: str
    """The coordinator's machine."""
    device: str
    threads: int
    hang_rule: HangRule


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a slot tells its coordinator first."""

    host: str
    versions: dict[str, str]
    sees_store: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What happened in a slot: files of the attempt with a token, or else events."""

    token: str
    pieces: list[Piece]
    events: list[Event]


class NodeSlot:
    """Runs one job at a time on its node."""

    def __init__(self, plan: SlotPlan) -> None:
        """Look where this is; `start` begins. Raises OSError: the node's cache cannot be written."""
        self._plan, self._host = plan, socket.gethostname()
        self._sees_store = (plan.store / plan.probe).is_file()
        is_home = self._sees_store and self._host == plan.host
        self._cache = cache_folder(plan.store) if is_home else find_node_cache()
        self._place, self._lock = claim_place(find_node_cache() / "slots")
        self._job: Job | None = None
        self._outbox: Outbox | None = None
        self._held: list[Event] = []

    def describe(self) -> NodeFacts:
        """Say where this is."""
        return NodeFacts(self._host, describe_versions(), self._sees_store)

    def start(self) -> None:
        """Spawn the worker."""
        plan = self._plan
        logs = plan.store / "logs" / plan.study / f"{self._host}-{os.getpid()}" if self._sees_store else self._place
        self._executor = LocalExecutor(
            devices=(plan.device,), threads=plan.threads, log_folder=logs, hang_rule=plan.hang_rule
        )
        self._executor.start()

    def receive(self, token: str, pieces: list[Piece]) -> None:
        """Take files of the run whose attempt has this token, before `submit`."""
        Inbox(self._place / token).put(pieces)

    def submit(self, job: Job) -> None:
        """Run a job, in a folder of this node where it does not see the store."""
        folder = job.folder if self._sees_store else self._place / job.token
        self._job, self._outbox = job, None if self._sees_store else Outbox(folder)
        if self._outbox is not None:
            self._outbox.skip()
        self._executor.submit(replace(job, folder=folder, config=settle_run(job.config, self._cache)))

    def next_report(self, timeout_s: float) -> Report:
        """Return what happened, after at most `timeout_s`: first files, until there are none, then events."""
        if not self._held:
            self._held = self._executor.poll(timeout_s)
            if self._outbox is not None and any(isinstance(event, EpochDone | JobEnded) for event in self._held):
                self._outbox.look()
        token = "" if self._job is None else self._job.token
        if self._outbox is not None and (pieces := self._outbox.take()):
            return Report(token, pieces, [])
        events, self._held = [self._name_host(event) for event in self._held], []
        if any(isinstance(event, JobEnded) for event in events):
            self._forget()
        return Report(token, [], events)

    def answer(self, run_id: str, answer: Answer) -> None:
        """Answer a finished epoch."""
        self._executor.answer(run_id, answer)

    def abandon(self, run_id: str) -> None:
        """End a run at once."""
        self._executor.abandon(run_id)
        self._held = []
        self._forget()

    def close(self) -> None:
        """End the worker and leave nothing behind."""
        self._executor.close()
        shutil.rmtree(self._place, ignore_errors=True)
        self._lock.close()

    def _forget(self) -> None:
        if self._job is not None:
            shutil.rmtree(self._place / self._job.token, ignore_errors=True)
        self._job = self._outbox = None

    def _name_host(self, event: Event) -> Event:
        if isinstance(event, WorkerReady):
            return WorkerReady(f"{event.device} of {self._host}")
        if isinstance(event, JobEnded) and event.message:
            return replace(event, message=f"on {self._host}: {event.message}")
        return event


def find_node_cache() -> Path:
    """Return the folder of a node's own decoded images: `cityopt` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cityopt"


def settle_run(config: RunConfig, cache: Path) -> RunConfig:
    """Return a run as this node has to train it: with its own cache, and with the dataset where it lies here.

    That is where the coordinator has it, or else where CITYSCAPES_DATASET says; the dataset's fingerprint tells whether
    it is the same. Synthetic scenes lie in the cache.
    """
    data, root = config.data, str(config.data.root)
    if root == str(place_scenes(data.synthetic, Path(config.cache))):
        root = str(place_scenes(data.synthetic, cache))
    elif not Path(root).is_dir():
        root = os.environ.get(ROOT_VARIABLE) or root
    return config.model_copy(update={"cache": str(cache), "data": data.model_copy(update={"root": root})})


def claim_place(folder: Path) -> tuple[Path, IO[bytes]]:
    """Make a folder for one slot, and hold it by a lock; remove those of slots that are gone, however they ended.

    Raises OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("wb") as turn:  # of several slots that begin, none finds another's without its lock
        fcntl.flock(turn, fcntl.LOCK_EX)
        _remove_left(folder)
        place = folder / uuid.uuid4().hex
        place.mkdir()
        lock = (place / "lock").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return place, lock


def _remove_left(folder: Path) -> None:
    for left in folder.iterdir():
        try:
            with (left / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # held
            continue
