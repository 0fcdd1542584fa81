"""One training that is no trial (a promotion, a stage of one, a fold): in the worker until it is done.

Stands beside the coordinator, which does the same for trials: here nothing is asked, pruned or told. The run's folder
holds what is true, so that the next call goes on from the last finished epoch.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cityopt.config import RunConfig
from cityopt.errors import StoppedError, TrainingError
from cityopt.search.coordinator import MAX_STALLED, end_shipping, run_folder
from cityopt.search.executors.base import EpochDone, Executor, Job, JobEnded, Progressed
from cityopt.search.interrupts import Interrupt
from cityopt.search.observer import Observer
from cityopt.search.sweep import STOPPED
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.run_folder import LAST, Status, read_records, write_status


class SingleTraining:
    """Trains one run after the other in an executor's worker."""

    def __init__(self, store: Path, executor: Executor, shipper: Shipper, observer: Observer) -> None:
        self.store, self.executor, self.shipper, self.observer = store, executor, shipper, observer
        self.interrupt = Interrupt(observer)

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
        except (StoppedError, KeyboardInterrupt):
            self.executor.close()
            self.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})
            raise StoppedError(STOPPED) from None
        except TrainingError as error:
            status = Status("failed", error.reason, str(error))
            if error.reason == "nan":  # it would come again; after any other reason the same command goes on
                write_status(folder, status)
            end_shipping(self.shipper, run_id, status)
            raise
        except BaseException:
            self.executor.close()
            self.shipper.end(run_id, "FAILED", {"cityopt.state": "interrupted"})
            raise

    def complete(self, run_id: str, status: Status) -> None:
        """End a run that is done, in MLflow and then in its folder: one without a status is taken up again."""
        folder = run_folder(self.store, run_id)
        end_shipping(self.shipper, run_id, status)
        write_status(folder, status)
        (folder / LAST).unlink(missing_ok=True)

    def train(self, run: RunConfig, run_id: str) -> float:
        """Train in the worker and return the seconds it took; a worker that dies is replaced and goes on.

        Raises TrainingError (the training failed, or kills its worker again and again) and StoppedError (Ctrl-C).
        """
        folder = run_folder(self.store, run_id)
        stalled, epoch = 0, -1
        self.observer.metric = run.metric
        self.observer.begin_run(run.name, {"training.epochs": run.training.epochs}, resumed=(folder / LAST).exists())
        with self.interrupt:
            while True:
                now = max((record.step for record in read_records(folder)[0]), default=0)
                stalled, epoch = (stalled + 1 if now == epoch else 1), now
                if stalled > MAX_STALLED:
                    raise TrainingError("crash", f"{run.name}: {MAX_STALLED} attempts ended without a finished epoch.")
                self.executor.submit(Job(run_id, folder, uuid.uuid4().hex, run))
                ending = self._watch(run)
                if ending.outcome != "lost":
                    break
                self.observer.say(f"{run.name}: {ending.message}; it is tried again from its last epoch.")
        if ending.outcome == "failed":
            raise TrainingError(ending.reason, f"{run.name}: {ending.message}")
        return float(ending.result["seconds"])

    def _watch(self, run: RunConfig) -> JobEnded:
        while True:
            for event in self.executor.poll(0.2):
                if isinstance(event, Progressed):
                    self.observer.show_progress(run.name, event.progress)
                elif isinstance(event, EpochDone):
                    self.executor.answer(event.run_id, "continue")
                    self.observer.show_epoch(run.name, event.epoch, run.training.epochs, event.metrics)
                elif isinstance(event, JobEnded):
                    return event
            if self.interrupt.is_set:
                raise StoppedError(STOPPED)
