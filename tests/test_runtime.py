import gc
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cityopt import runtime
from cityopt.errors import ConfigError


def test_import_needs_no_torch() -> None:
    code = "import sys, cityopt.runtime; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("is_parent", "code"), [(True, 0), (False, 3)])
def test_process_ends_when_its_parent_was_gone_before_it_could_ask(is_parent: bool, code: int) -> None:
    parent = "os.getppid()" if is_parent else "os.getpid()"
    text = f"import os, time\nfrom cityopt.runtime import die_with_parent\ndie_with_parent({parent})\ntime.sleep(1)"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == code


def test_derive_seed_is_pinned_and_tells_parts_apart() -> None:
    assert runtime.derive_seed(7, "epoch", 3) == 7646495708115270628
    seeds = {runtime.derive_seed(*parts) for parts in [(1, 23), (12, 3), ("1", 23), ("1", "23"), (123,), ("123",)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_resolve_device_refuses_when_text_or_gpu_is_unknown() -> None:
    assert runtime.resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda or cuda:N, but got 'gpu'"):
        runtime.resolve_device("gpu")
    with pytest.raises(ConfigError, match="needs a GPU"):
        runtime.resolve_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_resolve_device_falls_back_to_cpu_when_auto_finds_no_gpu() -> None:
    assert runtime.resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no CUDA device"):
        runtime.resolve_device("cuda")


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_cores_are_those_the_process_is_bound_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_list_quotas", list)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 5, 7}, raising=False)
    assert runtime.count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert runtime.count_cores() == os.cpu_count()


@pytest.mark.parametrize(("quotas", "cores"), [([2], 2), ([8, 3], 3), ([16], 4), ([0], 1), ([], 4)])
def test_cores_are_fewer_when_a_container_has_a_quota(
    monkeypatch: pytest.MonkeyPatch, quotas: list[int], cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(runtime, "_list_quotas", lambda: quotas)
    assert runtime.count_cores() == cores


def test_quotas_are_read_from_a_group_and_all_above_it(tmp_path: Path) -> None:
    """The layout of the kernel's documentation, admin-guide/cgroup-v2: `$MAX $PERIOD` in microseconds."""
    (tmp_path / "slice" / "job").mkdir(parents=True)
    (tmp_path / "slice" / "cpu.max").write_text("250000 100000\n")
    (tmp_path / "slice" / "job" / "cpu.max").write_text("max 100000\n")
    process = tmp_path / "cgroup"
    process.write_text("12:cpuset:/\n0::/slice/job\n")
    assert runtime._list_quotas(tmp_path, process) == [2]
    assert runtime._list_quotas(tmp_path, tmp_path / "none") == []


def test_seed_everything_and_captured_state_repeat_the_same_draws() -> None:
    runtime.seed_everything(5)
    first = draw()
    state = runtime.capture_rng()
    second = draw()
    runtime.restore_rng(state)
    assert draw() == second
    runtime.seed_everything(5)
    assert draw() == first != second


def test_repeatable_restores_the_mode_when_left() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with runtime.repeatable(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert torch.are_deterministic_algorithms_enabled() == before
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_index_gradient_repeats_to_the_bit_when_several_threads_add() -> None:
    threads = torch.get_num_threads()
    values, index = torch.randn(200_000), torch.arange(200_000) % 7
    try:
        torch.set_num_threads(2)
        with runtime.repeatable(torch.device("cpu")):
            sums = [torch.zeros(7).index_put_((index,), values, accumulate=True) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(sums[0], other) for other in sums)


def test_read_git_state_reports_commit_and_diff_when_dirty(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("one\n")
    git("add", "file")
    git("commit", "-qm", "first")
    runtime.read_git_state.cache_clear()
    clean = runtime.read_git_state(tmp_path)
    assert (clean.commit, clean.dirty, clean.diff) == (git("rev-parse", "HEAD").strip(), False, "")
    (tmp_path / "file").write_text("two\n")
    runtime.read_git_state.cache_clear()
    assert "+two" in runtime.read_git_state(tmp_path).diff


def test_read_git_state_is_empty_when_there_is_no_checkout(tmp_path: Path) -> None:
    assert runtime.read_git_state(tmp_path) == runtime.GitState("", False, "")


def test_describe_environment_holds_versions_threads_and_device() -> None:
    found = runtime.describe_environment(torch.device("cpu"))
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["threads"] == str(torch.get_num_threads())
    assert found["device"]
    assert f"numpy=={np.__version__}" in runtime.list_packages().splitlines()


def test_measure_memory_grows_when_a_block_is_touched() -> None:
    block = np.empty(2**28, dtype=np.uint8)  # larger than what an allocator keeps for later: its pages are new
    before = runtime.measure_memory_gib()
    block[:] = 1
    assert 0.15 < runtime.measure_memory_gib() - before < 0.35


@pytest.mark.parametrize(
    ("threads", "count", "share"), [(8, 1, 8), (2, 1, 2), (2, 4, 2), (2, 8, 1), (8, 2, 4), (8, 3, 2), (8, 99, 1)]
)
def test_threads_are_divided_once_among_several_processes(monkeypatch, threads, count, share):
    """On 8 cores; a sweep on 4 workers has given each training 2, and 4 more trainings at once need no fewer."""
    monkeypatch.setattr(runtime, "count_cores", lambda: 8)
    assert runtime.share_threads(threads, count) == share


def test_collector_rests_in_the_block_and_is_afterwards_as_it_was() -> None:
    with pytest.raises(ValueError, match="inside"), runtime.pausing_collector():
        assert not gc.isenabled()
        with runtime.pausing_collector():
            pass
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()
