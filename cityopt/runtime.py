"""The ground a training stands on: device, threads, seeds, repeatability, and what to write down about them.

The coordinator imports this module too, so torch is only imported inside the functions that need it.
Every random stream of a run is seeded by `derive_seed(run seed, purpose, epoch, ...)`: nothing depends
on how many numbers an earlier epoch drew, and a resumed run needs no history to go on as if undisturbed.
"""

import ctypes
import gc
import hashlib
import importlib.metadata
import os
import platform
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cityopt.errors import ConfigError

if TYPE_CHECKING:
    import torch

GIB = 2.0**30
MAX_DIFF_BYTES = 2**20


@dataclass(frozen=True)
class GitState:
    """Commit and uncommitted changes of a checkout; all empty outside of one."""

    commit: str
    dirty: bool
    diff: str


def resolve_device(text: str) -> "torch.device":
    """Turn `auto`, `cpu`, `cuda` or `cuda:1` into a device that exists; `auto` prefers CUDA.

    Raises ConfigError: another text, no CUDA, or no GPU of that number.
    """
    import torch

    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise ConfigError(f"`--device` must be auto, cpu, cuda or cuda:N, but got {text!r}.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "cpu" or (text == "auto" and count == 0):
        return torch.device("cpu")
    number = int(text.partition(":")[2] or 0)
    if number >= count:
        found = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise ConfigError(
            f"`--device {text}` needs a GPU that torch sees, but found {found}. Use --device auto or cpu."
        )
    return torch.device("cuda", number)


def count_cores() -> int:
    """Return the CPU cores that this process may use: those it is bound to, or a container's quota if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *_list_quotas()]))


def share_threads(threads: int, count: int) -> int:
    """Return the CPU threads of each of `count` processes at once, which have no more than `threads` alone."""
    return min(threads, max(1, count_cores() // count))


def count_gpus() -> int:
    """Return the GPUs that torch sees. Without a driver torch is not asked: importing it takes seconds."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def die_with_parent(parent: int | None = None) -> None:
    """Let this process end when the one that started it does, however that ended.

    Without `parent`, the id of that one, a death that came before this call is not noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        if parent is not None and os.getppid() != parent:
            os._exit(3)
        return
    parent = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(3)

    threading.Thread(target=watch, daemon=True).start()


def set_threads(count: int) -> None:
    """Give torch `count` CPU threads. Scores on a CPU depend on it: a study fixes the number."""
    import torch

    torch.set_num_threads(count)
    with suppress(RuntimeError):  # torch takes this one only once per process; no operation of ours uses the pool
        torch.set_num_interop_threads(1)


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in 0..2**63 - 1 from parts, the same on every machine and in every version of Python."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def capture_rng() -> dict[str, Any]:
    """Return the states of all global generators as plain data and tensors, fit for a weights-only checkpoint."""
    import numpy as np
    import torch

    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put generators back to what `capture_rng` found; CUDA only where the number of devices still fits."""
    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def repeatable(device: "torch.device") -> Iterator[None]:
    """On a CPU, make torch choose algorithms that repeat to the last bit; leave CUDA as it is.

    With two threads or more, the gradient of an indexing adds with atomics, in no fixed order, unless
    deterministic algorithms are asked for. CUDA lacks such algorithms for some operations (RoIAlign).
    """
    import torch

    mode: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), mode.fill_uninitialized_memory
    torch.use_deterministic_algorithms(device.type == "cpu")
    mode.fill_uninitialized_memory = False  # a debugging aid that writes each new tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        mode.fill_uninitialized_memory = fill


def measure_memory_gib() -> float:
    """Return this process's resident memory in GiB (its peak where the system does not tell the present one)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / GIB
    except OSError:
        return measure_peak_gib("cpu")


def measure_peak_gib(device: str) -> float:
    """Return the most memory in GiB that this process ever held: of a GPU what its tensors took, else resident."""
    if device != "cpu" and (place := resolve_device(device)).type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(place) / GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / GIB if sys.platform == "darwin" else peak * 1024 / GIB


def describe_environment(device: "torch.device") -> dict[str, str]:
    """Name what a score may depend on beside the config: versions, machine, device, threads, commit."""
    import torch

    packages = {name: _find_version(name) for name in ("cityopt", "torch", "torchvision", "numpy")}
    git = read_git_state()
    return {
        **packages,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _name_cpu(),
        "cuda": str(torch.version.cuda) if device.type == "cuda" else "",
        "threads": str(torch.get_num_threads()),
        "git_commit": git.commit,
        "git_dirty": str(git.dirty).lower(),
    }


def _find_version(package: str) -> str:
    """Return the version of a package; one on the path may not be installed, as on a machine without an index."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@lru_cache
def list_packages() -> str:
    """Return the installed packages as a lock list, one `name==version` per line."""
    found = {(dist.name or "").lower(): dist.version for dist in importlib.metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


@lru_cache
def read_git_state(folder: Path | None = None) -> GitState:
    """Read commit and uncommitted changes of the checkout around `folder` (default: cityopt's own, else the cwd's).

    Remembered per process: the code that runs is the code that was there when it was imported.
    """
    for place in [folder] if folder else [Path(__file__).parent, Path.cwd()]:
        commit = _run_git(place, "rev-parse", "HEAD").strip()
        if commit:
            diff = _run_git(place, "diff", "HEAD")[:MAX_DIFF_BYTES]
            return GitState(commit, bool(diff), diff)
    return GitState("", False, "")


def _run_git(folder: Path, *arguments: str) -> str:
    """Return what git prints; nothing without git, outside a checkout, or after ten seconds."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout


def _list_quotas(groups: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return the whole cores that Linux' control groups (version 2) leave to a process: its own and those above."""
    with suppress(OSError, ValueError):
        own = next((line[3:] for line in process.read_text().splitlines() if line.startswith("0::")), "/")
        folders = [groups / own.strip("/"), *(groups / own.strip("/")).parents]
        texts = [path.read_text() for folder in folders if (path := folder / "cpu.max").is_file()]
        return [int(quota) // int(period) for quota, period in (text.split() for text in texts) if quota != "max"]
    return []


def _name_cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def pausing_collector() -> Iterator[None]:
    """Look for no garbage in the block: where all that is made is kept, that only takes time, a third of `status`."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
