"""Trainings that are no trials (a promotion, a stage of one, folds): in workers until they are done.

Stands beside the coordinator, which does the same for trials: here nothing is asked, pruned or told. The run's folder
holds what is true, so that the next call goes on from the last finished epoch.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.config import RunConfig
from cityopt.errors import StoppedError, TrainingError
from cityopt.search.attempts import MAX_STALLED
from cityopt.search.executors.base import NEVER_BEGAN, EpochDone, Event, Executor, Job, JobEnded, Progressed
from cityopt.search.interrupts import Interrupt
from cityopt.search.observer import Observer
from cityopt.search.requests import Requests
from cityopt.search.scorekeeping import end_shipping
from cityopt.search.sweep import STOPPED
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.run_folder import LAST, RunFolder, Status, read_attempt, read_records, write_status

OnEnd = Callable[[str, RunConfig, Mapping[str, Any]], None]
"""Called with a run's id, its config and what its training brought (the fields of `TrainingResult`)."""

OnFailure = Callable[[str, RunConfig, str, str], RunConfig | bool]
"""Called with a run's id, its config, a reason and a message; says whether the other runs go on without it, or returns
a config with which it is tried again."""


class RunFailedError(TrainingError):
    """One of several trainings failed."""

    def __init__(self, run_id: str, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.run_id = run_id


@dataclass(slots=True)
class _Running:
    """A run in a worker's hands."""

    run: RunConfig
    epoch: int = -1
    stalled: int = 0


class SingleTraining:
    """Trains runs in an executor's workers: one, or several side by side."""

    def __init__(
        self, store: Path, executor: Executor, shipper: Shipper, observer: Observer, requests: Requests | None = None
    ) -> None:
        self.store, self.executor, self.shipper, self.observer = store, executor, shipper, observer
        self.requests = requests
        self.interrupt = Interrupt(observer)
        self._completed: set[str] = set()

    @contextmanager
    def holding(self, run_id: str) -> Iterator[Path]:
        """Watch a run's folder while the block works on it, and end the run in MLflow if the block fails.

        A block that succeeds ends its run itself. Raises StoppedError after Ctrl-C; what failed is raised again.
        """
        folder = run_folder(self.store, run_id)
        folder.mkdir(parents=True, exist_ok=True)
        self.executor.end_survivor(folder)
        self.shipper.watch(run_id, folder)
        try:
            yield folder
        except BaseException as error:
            if run_id not in self._completed:
                self._break_off(run_id, folder, error)
            if isinstance(error, StoppedError | KeyboardInterrupt):
                raise StoppedError(STOPPED) from None
            raise

    def complete(self, run_id: str, status: Status) -> None:
        """End a run that is done, in MLflow and then in its folder: one without a status is taken up again."""
        folder = run_folder(self.store, run_id)
        end_shipping(self.shipper, run_id, status)
        write_status(folder, status)
        (folder / LAST).unlink(missing_ok=True)
        self._completed.add(run_id)

    def open_tracker(self, run_id: str) -> RunFolder:
        """Return a run's folder to add to, for the attempt that had it last."""
        folder = run_folder(self.store, run_id)
        attempt = read_attempt(folder)
        return RunFolder(folder, attempt.token if attempt else "")

    def train(self, run: RunConfig, run_id: str) -> float:
        """Train in a worker and return the seconds it took; a worker that dies is replaced and goes on.

        Raises TrainingError (the training failed, or kills its worker again and again) and StoppedError (Ctrl-C).
        """
        found: list[Mapping[str, Any]] = []
        self.train_several([(run_id, run)], lambda _id, _run, result: found.append(result))
        return float(found[0]["seconds"])

    def train_several(
        self, runs: Iterable[tuple[str, RunConfig]], on_end: OnEnd, on_failure: OnFailure = lambda *_: False
    ) -> None:
        """Train runs, given with their ids, as many side by side as there are workers.

        `runs` is asked for the next one when a worker is free for it. Raises as `train`, of the first that fails,
        unless `on_failure` lets the others go on.
        """
        waiting, running = iter(runs), dict[str, _Running]()
        with self.interrupt:
            while self._fill_slots(waiting, running):
                for event in self.executor.poll(0.2):
                    self._handle(event, running, on_end, on_failure)
                if self._is_stopped():
                    raise StoppedError(STOPPED)

    def _is_stopped(self) -> bool:
        """Say whether to leave the rest to the next call: after Ctrl-C, or when another command asked for it."""
        if not self.interrupt.is_set and self.requests is not None and self.requests.hear_stop():
            self.observer.say("Asked to stop: what is finished is kept.")
            self.interrupt.is_set = True
        return self.interrupt.is_set

    def _fill_slots(self, waiting: Iterator[tuple[str, RunConfig]], running: dict[str, _Running]) -> bool:
        """Start runs on free slots; say whether there is anything to wait for."""
        while self.executor.num_free and (following := next(waiting, None)):
            run_id, run = following
            resumed = (run_folder(self.store, run_id) / LAST).exists()
            self.observer.metric = run.metric
            self.observer.begin_run(run.name, {"training.epochs": run.last_epoch}, resumed=resumed)
            running[run_id] = _Running(run)
            self._submit(run_id, running[run_id])
        return bool(running)

    def _submit(self, run_id: str, its: _Running) -> None:
        """Begin an attempt at a run, unless too many ended without a finished epoch."""
        folder = run_folder(self.store, run_id)
        now = max((record.step for record in read_records(folder)[0]), default=0)
        its.stalled, its.epoch = (its.stalled + 1 if now == its.epoch else 1), now
        if its.stalled > MAX_STALLED:
            message = f"{its.run.name}: {MAX_STALLED} attempts ended without a finished epoch."
            raise RunFailedError(run_id, "crash", message)
        self.executor.submit(Job(run_id, folder, uuid.uuid4().hex, its.run))

    def _handle(self, event: Event, running: dict[str, _Running], on_end: OnEnd, on_failure: OnFailure) -> None:
        if not isinstance(event, Progressed | EpochDone | JobEnded) or event.run_id not in running:
            return
        run = running[event.run_id].run
        if isinstance(event, Progressed):
            self.observer.show_progress(run.name, event.progress)
        elif isinstance(event, EpochDone):
            self.executor.answer(event.run_id, "continue")
            self.observer.show_epoch(run.name, event.epoch, run.last_epoch, event.metrics)
        elif event.outcome == "lost":
            running[event.run_id].stalled -= event.reason == NEVER_BEGAN
            self.observer.say(f"{run.name}: {event.message}; it is tried again from its last epoch.")
            try:
                self._submit(event.run_id, running[event.run_id])
            except RunFailedError as error:
                if on_failure(event.run_id, run, error.reason, str(error)) is not True:
                    raise
                del running[event.run_id]
        elif event.outcome == "failed":
            answer = on_failure(event.run_id, run, event.reason, event.message)
            if not answer:
                raise RunFailedError(event.run_id, event.reason, f"{run.name}: {event.message}")
            del running[event.run_id]
            if isinstance(answer, RunConfig):
                running[event.run_id] = _Running(answer)
                self._submit(event.run_id, running[event.run_id])
        else:
            del running[event.run_id]
            on_end(event.run_id, run, event.result)

    def _break_off(self, run_id: str, folder: Path, error: BaseException) -> None:
        """End a run in MLflow that something came between: its own failure, another run's, or the user."""
        mine = not isinstance(error, RunFailedError) or error.run_id == run_id
        if isinstance(error, TrainingError) and mine:
            status = Status("failed", error.reason, str(error))
            if error.reason == "nan":  # it would come again; after any other reason the same command goes on
                write_status(folder, status)
                (folder / LAST).unlink(missing_ok=True)
            end_shipping(self.shipper, run_id, status)
            return
        self.executor.close()
        stopped = isinstance(error, StoppedError | KeyboardInterrupt) or not mine
        self.shipper.end(run_id, "KILLED" if stopped else "FAILED", {"cityopt.state": "interrupted"})


def strip_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two configs of runs, as plain data, the same training, wherever and in what pieces they run."""
    places = ("name", "device", "devices", "threads", "cache")
    rest = {key: value for key, value in config.items() if key not in places}
    rest["data"] = {key: value for key, value in config["data"].items() if key not in ("root", "num_workers")}
    rest["training"] = {key: value for key, value in config["training"].items() if key != "accumulation"}
    return rest
