"""Mirrors run folders into MLflow, from a thread of the coordinator.

Each pass over a folder sends what is new: params, the dataset, the description, metrics from a byte offset on (with
their original times), artifacts; once the run has ended, its log, its best checkpoint and its final status, last of
all. What has arrived is written to `shipped.json` in the folder afterwards, so a kill at any point makes something be
sent again, never lost, and MLflow takes the same record twice as one. A run is therefore RUNNING in MLflow until all of
it is there: `catch_up` looks for exactly those, and for the runs that began, or went on, and ended while it was away.

    ending.json     how the run ends in MLflow, from `end`
    shipped.json    what MLflow has, from the thread
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking.deferred_run import follow_link, list_closed, list_unmade, make_deferred, open_closed
from cityopt.tracking.mlflow_store import DESCRIPTION, MlflowStore, RefusedError, RunEnd
from cityopt.tracking.record import RECORD, pack_record
from cityopt.tracking.run_folder import ARTIFACTS, BEST, DATASET, LOG, NOTE, PARAMS, read_json, read_records, write_json

ENDING, SHIPPED = "ending.json", "shipped.json"
CHECKPOINT = f"checkpoints/{BEST}"
_SLOWEST_RETRY_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shipped:
    """What MLflow has of a run. `stamps` are sizes and change times of the files that were sent."""

    offset: int = 0
    stamps: dict[str, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Watched:
    """A run whose folder is mirrored. `problem` is what the last try met."""

    run_id: str
    folder: Path
    shipped: _Shipped
    ended: bool
    mlflow_id: str | None = None
    """The run's id in MLflow; None until that is known, or made (`deferred_run`)."""
    problem: str = ""
    num_failures: int = 0
    next_try: float = 0.0


