"""The Ray executor passes the suite of every executor, on a host that sees nothing of the coordinator's folders."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from executor_contract import (
    PATIENCE_S,
    MakeJob,
    check_abandoned,
    check_jobs,
    check_lost_worker,
    ended,
    epoch_done,
    find_worker,
    move_data,
    prepare_jobs,
    submit,
    watch,
)
from ray_nodes import RayNodes

from cityopt.errors import ClusterError, ConfigError
from cityopt.search.executors.base import EpochDone, JobEnded, Noticed, WorkerReady
from cityopt.search.executors.cluster import find_cluster
from cityopt.search.executors.node import NodeFacts
from cityopt.study_file import load_study
from cityopt.tracking.run_folder import read_records

pytestmark = pytest.mark.services

TINY = Path(__file__).parents[1] / "studies" / "tiny.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def make_job(template_store: Path, store: Path) -> MakeJob:
    return prepare_jobs(template_store, store)


@pytest.fixture
def hidden(template_store: Path, store: Path) -> list[Path]:
    """What other hosts do not see."""
    return [template_store, store]


@pytest.fixture
def host(ray_nodes: RayNodes, hidden: list[Path]) -> str:
    """Another host than the coordinator's, with room for one training."""
    ray_nodes.join("node-a", num_cpus=1, hidden=hidden)
    return "node-a"


@pytest.fixture
def executor(ray_nodes: RayNodes, store: Path, host: str):
    with open_executor(ray_nodes, store) as executor:
        yield executor


def open_executor(nodes: RayNodes, store: Path, threads: int = 1):
    cluster = find_cluster("ray", nodes.address, device="cpu", workers=1, per_device=None)
    assert cluster is not None
    return cluster.open_executor(store, load_study(str(TINY)), threads=threads)


def test_ray_executor_trains_many_jobs_on_a_host_that_has_no_data(executor, make_job, host, ray_nodes, template_store):
    done = check_jobs(executor, make_job)
    assert list(ray_nodes.cache_of(host).glob("synthetic-*")), "the host made the scenes for itself"
    submit(executor, move_data(make_job(4), "/elsewhere"))
    end = watch(executor, ended)[-1]
    assert isinstance(end, JobEnded) and end.reason == "data" and end.message.startswith(f"on {host}: ")
    assert not list((ray_nodes.cache_of(host) / "slots").glob("*/token-*")) and len(done) == 4


def test_ray_executor_goes_on_when_a_worker_is_killed(executor, make_job):
    check_lost_worker(executor, make_job)


def test_ray_executor_abandons_a_run(executor, make_job):
    check_abandoned(executor, make_job)


def test_job_goes_on_elsewhere_from_its_last_epoch_when_its_host_is_lost(executor, make_job, ray_nodes, host, hidden):
    job = make_job(0)
    submit(executor, job)
    first = watch(executor, epoch_done)[-1]
    worker = find_worker(job)
    ray_nodes.lose(host)
    lost = watch(executor, ended)[-1]
    assert isinstance(lost, JobEnded) and (lost.outcome, lost.reason) == ("lost", "crash") and host in lost.message
    assert not Path(f"/proc/{worker}").exists()
    assert executor.num_free == 0  # an actor waits for a node, which is no slot
    ray_nodes.join("node-b", num_cpus=1, hidden=hidden)
    submit(executor, replace(job, token="another"))
    seen = watch(executor, ended)
    epochs = [event for event in seen if isinstance(event, EpochDone)]
    assert epochs[0] == first and [event.epoch for event in epochs] == [1, 2, 3, 4]
    assert [record.metrics for record in read_records(job.folder)[0]] == [event.metrics for event in epochs]
    assert list(ray_nodes.cache_of("node-b").glob("synthetic-*"))


def test_slots_come_and_go_with_room_for_the_threads_and_the_share_of_a_gpu(ray_nodes, store):
    """With a GPU that Ray believes in; nothing is trained."""
    cluster = find_cluster("ray", ray_nodes.address, device="cpu", workers=3, per_device=None)
    cluster._per_device = 2
    executor = cluster.open_executor(store, load_study(str(TINY)), threads=2)
    executor._num_gpus = 0.5
    with executor:
        assert wait_for(executor, lambda: False, patience_s=3) == 0
        ray_nodes.join("node-a", num_cpus=8, num_gpus=1)
        assert wait_for(executor, lambda: executor.num_free == 2) == 2
        assert wait_for(executor, lambda: executor.num_free == 3, patience_s=3) == 2  # no GPU is left
        ray_nodes.join("node-b", num_cpus=3, num_gpus=1)
        assert wait_for(executor, lambda: executor.num_free == 3) == 3
        ray_nodes.lose("node-a")
        wait_for(executor, lambda: executor.num_free == 1)
        assert wait_for(executor, lambda: executor.num_free == 2, patience_s=3) == 1  # 1 of 3 CPUs is left


