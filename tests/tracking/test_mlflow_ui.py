"""The page's server: once for real, elsewhere a stand-in that answers as quickly as a test should."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking import mlflow_ui
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.mlflow_ui import open_ui, serve_ui
from cityopt.tracking.run_folder import RunFolder

STAND_IN = """
import http.server, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    num_calls = 0

    def do_GET(self):
        Handler.num_calls += 1
        self.send_response(200 if Handler.num_calls > 2 else 503)
        self.end_headers()

    do_POST = do_GET

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[2], "w").write(str(child.pid))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

SERVE = """
import sys
from pathlib import Path
from cityopt.tracking.mlflow_ui import serve_ui
serve_ui(Path(sys.argv[1]), port=0, on_ready=lambda address: print(address, flush=True))
"""


@pytest.fixture
def child_pid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in in place of MLflow; the file will hold the pid of a process that it starts."""
    path = tmp_path / "child.pid"
    (tmp_path / "mlflow.db").touch()

    def command(store: MlflowStore, host: str, port: int) -> list[str]:
        return [sys.executable, "-c", STAND_IN, str(port), str(path)]

    monkeypatch.setattr(mlflow_ui, "_command", command)
    return path


def ends(pid: int) -> bool:
    """Say whether a process is gone, or dead, within seconds: killing takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as response:
        return bytes(response.read())


@pytest.fixture
def python_handles_sigint() -> Iterator[None]:
    """As in a terminal: pytest's own workers, like jobs in the background, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handles_sigint")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_ui_ends_all_its_processes_when_a_signal_comes(
    tmp_path: Path, child_pid: Path, number: signal.Signals
) -> None:
    waits: list[float] = []
    addresses: list[str] = []

    def on_ready(address: str) -> None:
        addresses.append(address)
        assert fetch(f"{address}/health") == b""
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    serve_ui(tmp_path, port=0, on_ready=on_ready, on_wait=waits.append)
    assert len(addresses) == 1
    assert waits, "the stand-in answers 503 at first"
    assert ends(int(child_pid.read_text()))
    assert signal.getsignal(signal.SIGTERM) is before


def test_serve_ui_ends_the_server_when_the_signal_comes_before_it_answers(tmp_path: Path, child_pid: Path) -> None:
    def on_wait(seconds: float) -> None:
        if child_pid.is_file() and child_pid.read_text():
            os.kill(os.getpid(), signal.SIGTERM)

    serve_ui(tmp_path, port=0, on_ready=lambda address: pytest.fail(address), on_wait=on_wait)
    assert ends(int(child_pid.read_text()))


def test_serve_ui_says_so_when_the_server_ends_by_itself(tmp_path: Path, child_pid: Path) -> None:
    def on_ready(address: str) -> None:
        parent_pid = Path(f"/proc/{child_pid.read_text()}/stat").read_text().split()[3]
        os.kill(int(parent_pid), signal.SIGKILL)

    with pytest.raises(StoreError, match=r"ended by itself \(exit code -9\)"):
        serve_ui(tmp_path, port=0, on_ready=on_ready)


def test_open_ui_repeats_what_the_server_said_when_it_does_not_come_up(
    tmp_path: Path, child_pid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_ui, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with pytest.raises(StoreError, match=r"did not come up.*\nno such thing"), open_ui(tmp_path, port=0):
        pytest.fail("it never answered")


def test_open_ui_names_the_option_when_the_port_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(StoreError, match=rf"port {port} on 127.0.0.1 must be free.*--port N"),
            open_ui(tmp_path / "store", port=port),
        ):
            pytest.fail("the port is taken")
    assert not (tmp_path / "store").exists()


def check_that_a_remote_store_mirrors(remote: MlflowStore, study: str, local: MlflowStore) -> None:
    run_id = remote.create_run(study, "trial-0001", "trial")
    folder = RunFolder(run_folder(remote.store, run_id), "a")
    folder.log_metrics({"ap": 0.5, "loss": float("nan")}, step=1, time_ms=7)
    shipper = Shipper(remote)
    shipper.end(run_id, "FINISHED", {"cityopt.state": "complete"})
    assert shipper.drain(60), shipper.problem
    assert shipper.close()
    with closing(sqlite3.connect(local.store / "mlflow.db")) as connection:
        sql = "SELECT key, step, timestamp, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key"
        assert connection.execute(sql, (run_id,)).fetchall() == [("ap", 1, 7, 0), ("loss", 1, 7, 1)]
    assert not (remote.store / "mlflow.db").exists()
    assert run_id not in remote.list_running(study)


@pytest.mark.slow
def test_ui_shows_runs_and_artifacts_and_dies_with_its_parent(
    mlflow_store: MlflowStore, study: str, tmp_path: Path
) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    (tmp_path / "a.png").write_bytes(b"picture")
    mlflow_store.put_artifact(run_id, tmp_path / "a.png", "overlays/a.png")
    command = [sys.executable, "-c", SERVE, str(mlflow_store.store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        try:
            assert parent.stdout is not None
            address = parent.stdout.readline().strip()
            assert (
                json.loads(fetch(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}"))["run"]["info"]["run_id"]
                == run_id
            )
            assert fetch(f"{address}/get-artifact?run_uuid={run_id}&path=overlays/a.png") == b"picture"
            assert b"<html" in fetch(address)
            check_that_a_remote_store_mirrors(MlflowStore(tmp_path / "remote", address), study, mlflow_store)
        finally:
            parent.kill()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "remote"}, "the server leaves no files"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            fetch(f"{address}/health")
        except OSError:
            return
        time.sleep(0.2)
    pytest.fail("the server outlived its parent")