class Shipper:
    """The thread that mirrors run folders. No failure of MLflow reaches the caller; `problem` tells of it.

    `interval_s` is the time between two looks at a folder that changes; an end is sent at once.
    """

    def __init__(self, store: MlflowStore, interval_s: float = 1.0) -> None:
        self._store, self._interval_s = store, interval_s
        self._watched: dict[str, _Watched] = {}
        self._studies: dict[str, bool] = {}
        """Studies to catch up with, and whether with ended runs alone."""
        self._changed = threading.Condition()
        self._closing = False
        self._problem = ""
        self._thread = threading.Thread(target=self._run, name="mlflow-shipper", daemon=True)
        self._thread.start()

    @property
    def problem(self) -> str:
        """Return why MLflow lags behind, or what it refused for good; empty when neither holds."""
        with self._changed:
            return next((run.problem for run in self._watched.values() if run.problem), self._problem)

    def watch(self, run_id: str, folder: Path) -> None:
        """Mirror a folder from now on. An end that it had is void: the run goes on."""
        with self._changed:
            (folder / ENDING).unlink(missing_ok=True)
            self._add(run_id, folder, ended=False)

    def end(
        self,
        run_id: str,
        status: RunEnd,
        tags: Mapping[str, object] | None = None,
        *,
        folder: Path | None = None,
        end_ms: int | None = None,
    ) -> None:
        """Send the rest of a run, then its final tags and status. Returns at once; the end outlives a kill.

        `folder` is needed for a run that is not watched; it is the run's folder in the store by default.
        """
        known = self._watched.get(run_id)
        path = folder or (known.folder if known else run_folder(self._store.store, run_id))
        path.mkdir(parents=True, exist_ok=True)
        moment = time.time_ns() // 1_000_000 if end_ms is None else end_ms
        texts = {name: str(value) for name, value in (tags or {}).items()}
        write_json(path / ENDING, {"status": status, "tags": texts, "end_ms": moment})
        self._add(run_id, path, ended=True)

    def catch_up(self, study: str, *, ended_only: bool = False) -> None:
        """Send what MLflow misses of a study's earlier runs, as soon as MLflow can be reached. Returns at once.

        With `ended_only` a run that has not ended is left to whoever may be at work on it.
        """
        with self._changed:
            self._studies[study] = ended_only
            self._changed.notify_all()

    def forget(self, run_id: str) -> None:
        """Mirror a run no longer: somebody else does."""
        with self._changed:
            self._watched.pop(run_id, None)

    def drain(self, timeout_s: float) -> bool:
        """Wait until MLflow has every ended run whole. Says whether that was so in time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._has_work(), timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Send what there is once more, then end the thread. Says whether MLflow has all of it.

        What it has not is sent by the next `catch_up`.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and not self.problem and not self._has_work()

    def _has_work(self) -> bool:
        return bool(self._studies) or any(run.ended for run in self._watched.values())

    def _add(self, run_id: str, folder: Path, *, ended: bool) -> None:
        with self._changed:
            if run_id in self._watched:
                self._watched[run_id].ended = ended
            else:
                self._watched[run_id] = _Watched(run_id, folder, _read_shipped(folder), ended)
            if ended:
                self._changed.notify_all()

    def _run(self) -> None:
        next_look = 0.0
        while True:
            with self._changed:
                closing = self._closing
                studies, runs = dict(self._studies), list(self._watched.values())
            for study, ended_only in studies.items():
                self._look_for_runs(study, ended_only)
            now = time.monotonic()
            is_due = closing or next_look <= now
            for run in runs:
                if closing or ((is_due or run.ended) and run.next_try <= now):
                    self._try_to_ship(run)
            if is_due:
                next_look = time.monotonic() + self._interval_s
            with self._changed:
                self._changed.notify_all()
                if closing:
                    return
                self._changed.wait_for(self._is_urgent, max(0.0, next_look - time.monotonic()))

    def _is_urgent(self) -> bool:
        if self._closing or (self._studies and not self._problem):
            return True
        return any(run.ended and not run.num_failures for run in self._watched.values())

    def _look_for_runs(self, study: str, ended_only: bool) -> None:
        try:
            run_ids = self._store.list_running(study)
            unheard = [*list_unmade(self._store.store, study), *list_closed(self._store.store, study)]
        except StoreError as error:
            self._problem = str(error)
            return
        self._problem = ""
        with self._changed:
            for run_id in run_ids:
                folder = follow_link(run_folder(self._store.store, run_id))
                has_ended = (folder / ENDING).is_file()
                if folder.name not in self._watched and folder.is_dir() and (has_ended or not ended_only):
                    self._add(folder.name, folder, ended=has_ended)
            for folder in unheard:
                if folder.name not in self._watched and (folder / ENDING).is_file():
                    self._add(folder.name, folder, ended=True)
            self._studies.pop(study, None)

    def _try_to_ship(self, run: _Watched) -> None:
        try:
            is_whole = self._ship(run)
        except RefusedError as error:
            self._back_off(run, error)
            is_whole = self._give_up(run, str(error))
        except Exception as error:
            if not isinstance(error, StoreError | OSError):
                _log.exception("cannot mirror %s into MLflow", run.folder)
            self._back_off(run, error)
            return
        else:
            run.problem, run.num_failures, run.next_try = "", 0, 0.0
        if is_whole:
            with self._changed:
                if run.ended:
                    self._watched.pop(run.run_id, None)

    def _back_off(self, run: _Watched, error: Exception) -> None:
        run.problem = f"{error} The run's folder keeps everything: {run.folder}"
        run.num_failures += 1
        run.next_try = time.monotonic() + min(2.0**run.num_failures * self._interval_s, _SLOWEST_RETRY_S)

    def _give_up(self, run: _Watched, problem: str) -> bool:
        """End a run whose data MLflow refuses for good. Says whether that is all that can be done."""
        ending = read_json(run.folder / ENDING)
        if ending is None:
            return False
        self._problem = problem
        with contextlib.suppress(StoreError):
            self._store.finish_run(run.mlflow_id or run.run_id, ending["status"], end_ms=ending["end_ms"])
        return True

    def _ship(self, run: _Watched) -> bool:
        """Send what is new and say whether the run is whole.

        The end is read first: all that a run records is there before it. One that comes meanwhile is for the next pass.
        """
        had_ended = run.ended
        if run.mlflow_id is None:
            request = follow_link(run.folder).name
            run.mlflow_id = make_deferred(run.folder, lambda made: self._store.make_run(request, made))
        mlflow_id = run.mlflow_id
        open_closed(run.folder, lambda: MlflowStore.reopen_run(self._store, mlflow_id))  # which waits for nobody
        ending = read_json(run.folder / ENDING)
        self._ship_records(run, mlflow_id, ending["tags"] if ending else {})
        files = {path.relative_to(run.folder / ARTIFACTS).as_posix(): path for path in _list_artifacts(run.folder)}
        if ending:
            files |= {LOG: run.folder / LOG, CHECKPOINT: run.folder / BEST}
            if not self._store.is_embedded:
                files[RECORD] = pack_record(run.folder)
        self._ship_files(run, mlflow_id, files)
        if ending:
            self._store.finish_run(mlflow_id, ending["status"], end_ms=ending["end_ms"])
        elif had_ended and run.ended:
            raise StoreError(f"{run.folder / ENDING} must be there until MLflow has the run, but it is gone.")
        return ending is not None

    def _ship_records(self, run: _Watched, mlflow_id: str, tags: Mapping[str, object]) -> None:
        records, offset = read_records(run.folder, run.shipped.offset)
        stamps = {name: _stamp(run.folder / name) for name in (PARAMS, NOTE, DATASET)}
        changed = {name: stamp for name, stamp in stamps.items() if stamp and stamp != run.shipped.stamps.get(name)}
        params = (read_json(run.folder / PARAMS) or {}) if PARAMS in changed else {}
        if NOTE in changed:
            tags = {DESCRIPTION: (run.folder / NOTE).read_text(encoding="utf-8"), **tags}
        dataset = read_json(run.folder / DATASET) if DATASET in changed else None
        if not (records or params or tags or dataset):
            return
        self._store.log(mlflow_id, records=records, params=params, tags=tags)
        if dataset:
            self._store.log_dataset(mlflow_id, **dataset)
        run.shipped.offset = offset
        run.shipped.stamps |= changed
        _write_shipped(run)

    def _ship_files(self, run: _Watched, mlflow_id: str, files: Mapping[str, Path]) -> None:
        stamps = {name: _stamp(path) for name, path in files.items()}
        changed = {name: stamp for name, stamp in stamps.items() if stamp and stamp != run.shipped.stamps.get(name)}
        for name, stamp in changed.items():
            self._store.put_artifact(mlflow_id, files[name], name)
            run.shipped.stamps[name] = stamp
        if changed:
            _write_shipped(run)


def _list_artifacts(folder: Path) -> list[Path]:
    paths = sorted((folder / ARTIFACTS).rglob("*"))
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def _stamp(path: Path) -> list[int]:
    """Return what changes when a file is replaced; empty without one."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _read_shipped(folder: Path) -> _Shipped:
    """Read what MLflow has. A file that a power cut left unreadable counts as none: all is sent again."""
    with contextlib.suppress(StoreError, TypeError):
        content: dict[str, Any] | None = read_json(folder / SHIPPED)
        if content is not None:
            return _Shipped(**content)
    return _Shipped()


def _write_shipped(run: _Watched) -> None:
    partial = run.folder / f".{SHIPPED}.partial"
    partial.write_text(json.dumps(asdict(run.shipped)))
    partial.replace(run.folder / SHIPPED)
