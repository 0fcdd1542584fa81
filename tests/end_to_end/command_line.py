"""The `cityopt` command as a user runs it, in a process of its own, and what it leaves in a store."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from cityopt import cli
from cityopt.search.executors.local import read_start_time
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import read_attempt

STUDY = Path(__file__).parents[1] / "studies" / "tiny.yaml"
PATIENCE_S = 400
COMMAND = [sys.executable, "-m", "cityopt.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
ENVIRONMENT.pop("CITYSCAPES_DATASET", None)


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    output: str
    errors: str


def run(*arguments: object, cwd: Path | None = None) -> Answer:
    """Run a command to its end, without a terminal."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def run_here(*arguments: object) -> Answer:
    """Run a command to its end in this process, which has imported what it needs: seconds less. Workers are spawned."""
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, "argv", ["cityopt", *map(str, arguments)])
        patch.setenv("COLUMNS", ENVIRONMENT["COLUMNS"])
        patch.delenv("CITYSCAPES_DATASET", raising=False)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return Answer(code, output.getvalue(), errors.getvalue())


def sweep(store: Path, *options: object) -> Answer:
    """Run the tiny study's sweep in a store; it must end well."""
    answer = run("sweep", "--study", STUDY, "--store", store, "--device", "cpu", *options)
    assert answer.code == 0, answer
    return answer


def run_until(text: str, then: Callable[[subprocess.Popen[str]], None], *arguments: object) -> Answer:
    """Run a command, do something to it as soon as it has printed a line that holds `text`, and wait for its end."""
    command = [*COMMAND, *map(str, arguments)]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "text": True, "start_new_session": True}
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if text in line:
                then(process)
                break
        else:
            raise AssertionError(f"no line had {text!r}: {lines} {process.communicate()}")
        rest, errors = process.communicate(timeout=PATIENCE_S)
        return Answer(process.returncode, "".join(lines) + rest, errors)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as `kill -9` does."""
    process.kill()


def interrupt(process: subprocess.Popen[str]) -> None:
    """Press Ctrl-C: the signal goes to the whole group, as in a terminal."""
    os.killpg(process.pid, signal.SIGINT)


def kill_worker(store: Path) -> int:
    """Kill the worker that trains in a store and return its pid."""
    pid = find_worker(store)
    os.kill(pid, signal.SIGKILL)
    return pid


def find_worker(store: Path) -> int:
    """Return the pid of the worker of the latest attempt."""
    attempts = [path.parent for path in store.glob("runs/*/attempt.json") if (path.parent / "metrics.jsonl").exists()]
    latest = max(attempts, key=lambda folder: (folder / "attempt.json").stat().st_mtime)
    attempt = read_attempt(latest)
    assert attempt is not None
    return attempt.pid


def wait_for_death(pid: int) -> None:
    """Wait until a process is gone."""
    deadline = time.monotonic() + PATIENCE_S
    while read_start_time(pid) and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, f"process {pid} outlived its coordinator"
        time.sleep(0.1)


def read_trials(store: Path, name: str = "tiny") -> list[FrozenTrial]:
    """Return the trials as Optuna has them."""
    return optuna.load_study(study_name=name, storage=RDBStorage(f"sqlite:///{store / 'optuna.db'}")).get_trials()


def read_runs(store: Path, name: str = "tiny") -> dict[str, Any]:
    """Return MLflow's runs of the study by name, each of which must be there once."""
    client = MlflowStore(store).client
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    runs = {run.info.run_name: run for run in found}
    assert len(runs) == len(found), sorted(run.info.run_name for run in found)
    return runs


def read_curves(store: Path, run: str, name: str = "tiny") -> dict[str, list[tuple[int, int, float]]]:
    """Return every metric of an MLflow run as (step, time, value)."""
    client, found = MlflowStore(store).client, read_runs(store, name)[run]
    return {
        metric: [
            (point.step, point.timestamp, point.value) for point in client.get_metric_history(found.info.run_id, metric)
        ]
        for metric in found.data.metrics
    }
