"""Who is at work on a study: the lock of its only writer, and sweeps that share it on a server.

locks/STUDY.lock    held by the process that it names: at work on trials, a promotion, a cross-validation
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import sqlalchemy

from cityopt.errors import StoreError
from cityopt.search.leases import list_leases
from cityopt.search.storage import connect, hold_lock, is_lock_held
from cityopt.services import hide_password, read_services
from cityopt.store import describe_option

SWEEP, SOLE = "sweep", "sole"
"""What may be at work on a study: trials, or something beside which there is nothing else."""
_LOCK_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class Sweep:
    """Coordinators at work on a study."""

    begun: float
    """When the first of them began, in seconds since 1970."""
    held: frozenset[int] | None = None
    """The trials that they are at; None: all that are RUNNING, where there is one coordinator."""

    @property
    def live(self) -> bool | frozenset[int]:
        """What `build_status` wants to know."""
        return True if self.held is None else self.held


@contextmanager
def lock_study(store: Path, name: str, what: str = "sweep") -> Iterator[None]:
    """Hold a study as its only writer; `what` says at which work. The lock goes with the process, however it ends.

    Raises StoreError when another process holds it.
    """
    path = _place_lock(store, name)
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        if not _take_lock(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise StoreError(
                f"study {name!r} is at work in another process (pid {holder}). "
                f"Wait for it or stop it; watch it with: cityopt status --study {name}"
            )
        file.truncate(0)
        file.write(f"{os.getpid()}, {what}")
        file.flush()
        url = read_services(store).storage
        with nullcontext() if url is None else _lock_in_database(store, name, url):
            yield


@contextmanager
def join_sweep(store: Path, name: str) -> Iterator[None]:
    """Hold a study for a sweep: as its only writer, or, on a server, beside other sweeps and nothing else.

    Raises StoreError when another process holds it for something else.
    """
    url = read_services(store).storage
    with lock_study(store, name) if url is None else _lock_in_database(store, name, url, shared=True):
        yield


@contextmanager
def _lock_in_database(store: Path, name: str, url: str, *, shared: bool = False) -> Iterator[None]:
    """Keep machines off that share the study's database and not its store."""
    with hold_lock(url, _name_lock(name), wait=False, shared=shared) as is_ours:
        # Locks go with a restart of the server, and leases stay.
        if not is_ours or (not shared and is_swept(store, name)):
            raise StoreError(
                f"study {name!r} is at work on another machine, or from another store, in {hide_password(url)}. "
                f"Wait for it or stop it there; watch it with: cityopt status --study {name}{describe_option(store)}"
            )
        yield


def is_swept(store: Path, name: str) -> bool:
    """Say whether some process is at work on a study's trials (not on its promotion or cross-validation)."""
    return find_sweep(store, name) is not None


def find_sweep(store: Path, name: str) -> Sweep | None:
    """Return the sweep that is at work on a study, None where none is; several that share it are one."""
    if url := read_services(store).storage:
        with connect(url) as connection:
            leases = list_leases(connection, name)
        begun = min((lease.begun for lease in leases if lease.is_coordinator), default=None)
        held = frozenset(lease.trial for lease in leases if lease.trial is not None)
        return None if begun is None else Sweep(begun, held)
    return Sweep(_place_lock(store, name).stat().st_mtime) if _read_holder(store, name) == SWEEP else None


@contextmanager
def watch_study(store: Path, name: str) -> Iterator[Callable[[], str | None]]:
    """Give a function that says what is at work on a study: SWEEP, SOLE, or None. It asks over one connection."""
    url = read_services(store).storage
    if url is None:
        yield lambda: _read_holder(store, name)
        return
    with connect(url) as connection:
        yield lambda: _find_work(connection, store, name)


def _find_work(connection: sqlalchemy.Connection, store: Path, name: str) -> str | None:
    """Look for coordinators, else for whoever holds the study alone, here (by the file) or elsewhere."""
    if any(lease.is_coordinator for lease in list_leases(connection, name)):
        return SWEEP
    return SOLE if is_lock_held(connection, _name_lock(name)) or _read_holder(store, name) else None


def _read_holder(store: Path, name: str) -> str | None:
    """Return what holds the file of a study's lock; None where it is free."""
    path = _place_lock(store, name)
    if not path.is_file():
        return None
    with path.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return SOLE if file.read().endswith((", promotion", ", crossval", ", retry")) else SWEEP
    return None


def _place_lock(store: Path, name: str) -> Path:
    return store / "locks" / f"{name}.lock"


def _name_lock(name: str) -> str:
    return f"study {name}"


def _take_lock(file: IO[str]) -> bool:
    """Lock a file, trying for a moment: `is_swept` in another process holds it for the blink of an eye."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
