"""MLflow's server, or the database behind it, goes away in the middle of a sweep: training goes on, nothing is lost.

What arrived is compared with what the workers wrote into the run folders, point by point.
"""

import json
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import command_line
import pytest
from command_line import STUDY, Answer, run, run_until
from mlflow_server import MlflowServer, run_server
from postgres import Cluster

from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.services
IMPATIENT = "import cityopt.search.parent_run as p, cityopt.cli; p._SHIPPING_TIMEOUT_S = 3.0; cityopt.cli.main()"
"""The command, which waits for a server that stays away a shorter while at the end."""
OPTIONS = ("--study", STUDY, "--device", "cpu", "--set", "search.pruner.name=none")


@pytest.fixture(scope="module")
def server() -> Iterator[MlflowServer]:
    with run_server() as server:
        yield server


@pytest.fixture
def store(template_store: Path, tmp_path: Path) -> Path:
    """A store with scenes and decoded images, and with no database."""
    copy = tmp_path / "store"
    shutil.copytree(template_store, copy, ignore=shutil.ignore_patterns("*.db*", "*.lock"))
    return copy


def read_folders(store: Path) -> dict[str, dict[str, list[tuple[int, int, float]]]]:
    """Return what the workers recorded of each trial: its metrics as (step, time, value)."""
    found: dict[str, dict[str, list[tuple[int, int, float]]]] = {}
    for config in store.glob("runs/*/artifacts/config.yaml"):
        name = re.search(r"^name: (trial-\d+)$", config.read_text(), re.M)
        folder = config.parents[1]
        if folder.is_symlink() or name is None:
            continue
        curves = found[name[1]] = {}
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            for metric, value in record["metrics"].items():
                curves.setdefault(metric, []).append((record["step"], record["time_ms"], float(value)))
    return found


def check_whole(store: Path, server: MlflowServer, name: str, num_trials: int = 5) -> None:
    """Compare MLflow's runs with the run folders, and look for their files where the server keeps them."""
    client = MlflowStore(store).client
    (experiment,) = client.search_experiments(filter_string=f"name = '{name}'")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.run_name for r in runs) == [name, *(f"trial-{n:04d}" for n in range(num_trials))]
    assert {r.info.status for r in runs} == {"FINISHED"}
    folders = read_folders(store)
    assert len(folders) == num_trials
    for found in runs:
        files = {path.name for path in (server.artifacts).glob(f"*/{found.info.run_id}/artifacts/**/*")}
        if found.info.run_name == name:
            assert "study.yaml" in files
            continue
        expected = folders[found.info.run_name]
        assert found.data.metrics.keys() == expected.keys()
        for metric, points in expected.items():
            history = client.get_metric_history(found.info.run_id, metric)
            assert sorted((p.step, p.timestamp, p.value) for p in history) == sorted(points), metric
        assert {"best.pt", "config.yaml", "log.txt"} <= files and any(file.endswith(".jpg") for file in files)


def sweep_through(
    store: Path, address: str, name: str, leave: Callable[[], None], come_back: Callable[[], None]
) -> Answer:
    """Sweep; the server leaves in the first trial and comes back when the last but one has begun."""
    returning: list[threading.Thread] = []

    def act(process: Any) -> None:
        leave()
        for line in process.stdout:
            if "trial-0003 begins" in line:
                returning.append(threading.Thread(target=come_back))
                returning[0].start()
                return
        raise AssertionError(process.communicate())

    options = ("--name", name, "--store", store, "--tracking-uri", address)
    answer = run_until("trial-0000 epoch 1/", act, "sweep", *OPTIONS, *options)
    returning[0].join()
    assert answer.code == 0, answer
    return answer


def test_sweep_goes_on_and_loses_nothing_when_the_server_is_killed_and_started_again(
    server: MlflowServer, store: Path
) -> None:
    answer = sweep_through(store, server.url, "killed", server.kill, server.start)
    assert answer.errors == f"asking {server.url}\n"
    if "the next start sends the rest" in answer.output:  # a machine so slow that the server took minutes to start
        assert run("sweep", *OPTIONS, "--name", "killed", "--store", store).code == 0
    check_whole(store, server, "killed")


def test_next_sweep_sends_the_rest_when_the_server_stays_away(
    server: MlflowServer, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--name", "away", "--store", store, "--tracking-uri", server.url)
    monkeypatch.setattr(command_line, "COMMAND", [sys.executable, "-c", IMPATIENT])
    answer = run_until("trial-0001 epoch 1/", lambda _: server.kill(), "sweep", *OPTIONS, *options)
    assert answer.code == 0 and "the next start sends the rest" in answer.output, answer
    server.start()
    again = run("sweep", *OPTIONS, *options)
    assert again.code == 0 and "begins" not in again.output, again
    check_whole(store, server, "away")


def test_sweep_goes_on_when_the_database_behind_the_server_restarts(postgres: Cluster, store: Path) -> None:
    with run_server(postgres.create_database()) as server:
        answer = sweep_through(store, server.url, "database", postgres.stop, postgres.start)
        assert answer.errors == f"asking {server.url}\n"
        check_whole(store, server, "database")


def test_sweep_says_where_it_looked_when_there_is_no_server(store: Path, tmp_path: Path) -> None:
    answer = run("sweep", *OPTIONS, "--store", tmp_path / "new", "--tracking-uri", "http://ann:secret@127.0.0.1:9")
    assert answer.code == 1 and answer.errors.startswith(
        "asking http://ann:***@127.0.0.1:9\nError: an MLflow server must answer at http://ann:***@127.0.0.1:9"
    )
    assert "secret" not in answer.errors and "Traceback" not in answer.errors
    assert not (tmp_path / "new").exists()
