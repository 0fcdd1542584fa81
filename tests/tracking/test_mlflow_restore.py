"""Runs of other machines become folders whole or not at all, in the store and nowhere else."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cityopt.errors import StoreError
from cityopt.tracking.deferred_run import REQUEST, name_request
from cityopt.tracking.mlflow_restore import restore_runs

RUN = "0123456789abcdef" * 2


class Server:
    """A server with one promotion, which has a picture; it goes away in the first `num_failures` downloads."""

    def __init__(self, store: Path, request: str | None, num_failures: int = 0) -> None:
        self.store, self.is_embedded, self.client = store, False, self
        self.request, self.num_failures = request, num_failures

    def open_experiment(self, study: str) -> str:
        return study

    def search_runs(self, *_: Any, **__: Any) -> Any:
        tags = {"cityopt.state": "complete", "cityopt.kind": "promotion"}
        tags |= {} if self.request is None else {REQUEST: self.request}
        page = [SimpleNamespace(info=SimpleNamespace(run_id=RUN), data=SimpleNamespace(tags=tags))]
        return type("Page", (list,), {"token": None})(page)

    def fetch_artifact(self, run_id: str, name: str) -> Path:
        path = self.store / name
        path.write_text(json.dumps({"params": {}, "status": None, "metrics": ""}))
        return path

    def list_artifacts(self, run_id: str) -> list[Any]:
        return [SimpleNamespace(path=path) for path in ("one.png", "two.png", "checkpoints", "record.json")]

    def download_artifacts(self, run_id: str, path: str, folder: str) -> None:
        if path == "two.png" and self.num_failures:
            self.num_failures -= 1
            raise OSError("connection reset")
        (Path(folder) / path).write_text(path)


def restore(server: Any) -> int:
    return restore_runs(server, "study")


def test_pictures_are_fetched_by_the_next_command_when_the_server_goes_away(tmp_path: Path) -> None:
    server = Server(tmp_path, name_request("study", 0), num_failures=1)
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(StoreError, match="connection reset"):
        restore(server)
    assert not (runs / RUN).exists()
    assert restore(server) == 1 and restore(server) == 0
    assert {path.name for path in (runs / RUN / "artifacts").iterdir()} == {"one.png", "two.png"}
    assert (runs / str(server.request)).samefile(runs / RUN)
    assert {path.name for path in runs.iterdir()} == {RUN, server.request}


@pytest.mark.parametrize("request_tag", [None, "", "../out", "runs", f"{RUN}/../../out"])
def test_tag_that_is_no_id_makes_no_link(tmp_path: Path, request_tag: str | None) -> None:
    store = tmp_path / "store"
    (store / "runs").mkdir(parents=True)
    assert restore(Server(store, request_tag)) == 1
    assert [path.name for path in (store / "runs").iterdir()] == [RUN]
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []
