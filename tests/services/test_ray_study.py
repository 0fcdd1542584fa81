"""A study on the nodes of a Ray cluster, as a user runs it: the scores of one machine, whatever becomes of a node."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import RayNodes

from cityopt.search.status import read_status
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.services

TINY = Path(__file__).parents[1] / "studies" / "tiny.yaml"
PATIENCE_S = 300
# What a trial is asked to try, and how long it lasts, then does not depend on which others have ended before it.
ALONE = ("--set", "search.sampler.name=random", "--set", "search.pruner.name=none", "--trials", "4")


def begin_sweep(store: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cityopt.cli", "sweep", "--study", str(TINY), "--store", str(store)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [*command, "--device", "cpu", *ALONE, *options],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], *texts: str) -> list[str]:
    """Read lines until each text was in one."""
    lines, left, deadline = list[str](), set(texts), time.monotonic() + PATIENCE_S
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        left -= {text for text in left if text in line}
        if not left:
            return lines
        assert time.monotonic() < deadline
    pytest.fail(f"no line had {left}: {''.join(lines)}")


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end, which must be good, and return what was printed."""
    output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, output
    return output


def describe_runs(store: Path) -> dict[str, Any]:
    """Return all that MLflow shows of each run and that does not depend on where and how fast it trained."""
    client = MlflowStore(store).client
    found: dict[str, Any] = {}
    for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id]):
        scores = {
            metric: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]
            for metric in run.data.metrics
            if metric.startswith(("train/loss", "val/"))
        }
        tags = {name: value for name, value in run.data.tags.items() if name in ("cityopt.kind", "cityopt.state")}
        params = {k: v for k, v in run.data.params.items() if k not in ("cache", "data.root")}
        files = sorted(walk(client, run.info.run_id, ""))
        found[run.info.run_name] = (run.info.status, tags, params, scores, files)
    return found


def walk(client: Any, run_id: str, folder: str) -> list[str]:
    entries = client.list_artifacts(run_id, folder)
    inner = [path for entry in entries if entry.is_dir for path in walk(client, run_id, entry.path)]
    return inner + [entry.path for entry in entries if not entry.is_dir]


def list_scores(store: Path) -> list[tuple[Any, ...]]:
    """Return the leaderboard."""
    trials = read_status(store, "tiny").to_json()["trials"]
    return [(trial["number"], trial["state"], trial["value"], trial["params"]) for trial in trials]


def test_study_has_the_same_result_on_a_cluster_that_loses_a_node(ray_nodes: RayNodes, tmp_path: Path):
    """Two hosts train at once, one in the store and one that does not see it, which is lost."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    shared.mkdir()
    local = finish(begin_sweep(alone))
    ray_nodes.join("node-a", num_cpus=1)
    ray_nodes.join("node-b", num_cpus=1, hidden=[shared])
    sweep = begin_sweep(shared, "--executor", "ray", "--address", ray_nodes.address)
    read_until(sweep, "cpu of node-a", "cpu of node-b", "trial-0000 epoch 2", "trial-0001 epoch 2")
    ray_nodes.lose("node-b")
    seen = read_until(sweep, "node-b is lost")
    assert "tried again from its last epoch" in seen[-1]
    output = finish(sweep)
    assert "raylet" not in "".join(seen) + output  # Ray itself says nothing
    assert list_scores(shared) == list_scores(alone) and len(list_scores(alone)) == 4
    assert [name for name in describe_runs(shared) if name != "tiny"] and describe_runs(shared) == describe_runs(alone)
    assert "best so far" in local and not list(shared.glob(".seen-by-*"))


def test_interrupted_sweep_goes_on_from_the_last_epoch_here(ray_nodes: RayNodes, tmp_path: Path):
    """What the host had is in the store: after Ctrl-C the same study goes on without the cluster."""
    store = tmp_path / "store"
    store.mkdir()
    ray_nodes.join("node-d", num_cpus=1, hidden=[store])
    sweep = begin_sweep(store, "--trials", "1", "--executor", "ray", "--address", ray_nodes.address)
    read_until(sweep, "trial-0000 epoch 2")
    sweep.send_signal(2)
    output = sweep.communicate(timeout=PATIENCE_S)[0]
    assert sweep.returncode == 130 and "nothing is lost" in output, output
    assert [path.name for path in (ray_nodes.cache_of("node-d") / "slots").iterdir()] == [".lock"]
    here = finish(begin_sweep(store, "--trials", "1"))
    assert "trial-0000 epoch 1" not in here and "trial-0000 complete" in here
    assert all(state == "complete" for _, state, *_ in list_scores(store))
