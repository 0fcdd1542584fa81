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
    """Slots that take turns; `before_job` is called before each job with how many began and how many ended.

    A job runs all its epochs whatever it is told, so that each trial costs the same number of reports.
    """

    def __init__(self, before_job: Callable[[int, int], None], num_slots: int = 1) -> None:
        self._before_job, self._num_slots = before_job, num_slots
        self._trackers: dict[str, RunFolder] = {}
        self._events: dict[str, deque[Event]] = {}
        self.num_begun = self.num_ended = 0

    def start(self) -> None:
        """Have nothing to warm up."""

    @property
    def num_free(self) -> int:
        """Slots whose job has ended."""
        return self._num_slots - len(self._events)

    def submit(self, job: Job) -> None:
        """Prepare all that the job will report."""
        self._before_job(self.num_begun, self.num_ended)
        self.num_begun += 1
        begin_attempt(job.folder, job.token)
        tracker = self._trackers[job.run_id] = RunFolder(job.folder, job.token)
        tracker.log_params({"learning_rate": job.config.training.learning_rate, "seed": job.config.seed})
        events = self._events[job.run_id] = deque[Event]()
        for epoch in range(1, job.config.training.epochs + 1):
            events.append(EpochDone(job.run_id, epoch, invent_metrics(job.config.training.learning_rate, epoch)))
        events.append(JobEnded(job.run_id, "complete", result={"seconds": 0.0}))

    def poll(self, timeout_s: float) -> list[Event]:
        """Return each job's next epoch, recorded in the run's folder first, or its end."""
        return [self._take(run_id) for run_id in list(self._events)]

    def _take(self, run_id: str) -> Event:
        event = self._events[run_id].popleft()
        if isinstance(event, EpochDone):
            self._trackers[run_id].log_metrics(event.metrics, step=event.epoch)
        else:
            del self._events[run_id], self._trackers[run_id]
            self.num_ended += 1
        return event

    def answer(self, run_id: str, answer: Answer) -> None:
        """Go on, whatever the answer."""

    def abandon(self, run_id: str) -> None:
        """Forget a job."""
        del self._events[run_id], self._trackers[run_id]

    def end_survivor(self, folder: Path) -> None:
        """Know of no other worker."""

    def close(self) -> None:
        """Forget the jobs."""
        self._events.clear()


def invent_metrics(learning_rate: float, epoch: int) -> dict[str, float]:
    """Return as many metrics as an epoch reports, better near a learning rate of .01 and with every epoch."""
    score = math.exp(-abs(math.log10(learning_rate) + 2)) * (1 - 0.5**epoch)
    return {name: score * (1 - 0.01 * place) for place, name in enumerate(METRICS)}
