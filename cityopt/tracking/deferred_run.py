"""Runs that began while MLflow was away: a folder has an id of its own until MLflow gives the run one.

    deferred.json   {"study", "name", "kind", "tags", "run_id"}; `run_id` is null until MLflow has the run

Training never waits for MLflow: the coordinator begins the trial in such a folder, and the shipper makes the run when
MLflow answers. The run then bears the folder's id as the tag `cityopt.request`, by which it is found again where the
answer was lost, and a link named like MLflow's id leads to the folder.

    closed.json     {}: MLflow shows an end of the run, though it went on when MLflow was away

The shipper makes such a run RUNNING again before it sends anything, so that what follows is not forgotten.
"""

import fcntl
import json
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cityopt.store import run_folder
from cityopt.tracking.run_folder import DATASET, read_json, write_json

DEFERRED, CLOSED = "deferred.json", "closed.json"
REQUEST = "cityopt.request"
"""Tag of a run: the id under which it was first asked for."""
_REQUESTS = uuid.UUID("6f9d8c1e-54b6-4c0e-9a83-1d2f7b5ce0a4")


@dataclass(frozen=True, slots=True)
class DeferredRun:
    """What MLflow is to make, and what it made of it."""

    study: str
    name: str
    kind: str
    tags: dict[str, str]
    run_id: str | None = None


def defer_run(store: Path, request: str, run: DeferredRun) -> str:
    """Begin a run's folder without MLflow, or go on with it; returns the run's id in the store, that of the request."""
    if not is_deferred(store, request):
        folder = run_folder(store, request)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / DEFERRED, asdict(run))
    return request


def is_deferred(store: Path, request: str) -> bool:
    """Say whether a store has the folder of a run that began under this id."""
    return (run_folder(store, request) / DEFERRED).is_file()


def name_request(*what: object) -> str:
    """Return the id of a request for a run: always the same for the same `what`, so that who asks again is known."""
    return uuid.uuid5(_REQUESTS, json.dumps([str(part) for part in what])).hex


def is_request(text: str) -> bool:
    """Say whether a text, which anybody may write into a tag, is such an id."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def find_mlflow_id(folder: Path) -> str | None:
    """Return the id that MLflow has for the run of a folder; None where it has to make it yet."""
    deferred = _read(folder)
    return folder.name if deferred is None else deferred.run_id


def make_deferred(folder: Path, make: Callable[[DeferredRun], str]) -> str:
    """Return MLflow's id for the run of a folder, which `make` gives it if need be: one process at a time."""
    known = find_mlflow_id(folder)
    if known is not None:
        return known
    with (folder / f".{DEFERRED}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        deferred = _read(folder)
        assert deferred is not None  # it was there a moment ago, and nobody removes it
        run_id = deferred.run_id or make(deferred)
        with suppress(OSError):  # first the link: whoever finds the run in MLflow looks for its folder there
            folder.with_name(run_id).symlink_to(folder.name)
        write_json(folder / DEFERRED, asdict(replace(deferred, run_id=run_id)))
    return run_id


def follow_link(folder: Path) -> Path:
    """Return a run's folder itself where a link named like MLflow's id leads to it."""
    return folder.with_name(folder.readlink().name) if folder.is_symlink() else folder


def list_unmade(store: Path, study: str) -> list[Path]:
    """Return the folders of a study's runs that MLflow has to make yet."""
    folders = [path.parent for path in sorted(store.glob(f"runs/*/{DEFERRED}")) if not path.parent.is_symlink()]
    found = {folder: _read(folder) for folder in folders}
    return [folder for folder, run in found.items() if run is not None and run.study == study and run.run_id is None]


def note_closed(folder: Path) -> None:
    """Write down that MLflow, which is away, shows an end of a run that goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CLOSED, {})


def open_closed(folder: Path, reopen: Callable[[], None]) -> None:
    """Make a run RUNNING again in MLflow if that is still to be done."""
    if (folder / CLOSED).is_file():
        reopen()
        (folder / CLOSED).unlink()


def list_closed(store: Path, study: str) -> list[Path]:
    """Return the folders of a study's runs that went on while MLflow shows an end of them."""
    folders = [path.parent for path in sorted(store.glob(f"runs/*/{CLOSED}")) if not path.parent.is_symlink()]
    return [folder for folder in folders if (read_json(folder / DATASET) or {}).get("name") == study]


def _read(folder: Path) -> DeferredRun | None:
    content = read_json(folder / DEFERRED)
    return None if content is None else DeferredRun(**content)
