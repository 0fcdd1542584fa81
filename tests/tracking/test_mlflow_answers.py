"""Requests to a server of MLflow's protocol that carries out what it is asked, and whose answer may be lost."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cityopt.tracking.deferred_run import DeferredRun, find_mlflow_id, name_request
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.mlflow_store import QUIET, MlflowStore


class _Server(ThreadingHTTPServer):
    """Keeps runs in memory; the answers to the first `num_lost` requests for a run are lost."""

    daemon_threads = True

    def __init__(self, num_lost: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.num_lost, self.runs = num_lost, list[dict[str, Any]]()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._answer({"experiment": {"experiment_id": "1", "name": "study", "lifecycle_stage": "active"}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        runs = self.server.runs
        if self.path.endswith("runs/create"):
            info = {"run_id": f"{len(runs):032x}", "experiment_id": "1", "status": "RUNNING", "artifact_uri": ""}
            runs.append({"info": info, "data": {"tags": asked["tags"]}})
            if len(runs) <= self.server.num_lost:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self._answer({"run": runs[-1]})
        else:
            found = [run for run in runs if any(f"'{tag['value']}'" in asked["filter"] for tag in run["data"]["tags"])]
            self._answer({"runs": found})

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serve(num_lost: int) -> Iterator[_Server]:
    server = _Server(num_lost)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_run_is_made_once_when_the_answer_of_the_server_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    run, request = DeferredRun("study", "trial-0000", "trial", {}), name_request("study", 0)
    with serve(num_lost=1) as server:
        store = PatientStore(tmp_path, f"http://127.0.0.1:{server.server_port}", on_wait=lambda _: None)
        store._parents["study"] = "parent"
        run_id = store.open_run(request, run, may_exist=False)
        assert run_id == request and find_mlflow_id(tmp_path / "runs" / run_id) is None
        made = MlflowStore.make_run(store, request, run)  # as the shipper does a moment later
        assert made == f"{0:032x}"
        assert len(server.runs) == 1
