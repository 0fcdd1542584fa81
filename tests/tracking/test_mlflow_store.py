"""The database is read with sqlite3 here, past MLflow's client."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cityopt.errors import StoreError
from cityopt.tracking.mlflow_store import MlflowStore, RefusedError
from cityopt.tracking.run_folder import Record

CREATE = """
import sys
from pathlib import Path
from cityopt.tracking.mlflow_store import MlflowStore
store = MlflowStore(Path(sys.argv[1]))
print(store.open_experiment("demo"), end="")
"""


def query(database: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql, values).fetchall()


def test_create_run_makes_a_child_of_the_one_parent(mlflow_store: MlflowStore, study: str, database: Path) -> None:
    first = mlflow_store.create_run(study, "trial-0000", "trial", {"cityopt.trial": 0})
    second = mlflow_store.create_run(study, "trial-0001", "trial")
    parent = mlflow_store.open_parent(study, {"cityopt.seed": 7})
    tags = "SELECT run_uuid, value FROM tags WHERE key = ? AND run_uuid IN (?, ?, ?)"
    runs = (first, second, parent)
    assert dict(query(database, tags, "mlflow.parentRunId", *runs)) == {first: parent, second: parent}
    assert dict(query(database, tags, "cityopt.kind", *runs)) == {first: "trial", second: "trial", parent: "study"}
    assert set(dict(query(database, tags, "cityopt.study", *runs)).values()) == {study}
    assert query(database, tags, "cityopt.seed", *runs) == [(parent, "7")]
    assert query(database, "SELECT name, status FROM runs WHERE run_uuid = ?", first) == [("trial-0000", "RUNNING")]


def test_open_parent_runs_again_when_the_study_goes_on(mlflow_store: MlflowStore, study: str) -> None:
    parent = mlflow_store.open_parent(study)
    mlflow_store.finish_run(parent, "FINISHED")
    assert mlflow_store.list_running(study) == []
    assert MlflowStore(mlflow_store.store).open_parent(study) == parent
    assert mlflow_store.list_running(study) == [parent]


def test_find_run_returns_none_when_no_run_has_the_name(mlflow_store: MlflowStore, study: str) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    assert mlflow_store.find_run(study, "trial-0000") == run_id
    assert mlflow_store.find_run(study, "trial-0001") is None


@pytest.mark.parametrize("status", ["FINISHED", "KILLED", "FAILED"])
def test_finish_run_sets_status_tags_and_time(
    mlflow_store: MlflowStore, study: str, database: Path, status: Any
) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    mlflow_store.finish_run(run_id, status, {"cityopt.reason": "nan"}, end_ms=99)
    assert query(database, "SELECT status, end_time FROM runs WHERE run_uuid = ?", run_id) == [(status, 99)]
    assert ("nan",) in query(database, "SELECT value FROM tags WHERE run_uuid = ?", run_id)
    assert run_id not in mlflow_store.list_running(study)


def test_log_stores_everything_once_when_repeated_and_beyond_the_batch_limits(
    mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    records = [Record(step, 1000 + step, {f"m{n}": step + n / 7 for n in range(60)}) for step in range(1, 26)]
    params: dict[str, object] = {f"p{n}": n for n in range(130)} | {"long": "x" * 7000, "size": (1, 2)}
    for _ in range(2):
        mlflow_store.log(run_id, records=records, params=params, tags={"a": 1})
    rows = query(database, "SELECT step, timestamp, key, value FROM metrics WHERE run_uuid = ?", run_id)
    assert sorted(rows) == sorted((r.step, r.time_ms, k, v) for r in records for k, v in r.metrics.items())
    stored = dict(query(database, "SELECT key, value FROM params WHERE run_uuid = ?", run_id))
    assert len(stored) == 132
    assert len(stored["long"]) == 6000
    assert stored["size"] == "[1, 2]"


def test_log_keeps_nan_when_a_record_is_repeated(mlflow_store: MlflowStore, study: str, database: Path) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    for _ in range(2):
        mlflow_store.log(run_id, records=[Record(1, 5, {"a": float("nan"), "b": 1.0})])
    rows = query(database, "SELECT key, is_nan FROM metrics WHERE run_uuid = ?", run_id)
    assert sorted(rows) == [("a", 1), ("b", 0)]


def test_log_is_refused_when_a_param_changes_or_the_run_is_deleted(mlflow_store: MlflowStore, study: str) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    mlflow_store.log(run_id, params={"lr": 1})
    with pytest.raises(RefusedError, match="lr"):
        mlflow_store.log(run_id, params={"lr": 2})
    mlflow_store.client.delete_run(run_id)
    with pytest.raises(RefusedError, match=run_id):
        mlflow_store.log(run_id, tags={"a": 1})


def test_log_dataset_shares_one_dataset_when_many_runs_use_it(
    mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    runs = [mlflow_store.create_run(study, f"trial-{n}", "trial") for n in range(2)]
    for run_id in runs:
        mlflow_store.log_dataset(run_id, "cityscapes", "f" * 64, "/data")
    sql = "SELECT dataset_uuid, digest FROM datasets WHERE experiment_id = ?"
    ((uuid, digest),) = query(database, sql, mlflow_store.open_experiment(study))
    assert digest == "f" * 36
    inputs = query(database, "SELECT destination_id FROM inputs WHERE source_id = ?", uuid)
    assert {run_id for (run_id,) in inputs} == set(runs)


def test_open_experiment_names_the_fix_when_it_is_deleted(mlflow_store: MlflowStore, study: str) -> None:
    experiment = mlflow_store.open_experiment(study)
    mlflow_store.client.delete_experiment(experiment)
    with pytest.raises(StoreError, match=rf"restore -x {experiment}.*--name NEW"):
        MlflowStore(mlflow_store.store).open_experiment(study)


def test_put_artifact_links_the_file_when_the_artifacts_are_local(
    mlflow_store: MlflowStore, study: str, tmp_path: Path
) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    (tmp_path / "best.pt").write_bytes(b"weights")
    mlflow_store.put_artifact(run_id, tmp_path / "best.pt", "checkpoints/best.pt")
    path = mlflow_store.fetch_artifact(run_id, "checkpoints/best.pt")
    assert path is not None
    assert path.samefile(tmp_path / "best.pt")
    assert path.is_relative_to(mlflow_store.store / "artifacts" / study)
    assert [info.path for info in mlflow_store.client.list_artifacts(run_id, "checkpoints")] == ["checkpoints/best.pt"]
    assert mlflow_store.fetch_artifact(run_id, "checkpoints/last.pt") is None


@pytest.mark.parametrize("content", [b"no database at all, but text of some length" * 30])
def test_store_says_what_is_wrong_when_the_database_is_rubbish(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(content)
    with pytest.raises(StoreError, match=r"mlflow\.db: file is not a database"):
        MlflowStore(tmp_path).open_experiment("demo")


@pytest.mark.slow
def test_store_is_created_once_when_two_processes_come_at_the_same_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATE, str(tmp_path / "store")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == "", "MLflow must not chatter"
    rows = query(tmp_path / "store/mlflow.db", "SELECT name, artifact_location FROM experiments WHERE name = 'demo'")
    assert rows == [("demo", (tmp_path / "store/artifacts/demo").as_uri())]
    assert query(tmp_path / "store/mlflow.db", "PRAGMA journal_mode") == [("wal",)]
    tags = query(tmp_path / "store/mlflow.db", "SELECT key, value FROM experiment_tags")
    assert tags == [("mlflow.experimentKind", "custom_model_development")]
