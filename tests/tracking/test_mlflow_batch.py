"""The fast way into MLflow's database leaves the rows that MLflow's own way leaves, or none."""

import json
import math
import random
import sqlite3
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from cityopt.errors import StoreError
from cityopt.tracking.mlflow_batch import BatchWriter
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Record

VALUES = (0.5, -1.0, 0.0, 1e-320, math.nan, math.inf, -math.inf, 3.0)
POINT, TEXT = "key, value, timestamp, step, is_nan", "key, value"
TABLES = {"metrics": POINT, "latest_metrics": POINT, "params": TEXT, "tags": TEXT}
WHOLE = ("runs", "inputs", "input_tags")
"""Tables that a run's beginning, its dataset and its end are written to."""
RECORD = Record(step=1, time_ms=1, metrics={"a": 1.0})


def read_rows(database: Path, run_id: str) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(database)) as connection:
        return {
            table: sorted(connection.execute(f"SELECT {columns} FROM {table} WHERE run_uuid = ?", (run_id,)))
            for table, columns in TABLES.items()
        }


@pytest.fixture
def run_id(mlflow_store: MlflowStore, study: str) -> str:
    return mlflow_store.create_run(study, "trial-0000", "trial")


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_log_batch_in_any_order_and_twice(
    seed: int, mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    """Few names, steps and moments, so that points meet: also NaN, infinities, and steps that go back."""
    draw = random.Random(seed)
    fast, slow = (mlflow_store.create_run(study, "same name", "trial") for _ in range(2))
    writer = BatchWriter(database)
    for _ in range(4):
        records = [
            Record(
                step=draw.randrange(4),
                time_ms=1000 + draw.randrange(3),
                metrics={name: draw.choice(VALUES) for name in ("val/a", "val/b c-d.e", "loss") if draw.random() < 0.8},
            )
            for _ in range(6)
        ]
        params = {name: f"of {name}" for name in ("data.size", "seed", "x") if draw.random() < 0.7}
        tags = {name: draw.choice(("", "one", "ä\n'\"")) for name in ("cityopt.state", "t") if draw.random() < 0.7}
        assert writer.write(fast, records, params, tags)
        mlflow_store.client.log_batch(
            slow,
            [Metric(name, value, r.time_ms, r.step) for r in records for name, value in r.metrics.items()],
            [Param(*pair) for pair in params.items()],
            [RunTag(*pair) for pair in tags.items()],
        )
        assert read_rows(database, fast) == read_rows(database, slow)
    writer.close()


def test_mlflow_shows_what_was_written(mlflow_store: MlflowStore, run_id: str, database: Path) -> None:
    records = [Record(step=step, time_ms=10 + step, metrics={"val/a": step / 4}) for step in (1, 2)]
    assert BatchWriter(database).write(run_id, records, {"seed": "7"}, {"cityopt.state": "complete"})
    history = mlflow_store.client.get_metric_history(run_id, "val/a")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(1, 0.25, 11), (2, 0.5, 12)]
    data = mlflow_store.client.get_run(run_id).data
    assert (data.metrics, data.params, data.tags["cityopt.state"]) == ({"val/a": 0.5}, {"seed": "7"}, "complete")


@pytest.mark.parametrize("name", ["", "a//b", "/a", "a/", "a/../b", "..", "a\nb", "a!", "ä", "a" * 251])
@pytest.mark.parametrize("kind", ["metric", "param", "tag"])
def test_names_that_mlflow_may_refuse_are_left_to_it(kind: str, name: str, run_id: str, database: Path) -> None:
    before = read_rows(database, run_id)
    record = Record(step=1, time_ms=1, metrics={"good": 1.0, **({name: 1.0} if kind == "metric" else {})})
    params, tags = ({name: "x"} if kind == wanted else {} for wanted in ("param", "tag"))
    assert not BatchWriter(database).write(run_id, [record], params, tags)
    assert read_rows(database, run_id) == before


@pytest.mark.parametrize(
    ("params", "tags"), [({"seed": "8"}, {}), ({}, {"mlflow.runName": "new"}), ({"x": "y" * 6001}, {})]
)
def test_what_is_more_than_a_row_is_left_to_mlflow(
    params: dict[str, str], tags: dict[str, str], run_id: str, database: Path
) -> None:
    """A param that would change, a tag that renames the run, a text that is too long."""
    writer = BatchWriter(database)
    assert writer.write(run_id, [], {"seed": "7"}, {})
    before = read_rows(database, run_id)
    assert not writer.write(run_id, [RECORD], params, tags)
    assert read_rows(database, run_id) == before
    assert writer.write(run_id, [RECORD], {"seed": "7"}, {})  # the connection is mended
    writer.close()


