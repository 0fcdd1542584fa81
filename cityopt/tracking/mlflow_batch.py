"""The fast way into MLflow's database on this machine: a few statements, not an object for every point.

MLflow's own `log_batch` takes about a quarter of a millisecond of CPU time for each point, a third of all that a trial
costs its coordinator. What is written here are the same rows. A database that is not as this module knows it, a run
that takes no more, and what MLflow might refuse are left to `log_batch`, whose errors say why.

Source: `SqlAlchemyStore.log_batch` of MLflow 3: a point that is there already is not written twice, NaN is kept as 0
and a mark, infinities as the largest numbers, and the latest point of a metric is the one of the last step, then of
the last moment, then of the largest value; a param never changes, a tag does.
"""

import math
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cityopt.tracking.run_folder import Record

Point = tuple[str, float, int, str, int, bool]
Text = tuple[str, str, str]
_POINT = ("key", "value", "timestamp", "run_uuid", "step", "is_nan")
_TEXT = ("key", "value", "run_uuid")
_TABLES = {"metrics": _POINT, "latest_metrics": _POINT, "params": _TEXT, "tags": _TEXT}
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
_BUSY_S = 20.0


class BatchWriter:
    """Writes to one database. It keeps its connection, since a new one reads the whole schema first.

    For one thread at a time.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None

    def write(self, run_id: str, records: Iterable[Record], params: Mapping[str, str], tags: Mapping[str, str]) -> bool:
        """Log to a run in one transaction. False, and nothing written, where MLflow itself must do it."""
        points = [_build_point(run_id, name, x, record) for record in records for name, x in record.metrics.items()]
        if not _is_plain((*(point[0] for point in points), *params, *tags), (*params.values(), *tags.values())):
            return False
        try:
            if self._connection is None:
                self._connection = _connect(self._database)
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                _check_run(self._connection, run_id)
                self._connection.executemany(_INSERT_POINT, points)
                self._connection.executemany(_KEEP_LATEST, _pick_latest(points))
                self._connection.executemany(_INSERT_PARAM, _add_run(params, run_id))
                self._connection.executemany(_SET_TAG, _add_run(tags, run_id))
                _check_params(self._connection, run_id, params)
        except sqlite3.Error:
            self.close()
            return False
        return True

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


def _check_run(connection: sqlite3.Connection, run_id: str) -> None:
    found = connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    if found != ("active",):
        raise sqlite3.IntegrityError(f"{run_id} must be a run that was not deleted")


def _check_params(connection: sqlite3.Connection, run_id: str, params: Mapping[str, str]) -> None:
    if not params:
        return
    stored = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)).fetchall())
    if any(stored[name] != value for name, value in params.items()):
        raise sqlite3.IntegrityError(f"a param of {run_id} has another value already")


def _is_plain(names: Sequence[str], texts: Sequence[str]) -> bool:
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
