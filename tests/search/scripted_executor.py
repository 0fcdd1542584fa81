"""An executor that plays scripts instead of training, and lives that end at a chosen write."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage

from cityopt.config import RunConfig
from cityopt.errors import StoreError
from cityopt.search.executors.base import NEVER_BEGAN, Answer, EpochDone, Event, Executor, Job, JobEnded
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import RunFolder, begin_attempt, read_records

AP = "val/coco/segm/ap"


@dataclass(frozen=True)
class Script:
    """What a worker would do: an objective per epoch, then the end. `lost_before` is the epoch it never finishes;
    `is_warm` False: it was lost before it was ready."""

    values: tuple[float, ...]
    reason: str = ""
    peak_gib: float | None = None
    lost_before: int | None = None
    is_warm: bool = True


Play = Callable[[RunConfig, int], Script]
"""The script of a run's attempt, counted from 1 within this executor."""


class ScriptedExecutor(Executor):
    """One slot. As a real worker it keeps finished epochs in the run's folder and goes on from there."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.jobs: list[Job] = []
        self.survivors: list[Path] = []
        self.is_closed = False
        self._attempts: Counter[str] = Counter()
        self._events: Iterator[Event] | None = None
        self._answer: Answer | None = None

    def start(self) -> None: ...

    @property
    def num_free(self) -> int:
        return int(self._events is None)

    def submit(self, job: Job) -> None:
        assert self._events is None and not self.is_closed
        begin_attempt(job.folder, job.token)
        self.jobs.append(job)
        self._attempts[job.run_id] += 1
        self._events = self._work(job, self.play(job.config, self._attempts[job.run_id]))

    def poll(self, timeout_s: float) -> list[Event]:
        if self._events is None:
            return []
        event = next(self._events)
        if isinstance(event, JobEnded):
            self._events = None
        return [event]

    def answer(self, run_id: str, answer: Answer) -> None:
        assert self.jobs[-1].run_id == run_id
        self._answer = answer

    def abandon(self, run_id: str) -> None:
        if self._events is not None and self.jobs[-1].run_id == run_id:
            self._events = None

    def end_survivor(self, folder: Path) -> None:
        self.survivors.append(folder)

    def close(self) -> None:
        self.is_closed = True

    def _work(self, job: Job, script: Script) -> Iterator[Event]:
        folder = RunFolder(job.folder, job.token)
        (job.folder / "last.pt").write_bytes(b"a checkpoint")
        done = {record.step: record.metrics for record in read_records(job.folder)[0]}
        for epoch in range(max(len(done), 1), len(script.values) + 1):
            if epoch not in done:
                if epoch == script.lost_before:
                    reason = "crash" if script.is_warm else NEVER_BEGAN
                    yield JobEnded(job.run_id, "lost", reason=reason, message="the worker ended: SIGKILL")
                    return
                folder.log_metrics(
                    {AP: script.values[epoch - 1], "train/loss/total": 1.0 / epoch, "system/epoch_s": 1.5}, epoch
                )
            self._answer = None
            metrics = next(r.metrics for r in reversed(read_records(job.folder)[0]) if r.step == epoch)
            yield EpochDone(job.run_id, epoch, metrics)
            assert self._answer is not None, "every finished epoch gets an answer"
            if self._answer == "stop":
                yield JobEnded(job.run_id, "stopped", result={"seconds": 1.0})
                return
        if script.reason:
            result = {} if script.peak_gib is None else {"peak_gib": script.peak_gib}
            yield JobEnded(job.run_id, "failed", reason=script.reason, message=f"it was {script.reason}", result=result)
        else:
            yield JobEnded(job.run_id, "complete", result={"seconds": 2.0})


class ScriptedSlots(Executor):
    """Several slots, each as `ScriptedExecutor`, that take turns."""

    def __init__(self, play: Play, num_slots: int) -> None:
        self.slots = [ScriptedExecutor(play) for _ in range(num_slots)]
        self.most_at_once = 0

    def start(self) -> None: ...

    @property
    def num_free(self) -> int:
        return sum(slot.num_free for slot in self.slots)

    @property
    def jobs(self) -> list[Job]:
        return [job for slot in self.slots for job in slot.jobs]

    @property
    def is_closed(self) -> bool:
        return all(slot.is_closed for slot in self.slots)

    def submit(self, job: Job) -> None:
        next(slot for slot in self.slots if slot.num_free).submit(job)
        self.most_at_once = max(self.most_at_once, len(self.slots) - self.num_free)

    def poll(self, timeout_s: float) -> list[Event]:
        return [event for slot in self.slots for event in slot.poll(timeout_s)]

    def answer(self, run_id: str, answer: Answer) -> None:
        next(slot for slot in self.slots if not slot.num_free and slot.jobs[-1].run_id == run_id).answer(run_id, answer)

    def abandon(self, run_id: str) -> None:
        for slot in self.slots:
            slot.abandon(run_id)

    def end_survivor(self, folder: Path) -> None: ...

    def close(self) -> None:
        for slot in self.slots:
            slot.close()


class Killed(BaseException):
    """The coordinator's process is gone from here on."""


@dataclass
class Life:
    """Counts writes; the one after `limit` never happens, nor does any other after that."""

    limit: int | None = None
    writes: list[str] = field(default_factory=list)
    is_over: bool = False

    def write(self, what: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            if self.is_over:
                raise StoreError("this process is gone")
            return
        if self.is_over or len(self.writes) == self.limit:
            self.is_over = True
            raise Killed(what)
        self.writes.append(what)


def _make_mortal(kind: type, names: tuple[str, ...]) -> type:
    """Return a subclass whose methods of these names are writes of `self.life`, where there is one."""

    def wrap(name: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if life := getattr(self, "life", None):
                life.write(f"{kind.__name__}.{name}")
            return getattr(kind, name)(self, *args, **kwargs)

        return method

    return type(f"Mortal{kind.__name__}", (kind,), {name: wrap(name) for name in names})


MortalStorage = _make_mortal(
    RDBStorage,
    (
        "_create_new_trial",
        "_set_trial_param",
        "set_trial_state_values",
        "set_trial_intermediate_value",
        "set_trial_user_attr",
        "set_trial_system_attr",
        "set_study_user_attr",
    ),
)
MortalStore = _make_mortal(
    MlflowStore, ("create_run", "reopen_run", "log", "log_dataset", "finish_run", "put_artifact")
)
MortalShipper = _make_mortal(Shipper, ("watch", "end"))
MortalExecutor = _make_mortal(ScriptedExecutor, ("submit", "answer", "close"))