def test_run_that_takes_no_more_is_left_to_mlflow(mlflow_store: MlflowStore, run_id: str, database: Path) -> None:
    mlflow_store.client.delete_run(run_id)
    before = read_rows(database, run_id)
    for gone in (run_id, uuid.uuid4().hex):
        assert not BatchWriter(database).write(gone, [RECORD], {}, {})
        with pytest.raises(StoreError):
            mlflow_store.log(gone, records=[RECORD])
    assert read_rows(database, run_id) == before


def read_course(database: Path, run_id: str) -> list[object]:
    """Read what a run has beside its points, but for ids and moments, and whether it began just now."""
    queries = (
        "SELECT * FROM runs WHERE run_uuid = ?",
        "SELECT i.*, d.name, t.name, t.value FROM inputs i JOIN input_tags t USING (input_uuid) "
        "JOIN datasets d ON dataset_uuid = source_id WHERE destination_id = ?",
    )
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        rows = [dict(row) for query in queries for row in connection.execute(query, (run_id,))]
    for row in rows:
        row["is_new"] = abs(row.pop("start_time", 0) / 1000 - time.time()) < 60
        row["input_uuid"] = len(row.get("input_uuid", ""))
    return [
        {name: x.replace(run_id, "ID") if isinstance(x, str) else x for name, x in row.items()} for row in rows
    ] + sorted(read_rows(database, run_id)["tags"])


def test_course_of_a_run_leaves_the_rows_that_mlflow_leaves(
    mlflow_store: MlflowStore, study: str, database: Path
) -> None:
    """Begun, its dataset named twice, ended, gone on with, and ended in another way."""
    writer, client, experiment = BatchWriter(database), mlflow_store.client, mlflow_store.open_experiment(study)
    tags = {"mlflow.user": "ann", "mlflow.parentRunId": "p", "t": "ä\n'"}
    slow = client.create_run(experiment, tags=tags, run_name="trial-0007").info
    made = writer.create_run(experiment, "trial-0007", tags)
    assert made and made[1] == slow.artifact_uri.replace(slow.run_id, made[0])
    fast = made[0]
    assert read_course(database, fast) == read_course(database, slow.run_id)
    source = json.dumps({"uri": "/there"})
    for _ in range(2):
        client.log_inputs(
            slow.run_id, [DatasetInput(Dataset("city", "d1", "local", source), [InputTag("mlflow.data.context", "x")])]
        )
        assert writer.link_dataset(fast, "city", "d1", "x")
        assert len(read_course(database, fast)) == 6
        assert read_course(database, fast) == read_course(database, slow.run_id)
    for status in ("KILLED", "FINISHED"):
        client.set_terminated(slow.run_id, status, 1234)
        assert writer.end_run(fast, status, 1234)
        assert read_course(database, fast) == read_course(database, slow.run_id)
        client.update_run(fast, status="RUNNING")
        client.update_run(slow.run_id, status="RUNNING")
        assert read_course(database, fast) == read_course(database, slow.run_id)
    writer.close()


def test_unusual_courses_are_left_to_mlflow(mlflow_store: MlflowStore, study: str, run_id: str, database: Path) -> None:
    """A dataset that is new to the experiment, a deleted run, a deleted experiment, or one whose place is odd."""
    writer, client, experiment = BatchWriter(database), mlflow_store.client, mlflow_store.open_experiment(study)
    assert not writer.link_dataset(run_id, "city", "d1", "x")
    assert not writer.create_run(experiment, "n", {"mlflow.runName": "m"})
    remote = client.create_experiment(f"{study} elsewhere", "s3://bucket/place?key=1")
    assert not writer.create_run(remote, "n", {})
    before = read_course(database, run_id)
    client.delete_run(run_id)
    assert not writer.end_run(run_id, "FINISHED", 1) and not writer.link_dataset(run_id, "city", "d1", "x")
    client.restore_run(run_id)
    assert read_course(database, run_id) == before
    client.delete_experiment(experiment)
    assert not writer.create_run(experiment, "n", {})
    client.restore_experiment(experiment)
    assert len(client.search_runs([experiment])) == 2  # the study's own and the trial's


@pytest.mark.parametrize("table", [*TABLES, *WHOLE])
def test_database_with_another_schema_is_left_to_mlflow(table: str, database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        target.execute("INSERT INTO runs (run_uuid, lifecycle_stage) VALUES ('new', 'active')")
        target.commit()
        assert BatchWriter(copy).write("new", [RECORD], {}, {})
        target.execute(f"ALTER TABLE {table} ADD COLUMN unit TEXT")
        target.commit()
        assert not BatchWriter(copy).write("new", [Record(step=2, time_ms=2, metrics={"a": 1.0})], {}, {})
    assert len(read_rows(copy, "new")["metrics"]) == 1


def test_no_database_is_made_when_there_is_none(tmp_path: Path) -> None:
    assert not BatchWriter(tmp_path / "mlflow.db").write("0" * 32, [RECORD], {}, {})
    assert not list(tmp_path.iterdir())
