"""What other commands ask of a live sweep, as files in the store, which the sweep's coordinator obeys.

    requests/STUDY/TIME-PID.json    {"verb": "stop"} or {"verb": "retry", "reason": "oom"}

A file is removed after it was obeyed, so that a kill loses none; to obey one twice does no harm. On a server, where
several coordinators share a study, a stop is a number on the study, and a retry goes straight into its queue.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import optuna

from cityopt.errors import ConfigError, StoreError
from cityopt.search.leases import lock_decisions
from cityopt.search.ownership import Ownership, SoleOwner
from cityopt.search.retries import ANY, enqueue_failed
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study
from cityopt.search.study_lock import is_swept, lock_study
from cityopt.services import read_services
from cityopt.settings import name_nearest
from cityopt.store import describe_option, find_store
from cityopt.tracking.run_folder import read_json, write_json

REASONS = ("nan", "oom", "crash", "hung", "config", "data")
_INTERVAL_S = 0.5
_SHARED_INTERVAL_S = 2.0
_PATIENCE_S = 60.0
_STOPS = "cityopt:stops"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    verb: Literal["stop", "retry"]
    reason: str = ""


class Requests(ABC):
    """What is asked of a sweep at work."""

    @abstractmethod
    def obey(self, act: Callable[[Request], None], *, at_once: bool = False) -> bool:
        """Act on every request that is there, `at_once` also where the last look was a moment ago.

        Returns whether there was one.
        """


class StopBell(Requests):
    """Stops that several coordinators hear: a number on the study, which is another one than at their start then."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self._heard = study, count_stops(study)
        self._next_look = 0.0

    def obey(self, act: Callable[[Request], None], *, at_once: bool = False) -> bool:
        """Stop once somebody has rung; other requests need no coordinator's help on a server."""
        if not at_once and time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _SHARED_INTERVAL_S
        before, self._heard = self._heard, count_stops(self._study)
        if has_rung := self._heard != before:
            act(Request("stop"))
        return has_rung


def count_stops(study: optuna.Study) -> int:
    """Return how often the sweeps of a study were asked to stop."""
    return int(study.user_attrs.get(_STOPS, 0))


def open_requests(store: Path, study: optuna.Study, ownership: Ownership) -> Requests:
    """Return the requests to a coordinator that owns all of a study, or a part."""
    return RequestBox(store, study.study_name) if isinstance(ownership, SoleOwner) else StopBell(study)


class RequestBox(Requests):
    """The requests to one study. Looked into about twice a second, however often it is asked to."""

    def __init__(self, store: Path, study: str) -> None:
        self._folder = store / "requests" / study
        self._next_look = 0.0

    def put(self, request: Request) -> None:
        """Leave a request."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{time.time_ns()}-{os.getpid()}.json", asdict(request))

    def obey(self, act: Callable[[Request], None], *, at_once: bool = False) -> bool:
        """Act on every request that is there."""
        if not at_once and time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _INTERVAL_S
        paths = sorted(self._folder.glob("*.json"))
        for path in paths:
            act(Request(**(read_json(path) or {"verb": "stop"})))
            path.unlink(missing_ok=True)
        return bool(paths)

    def forget_stops(self) -> None:
        """Remove what asked an earlier sweep to stop, and came too late for it."""
        for path in self._folder.glob("*.json"):
            if (read_json(path) or {}).get("verb") == "stop":
                path.unlink(missing_ok=True)


def stop_sweep(name: str, *, store: Path) -> str:
    """Let the sweep that is at work on a study end in good order, and return how to go on.

    Raises StoreError: there is none, or it does not end within a minute.
    """
    folder = find_store(store, name)
    storage = open_storage(folder)
    study, _, _ = load_stored_study(storage, name)
    if not is_swept(folder, name):
        raise StoreError(f"no sweep is at work on study {name!r} in {folder}: there is nothing to stop.")
    if read_services(folder).storage:
        with lock_decisions(storage.engine, study._study_id):
            study.set_user_attr(_STOPS, count_stops(study) + 1)
    else:
        RequestBox(folder, name).put(Request("stop"))
    deadline = time.monotonic() + _PATIENCE_S
    while is_swept(folder, name):
        if time.monotonic() > deadline:
            raise StoreError(
                f"the sweep of study {name!r} was asked to stop {_PATIENCE_S:.0f} s ago and is still at work. It "
                "stops when its data is prepared or MLflow answers; Ctrl-C twice where it runs ends it at once."
            )
        time.sleep(0.1)
    return f"Stopped; nothing is lost. Go on with: cityopt sweep --study {name}{describe_option(folder)}"


def retry_failed(name: str, reason: str, *, store: Path) -> str:
    """Enqueue the settings of failed trials again, or let the sweep that is at work do it; returns what was done.

    Raises ConfigError: there is no such reason. Raises StoreError: no such study, or another process at work on it.
    """
    if reason not in (*REASONS, ANY):
        known = ", ".join((*REASONS, ANY))
        raise ConfigError(f"`--failed` must be one of {known}, but got {reason!r}.{name_nearest(reason, REASONS)}")
    folder = find_store(store, name)
    storage = open_storage(folder)
    study, _, _ = load_stored_study(storage, name)
    if read_services(folder).storage:  # the sweeps at work, if there are any, find them in the queue
        with lock_decisions(storage.engine, study._study_id):
            return describe_retried(enqueue_failed(study, reason), reason, study, folder)
    if is_swept(folder, name):
        RequestBox(folder, name).put(Request("retry", reason))
        return f"The sweep at work on study {name} takes up its trials that failed ({reason})."
    with lock_study(folder, name, "retry"):
        numbers = enqueue_failed(study, reason)
    return describe_retried(numbers, reason, study, folder)


def describe_retried(numbers: list[int], reason: str, study: optuna.Study, store: Path) -> str:
    """Say which trials are tried again, and how."""
    if not numbers:
        return f"No trial of study {study.study_name} failed ({reason}) that is not enqueued again already."
    listed = ", ".join(map(str, numbers))
    go_on = f"cityopt sweep --study {study.study_name}{describe_option(store)}"
    return f"Enqueued the settings of {len(numbers)} failed trials ({listed}). Try them with: {go_on}"
