"""A Ray cluster of hosts that this machine plays, each of which can be lost at once as when its power goes.

Each host has namespaces of its own: processes that all end with their first one, and but for the head, which is this
machine, a name, and folders that it does not share with the rest.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PATIENCE_S = 90
_OWN_PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
_ISOLATED = [*_OWN_PROCESSES, "--mount", "--uts"]
_JOIN = """
set -e
hostname "$1"; shift
while [ "$1" != -- ]; do mount -t tmpfs none "$1"; shift; done
shift
exec "$@"
"""


class RayNodes:
    """A running cluster; nodes join and are lost at will."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.address = f"127.0.0.1:{_find_free_port()}"

    def cache_of(self, host: str) -> Path:
        """Return where a host keeps what it decodes."""
        return self._place / host / "cityopt"

    def start_head(self, *, num_cpus: int) -> None:
        """Start the cluster, with as many CPUs on this machine, and wait until it answers."""
        port = self.address.rpartition(":")[2]
        options = ["--head", "--port", port, "--temp-dir", str(self._place / "ray"), "--include-dashboard", "false"]
        self._start(
            "head", _OWN_PROCESSES, [*options, "--disable-usage-stats", "--object-store-memory", "200000000"], num_cpus
        )

    def join(self, host: str, *, num_cpus: int, num_gpus: int = 0, hidden: Sequence[Path] = ()) -> None:
        """Let a host of this name join, which finds nothing in the folders `hidden`, and wait until it has."""
        isolated = [*_ISOLATED, "sh", "-c", _JOIN, "join", host, *map(str, hidden), "--"]
        options = ["--address", self.address, "--object-store-memory", "100000000"]
        self._start(host, isolated, options, num_cpus, num_gpus)

    def lose(self, host: str) -> None:
        """End all processes of a host at once, which must be there."""
        process = self._processes.pop(host)
        assert process.poll() is None
        process.kill()
        process.wait(PATIENCE_S)

    def leave_all(self) -> None:
        """End all hosts but the head."""
        for host in [name for name in self._processes if name != "head"]:
            self.lose(host)

    def _start(self, host: str, isolated: list[str], options: list[str], num_cpus: int, num_gpus: int = 0) -> None:
        resources = [
            "--num-cpus",
            str(num_cpus),
            "--num-gpus",
            str(num_gpus),
            "--include-log-monitor",
            "false",
            "--block",
        ]
        environment = {**os.environ, "XDG_CACHE_HOME": str(self._place / host), "RAY_USAGE_STATS_ENABLED": "0"}
        environment["RAY_AUTH_MODE"] = "disabled"  # or else a head asks for the token of whoever has one at home
        log = self._place / f"{host}.log"
        with log.open("wb") as file:
            command = [*isolated, sys.executable, "-m", "ray.scripts.scripts", "start", *options, *resources]
            self._processes[host] = subprocess.Popen(
                command, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE_S
        while b"will now block forever" not in log.read_bytes():
            assert time.monotonic() < deadline and self._processes[host].poll() is None, log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        """End all nodes, the head last."""
        self.leave_all()
        self.lose("head")


@contextmanager
def run_ray() -> Iterator[RayNodes]:
    """Start a cluster of a head without CPUs, which is gone with the block; skip the test where there can be none."""
    if importlib.util.find_spec("ray") is None:  # importing it is for cityopt, which decides how
        pytest.skip("there is no Ray: uv sync --group services")
    if subprocess.run([*_ISOLATED, "true"], capture_output=True).returncode:
        pytest.skip("hosts need namespaces of their own, which this machine does not give")
    place = Path(tempfile.mkdtemp(prefix="cityopt-ray-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        nodes = RayNodes(place)
        nodes.start_head(num_cpus=0)
        stack.callback(nodes.stop)
        yield nodes


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
