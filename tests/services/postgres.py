"""A PostgreSQL server of the tests' own: a cluster in a temporary folder, on a port of its own, that may be killed.

PostgreSQL refuses to run as root, so that it then runs as an unprivileged user. It asks for a password, as a server
on a network does.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "cityopt", "rosebud"
PATIENCE_S = 60
_OPTIONS = {
    "fsync": "off",  # the tests cut no power
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "timezone": "Pacific/Kiritimati",  # whoever compares the server's clock with this machine's is 14 hours off
    "unix_socket_directories": "",
}


class Cluster:
    """A running server; `stop`, `kill` and `start` it at will."""

    def __init__(self, programs: Path, place: Path, owner: str | None) -> None:
        self._programs, self._place, self._data = programs, place, place / "data"
        self._privileges: dict[str, Any] = {"user": owner, "extra_groups": []} if owner else {}
        self._numbers = count()
        if owner:
            self._privileges["group"] = pwd.getpwnam(owner).pw_gid
            shutil.chown(place, owner)
        self.port = _find_free_port()
        password = place / "password"
        password.write_text(PASSWORD)
        account = ["--username", USER, "--pwfile", password, "--auth", "scram-sha-256"]
        make = [programs / "initdb", "-D", self._data, *account, "--no-sync"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL, **self._privileges)
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in {**_OPTIONS, "port": self.port}.items())

    def url(self, database: str) -> str:
        """Return the address of a database, password and all."""
        return f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Make an empty database and return its address."""
        import psycopg

        name = f"study_{next(self._numbers)}"
        address = f"host=127.0.0.1 port={self.port} user={USER} password={PASSWORD} dbname=postgres"
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._place / "log.txt").open("a") as log:
            command = [self._programs / "postgres", "-D", self._data]
            self._server = subprocess.Popen(command, stdout=log, stderr=log, **self._privileges)
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            assert time.monotonic() < deadline and self._server.poll() is None, (self._place / "log.txt").read_text()
            time.sleep(0.05)
        self._started = time.monotonic()

    def wait_until_up_for(self, seconds: float) -> None:
        """Wait until it has answered for so long without a restart."""
        time.sleep(max(0.0, seconds - (time.monotonic() - self._started)))

    def stop(self) -> None:
        """Stop it as `systemctl stop` does: open connections are cut."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(PATIENCE_S)

    def kill(self) -> None:
        """End it as `kill -9` does, with all the processes that serve a connection."""
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in [pid, *map(int, children)]:
            os.kill(process, signal.SIGKILL)
        self._server.wait(PATIENCE_S)


@contextmanager
def run_cluster() -> Iterator[Cluster]:
    """Start a server that is gone with the block; skip the test where PostgreSQL is not installed."""
    programs = find_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    place = Path(tempfile.mkdtemp(prefix="cityopt-postgresql-"))
    cluster = Cluster(programs, place, _find_unprivileged_user() if os.geteuid() == 0 else None)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(place)


def find_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, of the newest version: Debian keeps them off the search path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return folders[-1].parent if folders else None


def _find_unprivileged_user() -> str:
    names = [entry.pw_name for entry in pwd.getpwall()]
    return "postgres" if "postgres" in names else "nobody"


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
