"""What other commands ask of a live sweep, as files in the store, which the sweep's coordinator obeys.

    requests/STUDY/TIME-PID.json    {"verb": "stop"} or {"verb": "retry", "reason": "oom"}

A file is removed after it was obeyed, so that a kill loses none; to obey one twice does no harm.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import optuna

from cityopt.errors import ConfigError, StoreError
from cityopt.search.retries import ANY, enqueue_failed
from cityopt.search.storage import open_storage
from cityopt.search.study import is_swept, load_stored_study, lock_study
from cityopt.settings import name_nearest
from cityopt.store import describe_option, find_store
from cityopt.tracking.run_folder import read_json, write_json

REASONS = ("nan", "oom", "crash", "hung", "config", "data")
_INTERVAL_S = 0.5
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    verb: Literal["stop", "retry"]
    reason: str = ""


class RequestBox:
    """The requests to one study. Looked into about twice a second, however often it is asked to."""

    def __init__(self, store: Path, study: str) -> None:
        self._folder = store / "requests" / study
        self._next_look = 0.0

    def put(self, request: Request) -> None:
        """Leave a request."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._folder / f"{time.time_ns()}-{os.getpid()}.json", asdict(request))

    def obey(self, act: Callable[[Request], None], *, at_once: bool = False) -> bool:
        """Act on every request that is there, `at_once` also where the last look was a moment ago.

        Returns whether there was one.
        """
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
    load_stored_study(open_storage(folder), name)
    if not is_swept(folder, name):
        raise StoreError(f"no sweep is at work on study {name!r} in {folder}: there is nothing to stop.")
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
    study, _, _ = load_stored_study(open_storage(folder), name)
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
