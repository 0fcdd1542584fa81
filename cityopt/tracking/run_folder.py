"""Runs as folders: what a training records, with no MLflow and no torch in sight.

A worker writes into the folder of its run through a `Tracker`; the coordinator's shipper (`mlflow_shipper`)
mirrors the folder into MLflow. A folder holds

    attempt.json    who may write: {"token", "pid", "started", "host"}
    params.json     {name: value}
    metrics.jsonl   one line per record: {"step", "time_ms", "metrics": {name: value}}
    artifacts/      files, in folders of their own
    note.md         what the run is, in Markdown, written anew as it goes on
    last.pt best.pt checkpoints, written by the training
    log.txt         what the worker printed
    status.json     the end, written by the coordinator

Each file but the two logs is written whole or not at all. A record, a metric of a step and a param are
written once: what is recorded first stays, as in MLflow, so that an interrupted training may repeat itself.
NaN and infinities are stored as the texts "NaN", "Infinity" and "-Infinity", since JSON has no such numbers.
"""

import errno
import json
import math
import os
import shutil
import socket
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cityopt.errors import StoreError

ATTEMPT, PARAMS, METRICS, ARTIFACTS = "attempt.json", "params.json", "metrics.jsonl", "artifacts"
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors that say that a disk, or a user's share of it, is full."""
LAST, BEST, LOG, STATUS, NOTE = "last.pt", "best.pt", "log.txt", "status.json", "note.md"
DATASET = "dataset.json"
_TAIL_BYTES, _TAIL_LINES = 3000, 25


class StaleAttemptError(StoreError):
    """An attempt writes to a run that another attempt has taken over."""


@dataclass(frozen=True, slots=True)
class Record:
    """Metrics of one step (an epoch, from 1) and when they were first recorded (milliseconds since 1970)."""

    step: int
    time_ms: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Who may write to a folder: the token, and the process that has it; `started` tells it from others of its pid."""

    token: str
    pid: int
    started: float
    host: str = ""
    """The machine of the process; empty in folders of versions that did not know it."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a run ended."""

    outcome: Literal["complete", "pruned", "failed"]
    reason: str = ""
    message: str = ""
    seconds: float = 0.0
    log: str = ""
    """The last lines of the log of a run that failed."""


class Tracker(ABC):
    """Takes what one run records. Members: `RunFolder` and `NullTracker`, which pass one suite."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """Folder of the run, where checkpoints go too; None keeps nothing."""

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings: numbers, texts, and lists of them. A param that is there already stays as it is."""
        texts = {name: _encode(value) for name, value in params.items()}
        json.dumps(texts, allow_nan=False)
        self._write_params(texts)

    def log_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record metrics of a step >= 0; `time_ms` is now by default. Metrics that the step has already stay."""
        if step < 0:
            raise ValueError(f"`step >= 0` must hold, but got {step}")
        moment = time.time_ns() // 1_000_000 if time_ms is None else time_ms
        self._write_record(Record(step, moment, {name: float(value) for name, value in metrics.items()}))

    def write_artifact(self, name: str, content: bytes | str) -> None:
        """Write a file of the run, such as `overlays/epoch-003.png`; one of that name is replaced."""
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or any(part.startswith(".") for part in path.parts):
            raise ValueError(f"an artifact's name must be a relative path without dot-files, but got {name!r}")
        self._write_file(path, content.encode() if isinstance(content, str) else content)

    @abstractmethod
    def check_attempt(self) -> None:
        """Check that this attempt may still write; to be called before anything else is put into `folder`.

        Raises StaleAttemptError: another attempt has taken the run over.
        """

    @abstractmethod
    def read_records(self) -> list[Record]:
        """Return what `log_metrics` recorded, in that order."""

    @abstractmethod
    def _write_params(self, params: dict[str, Any]) -> None: ...

    @abstractmethod
    def _write_record(self, record: Record) -> None: ...

    @abstractmethod
    def _write_file(self, name: PurePosixPath, content: bytes) -> None: ...


class NullTracker(Tracker):
    """Keeps nothing."""

    @property
    def folder(self) -> None:
        """Return None."""
        return

    def check_attempt(self) -> None:
        """Find nothing against it."""

    def read_records(self) -> list[Record]:
        """Return nothing."""
        return []

    def _write_params(self, params: dict[str, Any]) -> None: ...

    def _write_record(self, record: Record) -> None: ...

    def _write_file(self, name: PurePosixPath, content: bytes) -> None: ...


class RunFolder(Tracker):
    """Writes a run's folder, for the attempt that has its token.

    A folder without an attempt is claimed. Every write raises StaleAttemptError once another token has it.
    """

    def __init__(self, path: Path, token: str = "") -> None:
        self._path, self._token = path, token
        self._recorded: set[tuple[int, str]] | None = None
        path.mkdir(parents=True, exist_ok=True)
        if read_attempt(path) is None:
            begin_attempt(path, token)
        self.check_attempt()

    @property
    def folder(self) -> Path:
        """Return the folder."""
        return self._path

    def read_records(self) -> list[Record]:
        """Return the records. A line that a kill left torn is none."""
        return read_records(self._path)[0]

    def read_params(self) -> dict[str, Any]:
        """Return the params; a value that is no number, text, list or null is a text."""
        return read_json(self._path / PARAMS) or {}

    def check_attempt(self) -> None:
        """Read who has the folder. Raises StaleAttemptError: another attempt."""
        attempt = read_attempt(self._path)
        if attempt is None or attempt.token != self._token:
            raise StaleAttemptError(
                f"only the latest attempt may write to {self._path}, but another one has taken it over. "
                "End this process; the run goes on in the other."
            )

    def _write_params(self, params: dict[str, Any]) -> None:
        self.check_attempt()
        known = self.read_params()
        if params.keys() - known.keys():
            write_json(self._path / PARAMS, {**params, **known})

    def _write_record(self, record: Record) -> None:
        self.check_attempt()
        if self._recorded is None:
            self._recorded = {(old.step, name) for old in self.read_records() for name in old.metrics}
        fresh = {name: v for name, v in record.metrics.items() if (record.step, name) not in self._recorded}
        if not fresh:
            return
        values = {name: _encode(value) for name, value in fresh.items()}
        line = {"step": record.step, "time_ms": record.time_ms, "metrics": values}
        _append_line(self._path / METRICS, json.dumps(line, allow_nan=False).encode())
        self._recorded |= {(record.step, name) for name in fresh}

    def _write_file(self, name: PurePosixPath, content: bytes) -> None:
        self.check_attempt()
        path = self._path / ARTIFACTS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


def begin_attempt(folder: Path, token: str, pid: int | None = None, started: float | None = None) -> None:
    """Give a run's folder, made where it is missing, to the attempt with this token. Earlier ones are stale then.

    What an earlier one was writing when it was killed is removed: a checkpoint can be hundreds of megabytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)
    moment = time.time() if started is None else started
    attempt = Attempt(token, pid or os.getpid(), moment, socket.gethostname())
    write_json(folder / ATTEMPT, asdict(attempt))


