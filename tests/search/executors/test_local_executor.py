"""Warm workers: real processes that train a study of seconds, die, are replaced, and never outlive their parent."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from executor_contract import (
    PATIENCE_S,
    MakeJob,
    check_jobs,
    check_lost_worker,
    ended,
    epoch_done,
    prepare_jobs,
    watch,
)

from cityopt.errors import StoreError
from cityopt.search.executors.base import EpochDone, Progressed, WorkerReady
from cityopt.search.executors.local import LocalExecutor, read_start_time
from cityopt.search.executors.silence import HangRule
from cityopt.tracking.run_folder import begin_attempt, read_attempt, read_records


@pytest.fixture
def make_job(template_store: Path, tmp_path: Path) -> MakeJob:
    return prepare_jobs(template_store, tmp_path)


@pytest.fixture
def executor(tmp_path: Path):
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs") as executor:
        yield executor


@pytest.mark.slow
def test_warm_worker_trains_many_jobs_and_outlives_failures_when_nobody_kills_it(executor, make_job):
    done = check_jobs(executor, make_job)
    again = make_job(4)
    executor.submit(again)
    watch(executor, ended)
    assert len({read_attempt(job.folder).pid for job in [*done, again]}) == 1

    hung = make_job(5)
    executor.submit(hung)
    watch(executor, epoch_done)
    executor._workers[0].silence_s = 1e9  # as if it had said nothing for years
    assert watch(executor, ended)[-1].reason == "hung"
    log = (hung.folder / "log.txt").read_text()
    assert "most recent call first" in log and "run_training" in log  # where it was


@pytest.mark.slow
def test_attempt_on_two_devices_is_lost_with_a_rank_and_goes_on_in_one_process(executor, make_job):
    alone = make_job(0)
    job = replace(alone, config=alone.config.model_copy(update={"devices": 2}))
    executor.submit(job)
    watch(executor, epoch_done)
    log = (job.folder / "log.txt").read_text()
    worker, *ranks = [int(pid) for pid in re.findall(r"attempt begins, pid (\d+)", log)]
    assert len(ranks) == 2 and worker == read_attempt(job.folder).pid
    os.kill(ranks[1], signal.SIGKILL)
    executor.answer(job.run_id, "continue")
    end = watch(executor, ended)[-1]
    assert (end.outcome, end.reason) == ("lost", "crash") and "of 2 ended" in end.message
    assert not any(map(read_start_time, ranks)) and read_start_time(worker)

    executor.submit(replace(alone, token="another"))
    seen = watch(executor, ended)
    assert [event.epoch for event in seen if isinstance(event, EpochDone)] == [1, 2, 3, 4]
    assert (seen[-1].outcome, read_attempt(job.folder).pid) == ("complete", worker)
    assert [record.step for record in read_records(job.folder)[0]] == [1, 2, 3, 4]


@pytest.mark.slow
def test_job_is_lost_and_the_worker_replaced_when_it_is_killed(executor, make_job):
    check_lost_worker(executor, make_job)


_COORDINATOR = """
import sys, time
from pathlib import Path
from cityopt.search.executors.local import LocalExecutor
executor = LocalExecutor(devices=("cpu",) * 2, threads=1, log_folder=Path(sys.argv[1]))
executor.start()
print(*(worker.pid for worker in executor._workers), flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_workers_die_when_their_coordinator_is_killed(tmp_path):
    command = [sys.executable, "-c", _COORDINATOR, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as coordinator:
        pids = [int(pid) for pid in coordinator.stdout.readline().split()]
        started = [read_start_time(pid) for pid in pids]
        assert len(pids) == 2 and all(started)
        coordinator.kill()
    deadline = time.monotonic() + PATIENCE_S
    while any(read_start_time(pid) == begin for pid, begin in zip(pids, started, strict=True) if not _is_zombie(pid)):
        assert time.monotonic() < deadline, "a worker outlived its coordinator"
        time.sleep(0.1)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_loaders_end_with_their_worker_when_it_is_killed(executor, make_job):
    job = make_job(0, data__num_workers=2, training__epochs=16)
    executor.submit(job)
    watch(executor, lambda event: isinstance(event, Progressed))
    worker = read_attempt(job.folder).pid
    loaders: list[int] = []
    while len(loaders) < 2:
        executor.poll(0.01)
        loaders = [int(pid) for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split()]
    os.kill(worker, signal.SIGKILL)
    watch(executor, ended)
    deadline = time.monotonic() + 2
    while any(is_alive(pid) for pid in loaders):
        assert time.monotonic() < deadline, "a loader outlived its worker"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Say whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_worker_imports_neither_optuna_nor_mlflow_when_it_trains(make_job):
    """The worker's own main, with a pipe of ours, in a process that tells what it imported."""
    code = (
        "import sys, atexit, os\n"
        "from cityopt.search.executors import worker\n"
        "exits = os._exit\n"
        "def leave(code):\n"
        "    print([name for name in ('optuna', 'mlflow', 'sqlalchemy', 'typer') if name in sys.modules], flush=True)\n"
        "    print('torch' in sys.modules, flush=True)\n"
        "    exits(code)\n"
        "os._exit = leave\n"
        "worker._log_into = lambda path: None\n"
        "worker.main()\n"
    )
    from multiprocessing import Pipe

    ours, theirs = Pipe()
    job = make_job(0)
    begin_attempt(job.folder, job.token)
    import json

    with subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno()), "cpu"],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        theirs.close()
        request = {
            "type": "run",
            "run_id": "run",
            "folder": str(job.folder),
            "token": job.token,
            "config": job.config.model_dump(mode="json"),
        }
        ours.send_bytes(json.dumps(request).encode())
        kinds = []
        while "ended" not in kinds:
            assert ours.poll(PATIENCE_S)
            message = json.loads(ours.recv_bytes())
            kinds.append(message["type"])
            if message["type"] == "epoch":
                ours.send_bytes(json.dumps({"type": "answer", "answer": "stop"}).encode())
        assert kinds[0] == "ready" and message["outcome"] == "stopped"
        ours.close()  # a lost coordinator ends the worker
        assert process.stdout.read().splitlines() == ["[]", "True"]
        assert process.wait(PATIENCE_S) == 3


