"""The fast way into MLflow's database on this machine: a few statements, not an object for every point.

MLflow's own `log_batch` takes about a quarter of a millisecond of CPU time for each point, and some milliseconds each
to begin a run, to name its dataset and to end it: more than all else that a trial costs its coordinator. What is
written here are the same rows. A database that is not as this module knows it, a run that takes no more, and what
MLflow might refuse are left to MLflow, whose errors say why.

Source: `SqlAlchemyStore` of MLflow 3, its `create_run`, `log_batch`, `log_inputs` and `update_run_info`. A point that
is there already is not written twice, NaN is kept as 0 and a mark, infinities as the largest numbers, and the latest
point of a metric is the one of the last step, then of the last moment, then of the largest value; a param never
changes, a tag does.
"""

import math
import re
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cityopt.tracking.run_folder import Record

T = TypeVar("T")
Point = tuple[str, float, int, str, int, bool]
Text = tuple[str, str, str]
_POINT = ("key", "value", "timestamp", "run_uuid", "step", "is_nan")
_TEXT = ("key", "value", "run_uuid")
_FILLED = ("run_uuid", "name", "user_id", "start_time", "artifact_uri", "experiment_id")
_FIXED = {
    "source_type": "UNKNOWN",
    "source_name": "",
    "entry_point_name": "",
    "source_version": "",
    "status": "RUNNING",
    "lifecycle_stage": "active",
}
"""What all runs have that MLflow's client creates."""
_LINKED = ("input_uuid", "source_type", "source_id", "destination_type", "destination_id")
_TABLES = {
    "metrics": _POINT,
    "latest_metrics": _POINT,
    "params": _TEXT,
    "tags": _TEXT,
    "runs": (*_FILLED, *_FIXED, "end_time", "deleted_time"),
    "inputs": (*_LINKED, "step"),
    "input_tags": ("input_uuid", "name", "value"),
}
_INSERT_RUN = (
    f"INSERT INTO runs ({', '.join((*_FILLED, *_FIXED))}) "
    f"VALUES (?, ?, ?, ?, ?, ?, {', '.join(map(repr, _FIXED.values()))})"
)
_FIND_DATASET = (
    "SELECT dataset_uuid FROM datasets JOIN runs USING (experiment_id) WHERE datasets.name = ? AND digest = ? "
    "AND run_uuid = ?"
)
_LINK = f"INSERT OR IGNORE INTO inputs ({', '.join(_LINKED)}) VALUES (?, 'DATASET', ?, 'RUN', ?)"
_TAG_LINK = "INSERT INTO input_tags (input_uuid, name, value) VALUES (?, 'mlflow.data.context', ?)"
_INSERT_POINT = f"INSERT OR IGNORE INTO metrics ({', '.join(_POINT)}) VALUES (?, ?, ?, ?, ?, ?)"
_KEEP_LATEST = (
    f"INSERT INTO latest_metrics ({', '.join(_POINT)}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key, run_uuid) DO UPDATE "
    "SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan "
    "WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)"
)
_INSERT_PARAM = "INSERT OR IGNORE INTO params (key, value, run_uuid) VALUES (?, ?, ?)"
_SET_TAG = (
    "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?) "
    "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value"
)
_NAME = re.compile(r"(?!\.{1,2}(/|$))[\w\-. :]+(/(?!\.{1,2}(/|$))[\w\-. :]+)*", re.ASCII)
_LONGEST_NAME, _LONGEST_TEXT = 250, 6000
_ACTS = "mlflow.runName"
"""The tag that is more than a tag."""
_FOLDER = re.compile(r"file://[^?#;]*[^?#;/]")
_BUSY_S = 20.0