def take_over(folder: Path) -> RunFolder:
    """Return a run's folder for this process to write to, in an attempt of its own. Earlier attempts are stale then."""
    token = uuid.uuid4().hex
    begin_attempt(folder, token)
    return RunFolder(folder, token)


def read_attempt(folder: Path) -> Attempt | None:
    """Return the attempt that has a folder, None where nobody began one."""
    content = read_json(folder / ATTEMPT)
    return None if content is None else Attempt(**content)


def write_dataset(folder: Path, name: str, digest: str, source: str) -> None:
    """Record the dataset that a run stands on: its name, a digest and where it lies. For the coordinator alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DATASET, {"name": name, "digest": digest, "source": source})


def write_status(folder: Path, status: Status) -> None:
    """Record how a run ended, also one that no attempt began. For the coordinator alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STATUS, asdict(status))


def read_status(folder: Path) -> Status | None:
    """Return how a run ended, None while it has not."""
    content = read_json(folder / STATUS)
    return None if content is None else Status(**content)


def read_log_tail(folder: Path) -> str:
    """Return the last lines of a run's log, about a screen of them; nothing where there is no log."""
    path = folder / LOG
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_TAIL_LINES:])


def read_records(folder: Path, offset: int = 0) -> tuple[list[Record], int]:
    """Read the whole lines of a folder's metrics from a byte offset on.

    Returns the records and the offset after the last whole line; without a file, none and the same offset.
    Raises StoreError: a line is no record.
    """
    path = folder / METRICS
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [_parse_record(line, path) for line in whole.splitlines()], offset + len(whole)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's mapping, None where there is no file. Raises StoreError: no JSON, or no mapping."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{path} must hold JSON, but {error}. Remove the file to go on without it.") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path} must hold a mapping, but holds {type(content).__name__}. Remove the file.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as JSON, whole or not at all."""
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False).encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when the power goes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, whole or not at all; a copy where the file system has no links."""
    if target.exists() and target.samefile(source):  # renaming one link of a file to another would do nothing
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, partial)
    partial.replace(target)


@contextmanager
def tolerating_full_disk() -> Iterator[None]:
    """Leave out the rest of a block when the disk is full: for notes that the next start can do without."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def _append_line(path: Path, line: bytes) -> None:
    """Append a line that is on disk when this returns; a torn line at the end of the file is cut off first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _parse_record(line: bytes, path: Path) -> Record:
    try:
        content = json.loads(line)
        metrics = {name: float(value) for name, value in content["metrics"].items()}
        return Record(int(content["step"]), int(content["time_ms"]), metrics)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"each line of {path} must be a record, but found {line[:80]!r}. Remove the line.") from error


def _encode(value: object) -> Any:
    """Turn a value into what JSON can hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