def test_error_names_the_log_when_workers_cannot_start(tmp_path, monkeypatch):
    monkeypatch.setattr("cityopt.search.executors.local.sys.executable", "/bin/false")
    with (
        LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs") as executor,
        pytest.raises(StoreError, match=r"die before they are ready \(exit code 1\).*worker-0\.log"),
    ):
        watch(executor, lambda event: False)


_STAND_IN = """#!{python}
import json, os, sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[3]))
pipe.send_bytes(json.dumps(dict(type="ready", device="cpu")).encode())
while True:
    message = json.loads(pipe.recv_bytes())
    ending = dict(type="ended", run_id=message["run_id"], outcome="failed", reason=message["run_id"], message="")
    pipe.send_bytes(json.dumps(ending).encode())
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Return what makes workers of a script that speaks the protocol."""

    def use(script: str) -> None:
        path = tmp_path / "stand-in"
        path.write_text(script.format(python=sys.executable))
        path.chmod(0o755)
        monkeypatch.setattr("cityopt.search.executors.local.sys.executable", str(path))

    return use


@pytest.mark.parametrize(("reason", "is_replaced"), [("oom", True), ("crash", True), ("nan", False), ("data", False)])
def test_worker_is_replaced_when_a_failure_may_have_poisoned_it(tmp_path, stand_in, make_job, reason, is_replaced):
    """With a process that speaks the protocol and fails each job for the reason that the job names."""
    stand_in(_STAND_IN)
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs") as executor:
        pids = []
        for number in range(2):
            executor.submit(replace(make_job(number), run_id=reason))
            seen = watch(executor, ended)
            assert (seen[-1].run_id, seen[-1].outcome, seen[-1].reason) == (reason, "failed", reason)
            assert executor.num_free == 1
            pids.append(read_attempt(tmp_path / f"run-{number}").pid)
        assert (pids[0] != pids[1]) == is_replaced
        assert (read_start_time(pids[0]) == 0.0) == is_replaced


@pytest.mark.parametrize(("left_gib", "is_replaced"), [(0.0, False), (0.1, False), (3.0, True)])
def test_worker_is_replaced_when_a_run_leaves_device_memory_behind(tmp_path, stand_in, make_job, left_gib, is_replaced):
    stand_in(_STAND_IN.replace('message=""', f'message="", left_gib={left_gib}'))
    with LocalExecutor(devices=("cuda:0",), threads=1, log_folder=tmp_path / "logs") as executor:
        for number in range(2):
            executor.submit(replace(make_job(number), run_id="nan"))
            watch(executor, ended)
        pids = {read_attempt(tmp_path / f"run-{number}").pid for number in range(2)}
        assert (len(pids) == 2) == is_replaced


_SLEEPER = """#!{python}
import json, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[3]))
def tell(**message):
    pipe.send_bytes(json.dumps(message).encode())
tell(type="ready", device="cpu")
run_id = json.loads(pipe.recv_bytes())["run_id"]
for step in range(1, 9 if run_id == "busy" else 2):
    tell(type="progress", run_id=run_id, progress=dict(step=step))
    time.sleep(0.2)
tell(type="epoch", run_id=run_id, epoch=1, metrics=dict())
time.sleep(600)
"""