class BatchWriter:
    """Writes to one database. It keeps its connection, since a new one reads the whole schema first.

    Where MLflow itself must do what is asked, nothing is written and the answer is False or None. For one thread at a
    time.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None

    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> tuple[str, str] | None:
        """Create a run, RUNNING from now on, and return its id and where its artifacts lie."""
        if not _is_plain(tags, tags.values()):
            return None
        run_id, start_ms = uuid.uuid4().hex, time.time_ns() // 1_000_000

        def create(connection: sqlite3.Connection) -> tuple[str, str]:
            query = "SELECT artifact_location FROM experiments WHERE experiment_id = ? AND lifecycle_stage = 'active'"
            location = _expect(connection.execute(query, (experiment_id,)))
            if not _FOLDER.fullmatch(location):
                raise sqlite3.IntegrityError("the address of artifacts must be a folder's")
            artifacts = f"{location}/{run_id}/artifacts"
            row = (run_id, name, tags.get("mlflow.user", "unknown"), start_ms, artifacts, experiment_id)
            connection.execute(_INSERT_RUN, row)
            connection.executemany(_SET_TAG, _add_run({**tags, _ACTS: name}, run_id))
            return run_id, artifacts

        return self._attempt(create)

    def write(self, run_id: str, records: Iterable[Record], params: Mapping[str, str], tags: Mapping[str, str]) -> bool:
        """Log to a run."""
        points = [_build_point(run_id, name, x, record) for record in records for name, x in record.metrics.items()]
        if not _is_plain((*(point[0] for point in points), *params, *tags), (*params.values(), *tags.values())):
            return False

        def log(connection: sqlite3.Connection) -> bool:
            _check_run(connection, run_id)
            connection.executemany(_INSERT_POINT, points)
            connection.executemany(_KEEP_LATEST, _pick_latest(points))
            connection.executemany(_INSERT_PARAM, _add_run(params, run_id))
            connection.executemany(_SET_TAG, _add_run(tags, run_id))
            _check_params(connection, run_id, params)
            return True

        return self._attempt(log) or False

    def link_dataset(self, run_id: str, name: str, digest: str, context: str) -> bool:
        """Name a dataset, which MLflow knows from another run of the experiment, as a run's input."""

        def link(connection: sqlite3.Connection) -> bool:
            _check_run(connection, run_id)
            dataset = _expect(connection.execute(_FIND_DATASET, (name, digest, run_id)))
            link_id = uuid.uuid4().hex
            if connection.execute(_LINK, (link_id, dataset, run_id)).rowcount:
                connection.execute(_TAG_LINK, (link_id, context))
            return True

        return self._attempt(link) or False

    def end_run(self, run_id: str, status: str, end_ms: int) -> bool:
        """Give a run its end."""

        def end(connection: sqlite3.Connection) -> bool:
            _check_run(connection, run_id)
            connection.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", (status, end_ms, run_id))
            return True

        return self._attempt(end) or False

    def _attempt(self, act: Callable[[sqlite3.Connection], T]) -> T | None:
        """Return what is done in one transaction, None where it cannot be done."""
        try:
            if self._connection is None:
                self._connection = _connect(self._database)
            with self._connection as connection:
                connection.execute("BEGIN IMMEDIATE")
                return act(connection)
        except sqlite3.Error:
            self.close()
            return None

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{database.as_uri()}?mode=rw", uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    for table, columns in _TABLES.items():
        if {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} != set(columns):
            connection.close()
            raise sqlite3.DatabaseError(f"{table} has other columns than those that are filled here")
    return connection


def _expect(found: sqlite3.Cursor) -> Any:
    """Return the value that was looked for."""
    row = found.fetchone()
    if row is None:
        raise sqlite3.IntegrityError("what is looked for must be there")
    return row[0]


def _check_run(connection: sqlite3.Connection, run_id: str) -> None:
    if _expect(connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,))) != "active":
        raise sqlite3.IntegrityError(f"{run_id} must be a run that was not deleted")


def _check_params(connection: sqlite3.Connection, run_id: str, params: Mapping[str, str]) -> None:
    if not params:
        return
    stored = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)).fetchall())
    if any(stored[name] != value for name, value in params.items()):
        raise sqlite3.IntegrityError(f"a param of {run_id} has another value already")


def _is_plain(names: Collection[str], texts: Collection[str]) -> bool:
    """Say whether MLflow takes all of that as it is."""
    return all(_NAME.fullmatch(name) and len(name) <= _LONGEST_NAME and name != _ACTS for name in names) and all(
        len(text) <= _LONGEST_TEXT for text in texts
    )


def _build_point(run_id: str, name: str, value: float, record: Record) -> Point:
    is_nan, largest = math.isnan(value), sys.float_info.max
    kept = 0.0 if is_nan else min(max(value, -largest), largest)
    return name, kept, record.time_ms, run_id, record.step, is_nan


def _add_run(texts: Mapping[str, str], run_id: str) -> list[Text]:
    return [(name, text, run_id) for name, text in texts.items()]


def _pick_latest(points: Iterable[Point]) -> list[Point]:
    """Return the latest point of each metric."""
    latest: dict[str, Point] = {}
    for point in points:
        known = latest.get(point[0])
        if known is None or _rank(point) > _rank(known):
            latest[point[0]] = point
    return list(latest.values())


def _rank(point: Point) -> tuple[int, int, float]:
    _, value, time_ms, _, step, _ = point
    return step, time_ms, value
