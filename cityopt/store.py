"""The store: the one folder with all state of cityopt, found or made where `--store` says.

    mlflow.db  artifacts/   what MLflow shows
    optuna.db  locks/       studies and their trials
    services.json           where both are instead, for a store of many machines
    runs/  logs/  cache/    run folders, what workers said, decoded images

Every command turns `--store` into an absolute path here, and only those that begin something make a store.
"""

import os
import shlex
from pathlib import Path

from cityopt.errors import StoreError
from cityopt.services import SERVICES

_BEGUN = ("optuna.db", "mlflow.db", SERVICES)


def open_store(path: str | Path) -> Path:
    """Return the store's folder as an absolute path, made where it is missing.

    Raises StoreError when it cannot be written.
    """
    store = place_store(path)
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe = store / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"the store must be a folder that can be written, but {store} is not: {error.strerror}. "
            "Give another one with --store DIR."
        ) from error
    return store


def find_store(path: str | Path, study: str | None = None) -> Path:
    """Return the folder of a store that is there, as an absolute path; nothing is made.

    Raises StoreError: no study was ever begun in it, and it points to no services. The
    message names the command that begins one (`study`).
    """
    store = place_store(path)
    if not any((store / name).is_file() for name in _BEGUN):
        raise StoreError(
            f"there is no study in {store}. Give the store with --store DIR, or begin a study with: "
            f"cityopt sweep --study {study or 'NAME'}{describe_option(store)}"
        )
    return store


def run_folder(store: Path, run_id: str) -> Path:
    """Return the folder of a run."""
    return store / "runs" / run_id


def place_store(path: str | Path) -> Path:
    """Return where a store lies or will lie: an absolute path, `~` written out."""
    return Path(path).expanduser().absolute()


def describe_option(store: Path) -> str:
    """Return the option that names a store in a command, with a space before it; empty for the default one."""
    return "" if store == place_store("mlruns") else f" --store {shlex.quote(os.path.relpath(store))}"
