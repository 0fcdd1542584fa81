"""The shipper against a real database, which is read with sqlite3: what arrived, and that nothing came twice."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from cityopt.errors import StoreError
from cityopt.store import run_folder
from cityopt.tracking import mlflow_shipper
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import RunFolder

NUM_EPOCHS = 4


class MirroredRun:
    """A run whose folder a worker filled."""

    def __init__(self, store: MlflowStore, study: str) -> None:
        self.store, self.study = store, study
        self.run_id = store.create_run(study, "trial-0000", "trial")
        self.folder = run_folder(store.store, self.run_id)

    def record(self, epochs: range) -> None:
        run = RunFolder(self.folder, "a")
        run.log_params({"lr": 0.1, "size": (2, 3)})
        for epoch in epochs:
            run.log_metrics({"loss": 1 / epoch, "ap": epoch / 7}, step=epoch, time_ms=1000 * epoch)
            run.write_artifact(f"overlays/{epoch}.png", f"picture {epoch}")
            (self.folder / "best.pt").unlink(missing_ok=True)
            (self.folder / "best.pt").write_text(f"weights {epoch}")
        (self.folder / "log.txt").write_text("hello")

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.store.store / "mlflow.db")) as connection:
            return sorted(connection.execute(sql, (self.run_id,)).fetchall())

    @property
    def metrics(self) -> list[tuple[int, int, str, float]]:
        return self.query("SELECT step, timestamp, key, value FROM metrics WHERE run_uuid = ?")

    @property
    def status(self) -> tuple[str, int]:
        return self.query("SELECT status, end_time FROM runs WHERE run_uuid = ?")[0]

    @property
    def artifacts(self) -> dict[str, str]:
        folder = self.store.artifact_folder(self.run_id)
        assert folder is not None
        return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}

    def check_whole(self) -> None:
        """Compare MLflow with what `record` wrote for all epochs and `end` for the end."""
        epochs = range(1, NUM_EPOCHS + 1)
        values = [(e, 1000 * e, name, v) for e in epochs for name, v in (("loss", 1 / e), ("ap", e / 7))]
        assert self.metrics == sorted(values)
        assert self.query("SELECT key, value FROM params WHERE run_uuid = ?") == [("lr", "0.1"), ("size", "[2, 3]")]
        assert ("cityopt.state", "pruned") in self.query("SELECT key, value FROM tags WHERE run_uuid = ?")
        pictures = {f"overlays/{e}.png": f"picture {e}" for e in epochs}
        assert self.artifacts == pictures | {"log.txt": "hello", "checkpoints/best.pt": f"weights {NUM_EPOCHS}"}
        assert self.status == ("KILLED", 99)


@pytest.fixture
def run(mlflow_store: MlflowStore, study: str) -> MirroredRun:
    return MirroredRun(mlflow_store, study)


@pytest.fixture
def shipper(mlflow_store: MlflowStore) -> Iterator[Shipper]:
    shipper = Shipper(mlflow_store, interval_s=0.02)
    yield shipper
    shipper.close()


def end(shipper: Shipper, run: MirroredRun) -> None:
    shipper.end(run.run_id, "KILLED", {"cityopt.state": "pruned"}, end_ms=99)


def wait_for(shipper: Shipper, condition: Any) -> None:
    with shipper._changed:
        assert shipper._changed.wait_for(condition, timeout=20)


def test_shipper_mirrors_metrics_and_overlays_when_the_run_goes_on(shipper: Shipper, run: MirroredRun) -> None:
    run.record(range(1, 3))
    shipper.watch(run.run_id, run.folder)
    wait_for(shipper, lambda: len(run.metrics) == 4 and "overlays/2.png" in run.artifacts)
    assert "checkpoints/best.pt" not in run.artifacts
    assert run.status[0] == "RUNNING"
    run.record(range(3, NUM_EPOCHS + 1))
    end(shipper, run)
    assert shipper.drain(20)
    run.check_whole()
    assert shipper.problem == ""


def test_shipper_sends_the_description_anew_when_it_changes(shipper: Shipper, run: MirroredRun) -> None:
    sql = "SELECT value FROM tags WHERE run_uuid = ? AND key = 'mlflow.note.content'"
    for text in ("**begun**", "| trial |\n| 7 ü |"):
        (run.folder / "note.md").parent.mkdir(parents=True, exist_ok=True)
        (run.folder / "note.md").write_text(text, encoding="utf-8")
        shipper.watch(run.run_id, run.folder)
        wait_for(shipper, lambda text=text: run.query(sql) == [(text,)])
    end(shipper, run)
    assert shipper.drain(20) and run.query(sql) == [("| trial |\n| 7 ü |",)]


def test_shipper_links_the_checkpoint_when_the_artifacts_are_local(shipper: Shipper, run: MirroredRun) -> None:
    run.record(range(1, 2))
    shipper.watch(run.run_id, run.folder)
    end(shipper, run)
    assert shipper.drain(20)
    folder = run.store.artifact_folder(run.run_id)
    assert folder is not None
    assert (folder / "checkpoints/best.pt").samefile(run.folder / "best.pt")


KILL_POINTS = [
    (point, when) for point in ("log", "put_artifact", "finish_run", "_write_shipped") for when in ("before", "after")
]


@pytest.mark.parametrize(("point", "when"), KILL_POINTS)
def test_catch_up_makes_the_run_whole_when_the_shipper_was_killed(
    mlflow_store: MlflowStore, run: MirroredRun, monkeypatch: pytest.MonkeyPatch, point: str, when: str
) -> None:
    run.record(range(1, NUM_EPOCHS + 1))
    with monkeypatch.context() as patch:
        dead = _die_at(patch, mlflow_store, point, when)
        shipper = Shipper(mlflow_store, interval_s=0.02)
        shipper.watch(run.run_id, run.folder)
        end(shipper, run)
        wait_for(shipper, lambda: bool(dead))
        shipper.close()
    if (point, when) != ("finish_run", "after"):
        assert run.status[0] == "RUNNING"
    shipper = Shipper(mlflow_store, interval_s=0.02)
    shipper.catch_up(run.study)
    assert shipper.drain(20)
    assert shipper.close()
    run.check_whole()


def _die_at(patch: pytest.MonkeyPatch, store: MlflowStore, point: str, when: str) -> list[str]:
    """Let the first call of `point` fail, before or after its work, and then everything that leaves a trace."""
    dead: list[str] = []

    def wrap(name: str, real: Any) -> Any:
        def act(*args: Any, **kwargs: Any) -> Any:
            if dead:
                raise StoreError("dead")
            if name != point:
                return real(*args, **kwargs)
            if when == "after":
                real(*args, **kwargs)
            dead.append(name)
            raise StoreError("killed")

        return act

    for name in ("log", "put_artifact", "finish_run"):
        patch.setattr(store, name, wrap(name, getattr(store, name)))
    patch.setattr(mlflow_shipper, "_write_shipped", wrap("_write_shipped", mlflow_shipper._write_shipped))
    return dead


def test_shipper_catches_up_when_mlflow_was_away(
    mlflow_store: MlflowStore, shipper: Shipper, run: MirroredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise StoreError("no connection")

    run.record(range(1, NUM_EPOCHS + 1))
    with monkeypatch.context() as patch:
        for name in ("log", "put_artifact", "finish_run", "list_running"):
            patch.setattr(mlflow_store, name, refuse)
        shipper.watch(run.run_id, run.folder)
        shipper.catch_up(run.study)
        end(shipper, run)
        wait_for(shipper, lambda: "no connection" in shipper.problem)
        assert not shipper.drain(0.1)
    assert shipper.drain(20)
    assert shipper.problem == ""
    run.check_whole()


def test_end_is_no_failure_when_it_comes_in_the_middle_of_a_pass(
    mlflow_store: MlflowStore, run: MirroredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.record(range(1, NUM_EPOCHS + 1))
    shipper = Shipper(mlflow_store, interval_s=3.0)  # a failure would be tried again after two of these
    log = mlflow_store.log

    def log_and_end(*args: Any, **kwargs: Any) -> None:
        log(*args, **kwargs)
        monkeypatch.setattr(mlflow_store, "log", log)
        end(shipper, run)

    monkeypatch.setattr(mlflow_store, "log", log_and_end)
    shipper.watch(run.run_id, run.folder)
    wait_for(shipper, lambda: (run.folder / "ending.json").exists())
    assert shipper.drain(1) and shipper.close()
    run.check_whole()


def test_catch_up_leaves_a_run_running_when_it_has_not_ended(shipper: Shipper, run: MirroredRun) -> None:
    run.record(range(1, NUM_EPOCHS + 1))
    shipper.catch_up(run.study)
    wait_for(shipper, lambda: len(run.metrics) == 2 * NUM_EPOCHS)
    assert run.status[0] == "RUNNING"
    end(shipper, run)
    assert shipper.drain(20)
    run.check_whole()


def test_watch_lets_a_run_go_on_when_it_had_ended(shipper: Shipper, run: MirroredRun) -> None:
    run.record(range(1, 3))
    shipper.end(run.run_id, "FAILED", {"cityopt.state": "failed"})
    assert shipper.drain(20)
    run.store.reopen_run(run.run_id)
    shipper.watch(run.run_id, run.folder)
    run.record(range(3, NUM_EPOCHS + 1))
    wait_for(shipper, lambda: len(run.metrics) == 2 * NUM_EPOCHS)
    assert run.status[0] == "RUNNING"
    end(shipper, run)
    assert shipper.drain(20)
    run.check_whole()


def test_shipper_sends_all_again_without_doubles_when_its_notes_are_rubbish(
    mlflow_store: MlflowStore, run: MirroredRun
) -> None:
    run.record(range(1, NUM_EPOCHS + 1))
    shipper = Shipper(mlflow_store, interval_s=0.02)
    shipper.watch(run.run_id, run.folder)
    assert shipper.close()
    (run.folder / "shipped.json").write_text("")
    shipper = Shipper(mlflow_store, interval_s=0.02)
    end(shipper, run)
    assert shipper.drain(20)
    assert shipper.close()
    run.check_whole()


def test_shipper_goes_on_with_others_when_a_run_was_deleted(
    mlflow_store: MlflowStore, shipper: Shipper, run: MirroredRun, study: str
) -> None:
    deleted = mlflow_store.create_run(study, "trial-0001", "trial")
    mlflow_store.client.delete_run(deleted)
    run.record(range(1, NUM_EPOCHS + 1))
    shipper.end(deleted, "FINISHED", {"a": 1})
    end(shipper, run)
    assert shipper.drain(20)
    assert deleted in shipper.problem
    run.check_whole()


def test_shipper_ends_a_run_when_mlflow_refuses_its_data(shipper: Shipper, run: MirroredRun) -> None:
    RunFolder(run.folder, "a").log_metrics({"no such name!": 1.0}, step=1)
    shipper.end(run.run_id, "FAILED", end_ms=5)
    assert shipper.drain(20)
    assert "no such name" in shipper.problem
    assert run.status == ("FAILED", 5)
