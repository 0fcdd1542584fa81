"""An executor whose worker trains nothing: it answers at once with the epochs that a training would report.

What a worker does on its own (its run folder, with the fsyncs of each record) is done here in the coordinator's
process and so counts as the coordinator's time: the numbers are on the safe side.
"""

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cityopt.evaluation.coco_ap import metric_names
from cityopt.search.executors.base import Answer, EpochDone, Event, Executor, Job, JobEnded
from cityopt.tracking.run_folder import RunFolder, begin_attempt

METRICS = [f"val/{name}" for name in metric_names()]


class NullExecutor(Executor):
    """One slot; `before_job` is called with the number of jobs that ended before each is taken.

    A job runs all its epochs whatever it is told, so that each trial costs the same number of reports.
    """

    def __init__(self, before_job: Callable[[int], None]) -> None:
        self._before_job = before_job
        self._tracker: RunFolder | None = None
        self._events: deque[Event] = deque()
        self.num_ended = 0

    def start(self) -> None:
        """Have nothing to warm up."""

    @property
    def num_free(self) -> int:
        """One, until the job has ended."""
        return 0 if self._events else 1

    def submit(self, job: Job) -> None:
        """Prepare all that the job will report."""
        self._before_job(self.num_ended)
        begin_attempt(job.folder, job.token)
        self._tracker = RunFolder(job.folder, job.token)
        self._tracker.log_params({"learning_rate": job.config.training.learning_rate, "seed": job.config.seed})
        for epoch in range(1, job.config.training.epochs + 1):
            self._events.append(EpochDone(job.run_id, epoch, invent_metrics(job.config.training.learning_rate, epoch)))
        self._events.append(JobEnded(job.run_id, "complete", result={"seconds": 0.0}))

    def poll(self, timeout_s: float) -> list[Event]:
        """Return the next epoch, recorded in the run's folder first, or the end."""
        event = self._events.popleft()
        if isinstance(event, EpochDone) and self._tracker is not None:
            self._tracker.log_metrics(event.metrics, step=event.epoch)
        self.num_ended += isinstance(event, JobEnded)
        return [event]

    def answer(self, run_id: str, answer: Answer) -> None:
        """Go on, whatever the answer."""

    def end_survivor(self, folder: Path) -> None:
        """Know of no other worker."""

    def close(self) -> None:
        """Forget the job."""
        self._events.clear()


def invent_metrics(learning_rate: float, epoch: int) -> dict[str, float]:
    """Return as many metrics as an epoch reports, better near a learning rate of .01 and with every epoch."""
    score = math.exp(-abs(math.log10(learning_rate) + 2)) * (1 - 0.5**epoch)
    return {name: score * (1 - 0.01 * place) for place, name in enumerate(METRICS)}
