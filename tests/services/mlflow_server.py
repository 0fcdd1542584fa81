"""An MLflow server of the tests' own, on a port of its own, with artifacts that go through it; it may be killed.

It takes seconds to answer, more on a busy machine, so that `start` waits for it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cityopt.tracking.mlflow_store import QUIET

PATIENCE_S = 180


class MlflowServer:
    """A server with a database of its choice; `kill` and `start` it at will."""

    def __init__(self, place: Path, backend: str | None = None) -> None:
        self._place, self._backend = place, backend or f"sqlite:///{place / 'server.db'}"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def artifacts(self) -> Path:
        """The folder that it keeps artifacts in, which clients never see."""
        return self._place / "artifacts"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        self.wait_until_up()

    def launch(self) -> None:
        """Start it; it answers later."""
        options = {
            "--backend-store-uri": self._backend,
            "--artifacts-destination": self.artifacts.as_uri(),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        words = [word for pair in options.items() for word in pair]
        with (self._place / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *words],
                cwd=self._place,
                env=os.environ | QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_until_up(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.answers():
            assert self._process and self._process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.2)

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it and its children, as `kill -9` does or otherwise; one that is dead already stays so."""
        if self._process is not None:
            os.killpg(self._process.pid, how)
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        """What it said last."""
        return (self._place / "server.log").read_text(errors="replace")[-3000:]

    def answers(self) -> bool:
        """Say whether it is up."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=10) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextmanager
def run_server(backend: str | None = None) -> Iterator[MlflowServer]:
    """Start a server that is gone with the block; its database is a file by default."""
    place = Path(tempfile.mkdtemp(prefix="cityopt-mlflow-"))
    server = MlflowServer(place, backend)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(place)
