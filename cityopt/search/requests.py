"""What other commands ask of whoever is at work on a study, as files in the store.

    requests/STUDY/TIME-PID.json    {"verb": "stop"} or {"verb": "retry", "reason": "oom"}

A sweep's coordinator obeys both; a promotion and a cross-validation hear a stop between two looks at their trainings.
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
from cityopt.search.ledger import AWAY, explaining_outages, is_away
from cityopt.search.retries import ANY, enqueue_failed
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study
from cityopt.search.study_lock import SWEEP, is_swept, lock_study, watch_study
from cityopt.services import read_services
from cityopt.settings import name_nearest
from cityopt.store import describe_option, find_store
from cityopt.tracking.run_folder import read_json, write_json

REASONS = ("nan", "oom", "crash", "hung", "config", "data")
_INTERVAL_S = 0.5
_SHARED_INTERVAL_S = 2.0
_AWAY_INTERVAL_S = 60.0
_PAUSE_S = 0.2
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

    @abstractmethod
    def hear_stop(self) -> bool:
        """Say whether a stop was asked for, once; what else there is stays for the next sweep."""


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

    def hear_stop(self) -> bool:
        """Say whether somebody has rung. While the database is away, nobody can."""
        heard: list[Request] = []
        try:
            self.obey(heard.append)
        except AWAY as error:
            if not is_away(error):
                raise
            self._next_look = time.monotonic() + _AWAY_INTERVAL_S
        return bool(heard)


def count_stops(study: optuna.Study) -> int:
    """Return how often the sweeps of a study were asked to stop."""
    return int(study.user_attrs.get(_STOPS, 0))


def open_requests(store: Path, study: optuna.Study) -> Requests:
    """Return what is asked from now on of whoever works on a study."""
    return StopBell(study) if read_services(store).storage else RequestBox(store, study.study_name)


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

    def hear_stop(self) -> bool:
        """Say whether there is a stop, which is obeyed with that."""
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + _INTERVAL_S
        return self.forget_stops()

    def forget_stops(self) -> bool:
        """Remove what asked somebody to stop, who may have ended before that came; says whether there was any."""
        stops = [path for path in self._folder.glob("*.json") if (read_json(path) or {}).get("verb") == "stop"]
        for path in stops:
            path.unlink(missing_ok=True)
        return bool(stops)


def stop_study(name: str, *, store: Path) -> str:
    """Let what is at work on a study end in good order, and return how to go on.

    That is a sweep, or several that share the study, a promotion or a cross-validation. Raises StoreError: there is
    none, or it does not end within a minute.
    """
    folder = find_store(store, name)
    storage = open_storage(folder)
    study, _, _ = load_stored_study(storage, name)
    with explaining_outages(folder), watch_study(folder, name) as look:
        work = look()
        if work is None:
            raise StoreError(f"nothing is at work on study {name!r} in {folder}: there is nothing to stop.")
        if read_services(folder).storage:
            with lock_decisions(storage.engine, study._study_id):
                study.set_user_attr(_STOPS, count_stops(study) + 1)
        else:
            RequestBox(folder, name).put(Request("stop"))
        deadline = time.monotonic() + _PATIENCE_S
        while look():
            if time.monotonic() > deadline:
                raise StoreError(
                    f"what is at work on study {name!r} was asked to stop {_PATIENCE_S:.0f} s ago and still is. It "
                    "stops when its data is prepared, a model is judged, or MLflow answers; Ctrl-C twice where it runs "
                    "ends it at once."
                )
            time.sleep(_PAUSE_S)
    if work != SWEEP:
        return "Stopped; nothing is lost. The same command goes on from the last finished epoch."
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
