"""The study's own run in MLflow, its parent run: opened at the start, ended at the end, written by one at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from cityopt.config import StudyConfig
from cityopt.errors import StoppedError
from cityopt.search.facts import StudyFacts
from cityopt.search.observer import Observer
from cityopt.search.ownership import Ownership, SoleOwner
from cityopt.search.tags import describe_data
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore, RunEnd
from cityopt.tracking.run_folder import (
    Record,
    RunFolder,
    StaleAttemptError,
    Tracker,
    take_over,
    tolerating_full_disk,
    write_dataset,
)

_SHIPPING_TIMEOUT_S = 120.0
_LONGEST_OPENING_S = 600.0
"""MLflow may be away for a while."""


class ParentRun(Tracker):
    """Writes to the parent run's folder while this coordinator is the one who does (`Ownership.holds_parent`).

    Metrics are kept meanwhile: whoever takes the run over adds what the last one did not come to.
    """

    def __init__(self, run_id: str, path: Path, shipper: Shipper, ownership: Ownership) -> None:
        self._run_id, self._path, self._shipper, self._ownership = run_id, path, shipper, ownership
        self._records: list[Record] = []
        self._tracker: RunFolder | None = None

    @property
    def folder(self) -> Path | None:
        """Return the folder, None while another coordinator writes there."""
        return self._path if self._open() else None

    def check_attempt(self) -> None:
        """Find nothing against it: it is asked before each write."""

    def read_records(self) -> list[Record]:
        """Return what this coordinator recorded."""
        return list(self._records)

    def end(self, status: RunEnd) -> None:
        """End the run, unless others go on with the study."""
        with suppress(SQLAlchemyError):  # the studies' database is away, and nobody knows who goes on
            if self._ownership.leave() and self._open():
                self._shipper.end(self._run_id, status)
                return
        self._shipper.forget(self._run_id)

    def _open(self) -> RunFolder | None:
        is_mine = self._ownership.holds_parent()
        if is_mine and self._tracker is None:
            self._tracker = take_over(self._path)
            self._shipper.watch(self._run_id, self._path)
            for record in self._records:
                self._tracker.log_metrics(record.metrics, record.step, record.time_ms)
        elif not is_mine and self._tracker is not None:
            self._tracker = None
            self._shipper.forget(self._run_id)
        return self._tracker

    def _write_record(self, record: Record) -> None:
        self._records.append(record)
        self._write(lambda tracker: tracker.log_metrics(record.metrics, record.step, record.time_ms))

    def _write_params(self, params: dict[str, Any]) -> None:
        self._write(lambda tracker: tracker.log_params(params))

    def _write_file(self, name: PurePosixPath, content: bytes) -> None:
        self._write(lambda tracker: tracker.write_artifact(str(name), content))

    def _write(self, action: Callable[[RunFolder], None]) -> None:
        try:
            if tracker := self._open():
                action(tracker)
        except StaleAttemptError:  # another coordinator took it over: this one was suspended, and has yet to hear of it
            self._tracker = None
            self._shipper.forget(self._run_id)


@contextmanager
def open_parent(
    mlflow: MlflowStore, config: StudyConfig, facts: StudyFacts, observer: Observer, ownership: Ownership | None = None
) -> Iterator[tuple[ParentRun, Shipper]]:
    """Open the study's parent run and the shipper; the run ends with the block, whatever happens in it.

    With several coordinators one of them writes it, and the last one ends it.
    """
    owner = ownership or SoleOwner()
    tags = describe_data(facts) | {"cityopt.seed": config.seed, "cityopt.metric": config.search.metric}
    is_there = mlflow.find_run(config.name, config.name)
    # Two coordinators that made it at once would make two; once it is there, nobody keeps others from deciding who
    # tries what while MLflow lets wait for its answers.
    with nullcontext() if is_there else owner.deciding(_LONGEST_OPENING_S):
        run_id = mlflow.open_parent(config.name, tags)
    shipper = Shipper(mlflow)
    parent = ParentRun(run_id, run_folder(mlflow.store, run_id), shipper, owner)
    try:
        if folder := parent.folder:
            write_dataset(folder, config.name, facts.fingerprint, facts.root)
        yield parent, shipper
    except BaseException as error:
        with tolerating_full_disk():
            parent.end("FINISHED" if isinstance(error, StoppedError | KeyboardInterrupt) else "FAILED")
        raise
    else:
        parent.end("FINISHED")
    finally:
        shipper.drain(_SHIPPING_TIMEOUT_S)
        if not shipper.close():
            observer.say(f"MLflow does not have everything yet; the next start sends the rest. {shipper.problem}")