def test_job_fails_as_hung_when_its_worker_falls_silent(tmp_path, stand_in, make_job):
    """Progress is a sign of life: a worker that works for longer than the limit lives until it falls silent."""
    stand_in(_SLEEPER)
    rule = HangRule(limit_s=1.0, factor=1.0)
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs", hang_rule=rule) as executor:
        executor.submit(replace(make_job(0), run_id="busy"))
        begin = time.monotonic()
        seen = watch(executor, ended)
        assert 2.4 < time.monotonic() - begin < 30  # 8 steps of .2 s, then the limit
        assert (seen[-1].outcome, seen[-1].reason) == ("failed", "hung")
        assert "no sign of life for 1 s" in seen[-1].message and "search.hang_limit_s" in seen[-1].message
        assert [event.epoch for event in seen if isinstance(event, EpochDone)] == [1]
        pid = read_attempt(tmp_path / "run-0").pid
        assert read_start_time(pid) == 0.0 and executor.num_free == 1
        idle_until = time.monotonic() + 1.5
        while time.monotonic() < idle_until:  # a worker without a job may be silent for as long as it likes
            assert not [event for event in executor.poll(0.1) if ended(event)]
        executor.submit(replace(make_job(1), run_id="calm"))
        assert watch(executor, ended)[-1].run_id == "calm"


_LATE_STARTER = """#!{python}
import json, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[3]))
def tell(**message):
    pipe.send_bytes(json.dumps(message).encode())
tell(type="ready", device="cpu")
while True:
    run_id = json.loads(pipe.recv_bytes())["run_id"]
    time.sleep(1.2 if run_id == "late" else 0.0)
    tell(type="epoch", run_id=run_id, epoch=1, metrics=dict())
    pipe.recv_bytes()  # the answer
    tell(type="ended", run_id=run_id, outcome="complete")
"""


def test_job_may_begin_slowly_though_another_one_has_finished_epochs(tmp_path, stand_in, make_job):
    """As a stage that decodes larger images does, behind one that did not."""
    stand_in(_LATE_STARTER)
    rule = HangRule(limit_s=0.6, factor=5.0)
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs", hang_rule=rule) as executor:
        for number, run_id in enumerate(("quick", "late")):
            executor.submit(replace(make_job(number), run_id=run_id))
            assert watch(executor, ended)[-1].outcome == "complete"


def test_suspended_coordinator_holds_nothing_against_a_worker(tmp_path, stand_in, make_job):
    stand_in(_SLEEPER)
    rule = HangRule(limit_s=2.0, factor=1.0)
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs", hang_rule=rule) as executor:
        executor.submit(replace(make_job(0), run_id="busy"))
        watch(executor, epoch_done)
        time.sleep(2.5)  # nobody listens
        assert executor.poll(0.1) == []


def test_slot_is_free_at_once_when_its_run_is_abandoned(tmp_path, stand_in, make_job):
    stand_in(_SLEEPER)
    with LocalExecutor(devices=("cpu",), threads=1, log_folder=tmp_path / "logs") as executor:
        executor.submit(replace(make_job(0), run_id="busy"))
        watch(executor, epoch_done)
        pid = read_attempt(tmp_path / "run-0").pid
        executor.abandon("another")
        assert executor.num_free == 0 and read_start_time(pid)
        executor.abandon("busy")
        assert executor.num_free == 1 and read_start_time(pid) == 0.0
        executor.submit(replace(make_job(1), run_id="next"))
        seen = watch(executor, epoch_done)
        assert {event.run_id for event in seen if not isinstance(event, WorkerReady)} == {"next"}


def test_survivor_is_ended_only_when_it_is_still_that_process(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        executor = LocalExecutor(devices=(), threads=1, log_folder=tmp_path)
        executor.end_survivor(tmp_path / "nobody")
        begin_attempt(tmp_path / "run", "token", process.pid, read_start_time(process.pid) - 1)
        executor.end_survivor(tmp_path / "run")  # another process has that pid now
        begin_attempt(tmp_path / "run", "token", process.pid, read_start_time(process.pid))
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        executor.end_survivor(tmp_path / "run")  # the folder is shared, and a process of another machine has that pid
        monkeypatch.undo()
        assert process.poll() is None
        begin_attempt(tmp_path / "run", "token", process.pid, read_start_time(process.pid))
        executor.end_survivor(tmp_path / "run")
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert read_start_time(process.pid) == 0.0
    executor.end_survivor(tmp_path / "run")


def test_workers_share_the_threads_they_are_given_when_started(tmp_path):
    with LocalExecutor(devices=("cpu",), threads=3, log_folder=tmp_path / "logs") as executor:
        (worker,) = executor._workers
        wanted = {b"OMP_NUM_THREADS=3", b"MKL_NUM_THREADS=3", b"OPENBLAS_NUM_THREADS=3"}
        deadline = time.monotonic() + PATIENCE_S  # for a moment the new process still shows our own environment
        while not wanted <= set(Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")):
            assert time.monotonic() < deadline and executor.num_free == 1
            time.sleep(0.05)
