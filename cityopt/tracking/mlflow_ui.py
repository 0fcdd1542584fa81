"""MLflow's web page on a store: a server as child process, on loopback, that ends with its parent.

The server takes 10 to 50 seconds to answer. An address is only given out once the page and the database both do.
"""

import ctypes
import http.client
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cityopt.errors import StoreError
from cityopt.tracking.mlflow_store import QUIET, MlflowStore

_PROBES = (("GET", "/health", None), ("POST", "/api/2.0/mlflow/experiments/search", '{"max_results": 1}'))


def serve_ui(
    store: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    on_ready: Callable[[str], None],
    on_wait: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Serve MLflow's page until Ctrl-C or SIGTERM.

    `port` 0 takes a free one. `on_wait` is called with the seconds waited, some times a second, until
    `on_ready` is called once with the address. For the main thread alone, since signals are handled.
    Raises StoreError: the port is taken, or the server ended by itself.
    """
    with _sigterm_as_ctrl_c(), suppress(KeyboardInterrupt):
        with open_ui(store, host=host, port=port, on_wait=on_wait) as (address, server):
            on_ready(address)
            server.wait()
        raise StoreError(f"the MLflow server on {address} ended by itself (exit code {server.returncode}).")


@contextmanager
def open_ui(
    store: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    on_wait: Callable[[float], None] = lambda seconds: None,
    timeout_s: float = 300.0,
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run MLflow's server while the context is open; gives its address, which answers, and its process.

    Raises StoreError: the port is taken, or the server does not come up.
    """
    port = _reserve_port(host, port)
    opened = MlflowStore(store)
    if not (opened.store / "mlflow.db").is_file():
        _ = opened.client  # makes the database under a lock; the server would not take turns with a sweep
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(
            _command(opened, host, port),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )
        try:
            _wait_until_ready(server, host, port, output, on_wait, timeout_s)
            yield f"http://{host}:{port}", server
        finally:
            _stop(server)


def _command(store: MlflowStore, host: str, port: int) -> list[str]:
    options = {
        "--backend-store-uri": store.tracking_uri,
        "--default-artifact-root": (store.store / "artifacts").as_uri(),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    return [sys.executable, "-m", __name__, "server", *(part for pair in options.items() for part in pair)]


def _reserve_port(host: str, port: int) -> int:
    """Return a port that is free now: this one, or any for 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StoreError(
                f"port {port} on {host} must be free, but {error.strerror}. Choose another with --port N; 0 takes any."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_ready(
    server: subprocess.Popen[bytes],
    host: str,
    port: int,
    output: IO[bytes],
    on_wait: Callable[[float], None],
    timeout_s: float,
) -> None:
    begin = time.monotonic()
    while not all(_answers(host, port, *probe) for probe in _PROBES):
        waited = time.monotonic() - begin
        if server.poll() is not None or waited > timeout_s:
            output.seek(0)
            said = output.read().decode(errors="replace").strip()[-2000:]
            raise StoreError(f"the MLflow server did not come up on {host}:{port} in {waited:.0f} s. It said:\n{said}")
        on_wait(waited)
        time.sleep(0.2)


def _answers(host: str, port: int, method: str, path: str, body: str | None) -> bool:
    reachable = "127.0.0.1" if host == "0.0.0.0" else host
    connection = http.client.HTTPConnection(reachable, port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its own children."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(10)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            server.kill()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # a group outlives its leader
    server.wait()


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_mlflow() -> None:
    """Be the `mlflow` command, and end with the parent.

    Linux sends SIGTERM when the parent dies, which MLflow's server hands on to its own child.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 = PR_SET_PDEATHSIG
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run_mlflow()
