import json
import math
import os
import socket
from pathlib import Path

import pytest

from cityopt.errors import StoreError
from cityopt.tracking.run_folder import (
    Attempt,
    Record,
    RunFolder,
    StaleAttemptError,
    Status,
    begin_attempt,
    link_atomically,
    read_attempt,
    read_records,
    read_status,
    write_atomically,
    write_status,
)


def test_read_records_equals_what_was_logged_when_values_are_not_finite(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.log_metrics({"nan": math.nan, "up": math.inf, "down": -math.inf, "x": 0.1 + 0.2}, step=1, time_ms=17)
    (record,) = RunFolder(tmp_path, "a").read_records()
    assert (record.step, record.time_ms) == (1, 17)
    assert math.isnan(record.metrics["nan"])
    assert (record.metrics["up"], record.metrics["down"], record.metrics["x"]) == (math.inf, -math.inf, 0.1 + 0.2)


def test_metrics_file_is_strict_json_lines_when_values_are_not_finite(tmp_path: Path) -> None:
    RunFolder(tmp_path, "a").log_metrics({"a": math.nan, "b": -math.inf}, step=3, time_ms=17)

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 3, "time_ms": 17, "metrics": {"a": "NaN", "b": "-Infinity"}}


@pytest.mark.parametrize("torn", [b'{"step": 2, "ti', b'{"step": 2, "time_ms": 1, "metrics": {"a": 9.0}}', b"\x00"])
def test_torn_line_is_ignored_and_cut_off_when_the_next_record_comes(tmp_path: Path, torn: bytes) -> None:
    RunFolder(tmp_path, "a").log_metrics({"a": 1.0}, step=1, time_ms=1)
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole + torn)
    run = RunFolder(tmp_path, "a")
    assert run.read_records() == [Record(1, 1, {"a": 1.0})]
    run.log_metrics({"a": 2.0}, step=2, time_ms=2)
    assert run.read_records() == [Record(1, 1, {"a": 1.0}), Record(2, 2, {"a": 2.0})]
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(whole + b'{"step": 2, "time_ms": 2')


def test_torn_line_is_cut_off_when_it_is_the_only_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    (tmp_path / "metrics.jsonl").write_bytes(b'{"st')
    run.log_metrics({"a": 1.0}, step=1, time_ms=1)
    assert run.read_records() == [Record(1, 1, {"a": 1.0})]


def test_read_records_goes_on_from_an_offset_when_lines_were_added(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    assert read_records(tmp_path) == ([], 0)
    run.log_metrics({"a": 1.0}, step=1, time_ms=1)
    _, offset = read_records(tmp_path)
    assert offset == (tmp_path / "metrics.jsonl").stat().st_size
    run.log_metrics({"a": 2.0}, step=2, time_ms=2)
    assert read_records(tmp_path, offset)[0] == [Record(2, 2, {"a": 2.0})]


def test_read_records_names_the_file_when_a_line_is_rubbish(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("rubbish\n")
    with pytest.raises(StoreError, match=r"metrics\.jsonl must be a record.*rubbish"):
        read_records(tmp_path)


def test_log_metrics_keeps_only_new_names_when_the_step_exists_in_an_earlier_attempt(tmp_path: Path) -> None:
    RunFolder(tmp_path, "a").log_metrics({"a": 1.0}, step=1, time_ms=1)
    RunFolder(tmp_path, "a").log_metrics({"a": 7.0, "b": 2.0}, step=1, time_ms=9)
    assert RunFolder(tmp_path, "a").read_records() == [Record(1, 1, {"a": 1.0}), Record(1, 9, {"b": 2.0})]


def test_writing_is_refused_when_another_attempt_has_the_folder(tmp_path: Path) -> None:
    stale = RunFolder(tmp_path, "old")
    stale.log_metrics({"a": 1.0}, step=1, time_ms=1)
    begin_attempt(tmp_path, "new", pid=4, started=2.5)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for write in (
        lambda: stale.log_metrics({"a": 1.0}, step=2),
        lambda: stale.log_params({"a": 1}),
        lambda: stale.write_artifact("x", b""),
        stale.check_attempt,
        lambda: RunFolder(tmp_path, "old"),
    ):
        with pytest.raises(StaleAttemptError, match="latest attempt"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert read_attempt(tmp_path) == Attempt("new", 4, 2.5, socket.gethostname())
    RunFolder(tmp_path, "new").log_metrics({"a": 1.0}, step=2)
    RunFolder(tmp_path, "new").check_attempt()


def test_half_a_checkpoint_is_removed_when_the_next_attempt_begins(tmp_path: Path) -> None:
    (tmp_path / ".last.pt.77.partial").write_bytes(b"half")
    (tmp_path / "last.pt").write_bytes(b"whole")
    begin_attempt(tmp_path, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt.json", "last.pt"]


def test_folder_is_claimed_when_nobody_began_an_attempt(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new", "mine")
    attempt = read_attempt(tmp_path / "new")
    assert attempt is not None
    assert (attempt.token, attempt.pid) == ("mine", os.getpid())
    assert read_attempt(tmp_path) is None


def test_params_stay_as_first_recorded_when_logged_again(tmp_path: Path) -> None:
    RunFolder(tmp_path, "a").log_params({"lr": 0.1, "size": (2, 3), "bad": math.nan})
    RunFolder(tmp_path, "a").log_params({"lr": 0.2, "device": "cpu"})
    assert RunFolder(tmp_path, "a").read_params() == {"lr": 0.1, "size": [2, 3], "bad": "NaN", "device": "cpu"}


def test_write_artifact_replaces_a_file_when_it_exists(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "a")
    run.write_artifact("overlays/a.txt", "old")
    run.write_artifact("overlays/a.txt", b"new")
    assert [p.name for p in (tmp_path / "artifacts/overlays").iterdir()] == ["a.txt"]
    assert (tmp_path / "artifacts/overlays/a.txt").read_text() == "new"


def test_write_atomically_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "a", "text")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_read_status_returns_what_was_written_and_none_before(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    status = Status("failed", reason="nan", message="loss is NaN", seconds=1.5)
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


def test_link_keeps_its_content_when_the_source_is_replaced(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    last.write_text("epoch 1")
    link_atomically(last, best)
    (tmp_path / "new").write_text("epoch 2")
    (tmp_path / "new").replace(last)
    assert (last.read_text(), best.read_text()) == ("epoch 2", "epoch 1")
    link_atomically(last, best)
    assert best.read_text() == "epoch 2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]


def test_link_copies_when_the_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "last.pt").write_text("epoch 1")
    link_atomically(tmp_path / "last.pt", tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_text() == "epoch 1"
