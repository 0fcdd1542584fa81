"""The fast way into MLflow's database leaves the rows that MLflow's own `log_batch` leaves, or none."""

import math
import random
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Metric

from cityopt.errors import StoreError
from cityopt.tracking.mlflow_points import PointWriter
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Record

VALUES = (0.5, -1.0, 0.0, 1e-320, math.nan, math.inf, -math.inf, 3.0)


def read_rows(database: Path, run_id: str) -> dict[str, list[tuple[object, ...]]]:
    columns = "key, value, timestamp, step, is_nan"
    with closing(sqlite3.connect(database)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table} WHERE run_uuid = ?", (run_id,)))
            for table in ("metrics", "latest_metrics")
        }


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_log_batch_in_any_order_and_twice(
    seed: int, mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    """Few names, steps and moments, so that points meet: also NaN, infinities, and steps that go back."""
    draw = random.Random(seed)
    fast, slow = (mlflow_store.create_run(study, name, "trial") for name in ("fast", "slow"))
    for _ in range(4):
        records = [
            Record(
                step=draw.randrange(4),
                time_ms=1000 + draw.randrange(3),
                metrics={name: draw.choice(VALUES) for name in ("val/a", "val/b c-d.e", "loss") if draw.random() < 0.8},
            )
            for _ in range(6)
        ]
        assert PointWriter(database).write(fast, records)
        metrics = [Metric(name, value, r.time_ms, r.step) for r in records for name, value in r.metrics.items()]
        mlflow_store.client.log_batch(slow, metrics)
        assert read_rows(database, fast) == read_rows(database, slow)


def test_points_show_in_mlflow_when_inserted(mlflow_store: MlflowStore, study: str, database: Path) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    assert PointWriter(database).write(
        run_id, [Record(step=s, time_ms=10 + s, metrics={"val/a": s / 4}) for s in (1, 2)]
    )
    client = mlflow_store.client
    assert [(m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, "val/a")] == [
        (1, 0.25, 11),
        (2, 0.5, 12),
    ]
    assert client.get_run(run_id).data.metrics == {"val/a": 0.5}


@pytest.mark.parametrize("name", ["", "a//b", "/a", "a/", "a/../b", "..", "a\nb", "a!", "ä", "a" * 251])
def test_names_that_mlflow_may_refuse_are_left_to_it(
    name: str, mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    run_id = mlflow_store.create_run(study, "trial-0000", "trial")
    assert not PointWriter(database).write(run_id, [Record(step=1, time_ms=1, metrics={"good": 1.0, name: 1.0})])
    assert read_rows(database, run_id) == {"metrics": [], "latest_metrics": []}


def test_run_that_takes_no_metrics_is_left_to_mlflow(mlflow_store: MlflowStore, study: str, database: Path) -> None:
    record = Record(step=1, time_ms=1, metrics={"a": 1.0})
    deleted = mlflow_store.create_run(study, "trial-0000", "trial")
    mlflow_store.client.delete_run(deleted)
    for run_id in (deleted, uuid.uuid4().hex):
        assert not PointWriter(database).write(run_id, [record])
        assert read_rows(database, run_id) == {"metrics": [], "latest_metrics": []}
        with pytest.raises(StoreError):
            mlflow_store.log(run_id, records=[record])


@pytest.mark.parametrize("table", ["metrics", "latest_metrics"])
def test_database_with_another_schema_is_left_to_mlflow(table: str, database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        run_id = uuid.uuid4().hex
        target.execute("INSERT INTO runs (run_uuid, lifecycle_stage) VALUES (?, 'active')", (run_id,))
        target.commit()
        record = Record(step=1, time_ms=1, metrics={"a": 1.0})
        assert PointWriter(copy).write(run_id, [record])
        target.execute(f"ALTER TABLE {table} ADD COLUMN unit TEXT")
        target.commit()
        assert not PointWriter(copy).write(run_id, [Record(step=2, time_ms=2, metrics={"a": 1.0})])
        assert len(read_rows(copy, run_id)["metrics"]) == 1


def test_no_database_is_made_when_there_is_none(tmp_path: Path) -> None:
    assert not PointWriter(tmp_path / "mlflow.db").write("0" * 32, [Record(step=1, time_ms=1, metrics={"a": 1.0})])
    assert not list(tmp_path.iterdir())