def wait_for(executor, condition, patience_s: float = PATIENCE_S) -> int:
    """Poll until a condition holds; return how many slots are free then, or in the end."""
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        executor.poll(0.2)
    return executor.num_free


def test_node_with_other_versions_is_refused_by_name(ray_nodes, store, host):
    with open_executor(ray_nodes, store) as executor:
        executor._versions = executor._versions | {"torch": "1.13.1"}
        with pytest.raises(ClusterError, match=rf"but {host} has torch [\d.]+\S* where the coordinator has 1\.13\.1"):
            wait_for(executor, lambda: executor.num_free > 0)


def test_coordinator_hears_of_it_when_no_node_has_room(ray_nodes, store, monkeypatch):
    monkeypatch.setattr("cityopt.search.executors.ray._ROOM_S", 0.5)
    with open_executor(ray_nodes, store, threads=64) as executor:
        told = watch(executor, lambda event: isinstance(event, Noticed))[-1]
        assert isinstance(told, Noticed) and "room for a training: 64 CPUs (the cluster has " in told.message


def test_late_words_of_an_abandoned_attempt_are_not_taken_for_those_of_the_next(ray_nodes, store, make_job):
    from cityopt.search.executors.ray import _Slot

    slot = object.__new__(_Slot)
    slot.job = replace(make_job(0), token="second")
    late = [EpochDone(slot.job.run_id, 1, {}), JobEnded(slot.job.run_id, "complete"), WorkerReady("cpu")]
    assert [slot.concerns(event, "first") for event in late] == [False, False, True]
    assert [slot.concerns(event, "second") for event in late] == [True, True, True]


def test_host_is_no_longer_refused_when_it_comes_back_with_the_right_versions(ray_nodes, store):
    slot = SimpleNamespace(is_refused=False, facts=None, send=lambda *_: None)
    with open_executor(ray_nodes, store) as executor:
        old, new = (NodeFacts("node-a", executor._versions | more, False) for more in ({"torch": "1.13.1"}, {}))
        executor._list_hosts = lambda: {"node-a", "node-b"}
        assert len(executor._admit(slot, old)) == 1 and slot.is_refused
        assert executor._admit(slot, new) == [] and slot.facts == new
        assert len(executor._admit(slot, replace(old, host="node-b"))) == 1  # node-a is there for it


@pytest.mark.parametrize(
    ("address", "numbers", "kind", "said"),
    [
        ("127.0.0.1:1", {}, ClusterError, r"no Ray cluster answers at 127\.0\.0\.1:1: .*refused.*ray start"),
        ("ray://head:10001", {}, ConfigError, r"`--address` must be auto or the HOST:PORT"),
        (None, {"device": "cuda:1"}, ConfigError, r"`--device` must be auto, cpu or cuda"),
        (None, {"per_device": 2}, ConfigError, r"`--workers-per-device 2` shares out GPUs"),
        (None, {"workers": 0}, ConfigError, r"`--workers` must be at least 1"),
    ],
)
def test_error_says_what_a_cluster_cannot_be(ray_nodes, address, numbers, kind, said):
    begin = time.monotonic()
    with pytest.raises(kind, match=said):
        find_cluster(
            "ray", address or ray_nodes.address, **{"device": "cpu", "workers": None, "per_device": None} | numbers
        )
    assert time.monotonic() - begin < 20


def test_threads_are_a_share_of_the_smallest_node(ray_nodes):
    ray_nodes.join("node-a", num_cpus=6)
    ray_nodes.join("node-b", num_cpus=4)
    for workers, cores in ((None, 4), (2, 4), (4, 2), (50, 1)):
        cluster = find_cluster("ray", ray_nodes.address, device="cpu", workers=workers, per_device=None)
        assert cluster is not None
        deadline = time.monotonic() + PATIENCE_S
        while cluster.cores != cores and time.monotonic() < deadline:
            time.sleep(0.5)  # Ray counts the nodes that an earlier test lost for a while
        assert cluster.cores == cores
