"""What every executor must obey, whatever machine its workers are on. Each function is one test, of one slot."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest

from cityopt.config import RunConfig
from cityopt.data.roots import cache_folder
from cityopt.search.executors.base import EpochDone, Event, Executor, Job, JobEnded, Progressed, WorkerReady
from cityopt.search.facts import StudyFacts
from cityopt.search.observer import Observer
from cityopt.search.preparation import prepare_study
from cityopt.search.space import build_trial_config
from cityopt.search.sweep import build_facts
from cityopt.settings import replace_settings
from cityopt.study_file import load_study
from cityopt.tracking.run_folder import read_log_tail, read_records

PATIENCE_S = 240
TINY = Path(__file__).parent / "studies" / "tiny.yaml"
MakeJob = Callable[..., Job]


def prepare_jobs(store: Path, folder: Path) -> MakeJob:
    """Return what makes jobs of the tiny study, whose data is in a store; settings are its keys with `__` for dots."""
    facts = _find_facts(store)

    def make(number: int, **settings: object) -> Job:
        study = replace_settings(load_study(str(TINY)), {key.replace("__", "."): v for key, v in settings.items()})
        config = build_trial_config(study, facts, number, {}, device="cpu", cache=cache_folder(store))
        return Job(f"run-{number}", folder / f"run-{number}", f"token-{number}", config)

    return make


@lru_cache
def _find_facts(store: Path) -> StudyFacts:
    prepared = prepare_study(load_study(str(TINY)), store, data=None, observer=Observer())
    return build_facts(prepared, threads=1, weights={})


def watch(executor: Executor, until: Callable[[Event], bool], answer: str = "continue") -> list[Event]:
    """Answer epochs until an event satisfies `until`; return all events."""
    seen, deadline = list[Event](), time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for event in executor.poll(0.2):
            seen.append(event)
            if until(event):
                return seen
            if isinstance(event, EpochDone):
                executor.answer(event.run_id, answer)
    pytest.fail(f"nothing like that happened: {seen}")


def ended(event: Event) -> bool:
    return isinstance(event, JobEnded)


def epoch_done(event: Event) -> bool:
    return isinstance(event, EpochDone)


def submit(executor: Executor, job: Job) -> None:
    """Submit a job as soon as a slot is free; it is taken then."""
    deadline = time.monotonic() + PATIENCE_S
    while not executor.num_free:
        executor.poll(0.2)
        assert time.monotonic() < deadline
    executor.submit(job)
    assert executor.num_free == 0


def move_data(job: Job, root: str) -> Job:
    """Return a job whose data lies elsewhere."""
    data = job.config.data.model_dump() | {"root": root}
    return replace(job, config=RunConfig.model_validate(job.config.model_dump() | {"data": data}))


def check_jobs(executor: Executor, make_job: MakeJob) -> list[Job]:
    """One slot trains job after job, whatever becomes of them; all of a run is in its folder when it is told."""
    job = make_job(0)
    submit(executor, job)
    told: list[int] = []

    def is_over(event: Event) -> bool:
        if isinstance(event, EpochDone):
            told.append(event.epoch)
            assert [record.step for record in read_records(job.folder)[0]] == told
            assert (job.folder / "last.pt").is_file()
        return ended(event)

    seen = watch(executor, is_over)
    assert any(isinstance(event, WorkerReady) for event in seen) and any(isinstance(e, Progressed) for e in seen)
    epochs = [event for event in seen if isinstance(event, EpochDone)]
    assert [event.epoch for event in epochs] == [1, 2, 3, 4]
    assert [record.metrics for record in read_records(job.folder)[0]] == [event.metrics for event in epochs]
    end = seen[-1]
    assert isinstance(end, JobEnded) and end.outcome == "complete" and end.result["epochs"] == 4
    assert end.result["best_value"] == min(event.metrics["train/loss/total"] for event in epochs)
    assert end.result["checkpoint"] == str(job.folder / "best.pt") and (job.folder / "best.pt").is_file()
    assert "attempt begins" in read_log_tail(job.folder) and executor.num_free == 1
    assert [path.suffix for path in (job.folder / "artifacts" / "overlays").iterdir()]

    stopped = make_job(1)
    submit(executor, stopped)
    end = watch(executor, ended, answer="stop")[-1]
    assert isinstance(end, JobEnded) and end.outcome == "stopped" and end.result["epochs"] == 1

    diverging = make_job(2, training__learning_rate=1e30, training__clip_norm=None, training__optimizer="sgd")
    submit(executor, diverging)
    end = watch(executor, ended)[-1]
    assert isinstance(end, JobEnded) and (end.outcome, end.reason) == ("failed", "nan")

    astray = move_data(make_job(3), "/nowhere")
    submit(executor, astray)
    end = watch(executor, ended)[-1]
    assert isinstance(end, JobEnded) and (end.outcome, end.reason) == ("failed", "data") and "/nowhere" in end.message
    assert "/nowhere" in read_log_tail(astray.folder)
    return [job, stopped, diverging, astray]


def check_lost_worker(executor: Executor, make_job: MakeJob) -> None:
    """A job whose worker is killed is lost, and goes on from its last epoch in another worker."""
    job = make_job(0)
    submit(executor, job)
    first = watch(executor, epoch_done)[-1]
    worker = find_worker(job)
    os.kill(worker, signal.SIGKILL)
    (lost,) = [event for event in watch(executor, ended) if isinstance(event, JobEnded)]
    assert (lost.run_id, lost.outcome, lost.reason) == ("run-0", "lost", "crash")
    assert lost.message.endswith("the worker ended: SIGKILL") and executor.num_free == 1
    submit(executor, replace(job, token="another token"))
    seen = watch(executor, ended)
    epochs = [event for event in seen if isinstance(event, EpochDone)]
    assert [event.epoch for event in epochs] == [1, 2, 3, 4] and epochs[0] == first  # the first is told again
    assert [record.step for record in read_records(job.folder)[0]] == [1, 2, 3, 4]
    assert find_pid(job) != worker


def check_abandoned(executor: Executor, make_job: MakeJob) -> None:
    """A run that is abandoned is not heard of again, and its slot trains another."""
    submit(executor, make_job(0))
    watch(executor, epoch_done)
    executor.abandon("another")
    assert executor.num_free == 0
    executor.abandon("run-0")
    assert executor.num_free == 1
    submit(executor, make_job(1))
    seen = watch(executor, ended, answer="stop")
    assert {getattr(event, "run_id", "run-1") for event in seen} == {"run-1"}


def find_pid(job: Job) -> str:
    """Return the id that the latest worker of a run has where it is."""
    return re.findall(r"attempt begins, pid (\d+)", read_log_tail(job.folder))[-1]


def find_worker(job: Job) -> int:
    """Return the id that the latest worker of a run has here, were it in a namespace of its own."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found = re.search(r"^NSpid:.*?(\d+)$", (path / "status").read_text(), re.MULTILINE)
            is_worker = b"cityopt.search.executors.worker" in (path / "cmdline").read_bytes()
            if is_worker and found and found[1] == find_pid(job):
                return int(path.name)
        except OSError:
            continue
    pytest.fail("the worker is gone")
