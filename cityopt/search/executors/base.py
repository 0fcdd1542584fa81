"""The executor seam: where trials run.

The coordinator submits jobs and polls for events; a worker trains and knows nothing of Optuna. After
each epoch the worker waits for an answer, `continue` or `stop`.
"""

import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cityopt.config import RunConfig

Answer = Literal["continue", "stop"]
NEVER_BEGAN = "never_began"
"""Reason of a job that was lost with a worker that was not ready yet: it says nothing about the job."""
TRACEBACK_SIGNAL = signal.SIGUSR1
"""Makes a worker write where each of its threads is."""


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt at one run: its folder, and the token without which nobody may write there."""

    run_id: str
    folder: Path
    token: str
    config: RunConfig
    measures_costs: bool = False
    """Only measure what the run would cost (`training/measurement.py`), which is then the result of the job."""


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker is warm: torch is imported and its device chosen."""

    device: str
    """`cpu`, `cuda:0`, and on a cluster the node: `cpu of node-7`."""


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something about the places where runs are trained that whoever watches should know."""

    message: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A run went on; `progress` holds the fields of `training.progress.Progress`. At most ten a second."""

    run_id: str
    progress: dict[str, Any]


@dataclass(frozen=True, slots=True)
class EpochDone:
    """A run finished an epoch and waits for an answer."""

    run_id: str
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A run ended.

    `complete` and `stopped` bring the training's result; `failed` brings a reason (`nan`, `oom`, `crash`, `hung`,
    `disk`, `data`, or `config` for a setting that cannot work); `lost` means that the worker died (`crash`), maybe
    before it was ready (`never_began`).
    """

    run_id: str
    outcome: Literal["complete", "stopped", "failed", "lost"]
    reason: str = ""
    message: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def peak_gib(self) -> float | None:
        """The most memory that a run had which ended for lack of it; None where nobody measured."""
        return self.result.get("peak_gib")


Event = WorkerReady | Noticed | Progressed | EpochDone | JobEnded


class Executor(ABC):
    """Runs jobs on device slots."""

    @abstractmethod
    def start(self) -> None:
        """Begin to warm the workers up; returns at once."""

    @property
    @abstractmethod
    def num_free(self) -> int:
        """Number of slots that would take a job now; there may be none yet, where machines come and go."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Run a job on a free slot."""

    @abstractmethod
    def poll(self, timeout_s: float) -> list[Event]:
        """Return what happened, waiting at most `timeout_s` for something to happen."""

    @abstractmethod
    def answer(self, run_id: str, answer: Answer) -> None:
        """Answer a finished epoch."""

    @abstractmethod
    def abandon(self, run_id: str) -> None:
        """End a run at once that another coordinator has taken over; its slot is free, and it is not heard of again."""

    @abstractmethod
    def end_survivor(self, folder: Path) -> None:
        """End the worker of an earlier coordinator on this machine that may still hold a run's folder."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once; a run in progress is interrupted."""

    def __enter__(self) -> "Executor":
        """Start the executor."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End all workers."""
        self.close()
