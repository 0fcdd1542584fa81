"""A run's record, packed into one file, makes the same folder elsewhere."""

from pathlib import Path

import pytest

from cityopt.errors import StoreError
from cityopt.tracking.record import pack_record, unpack_record
from cityopt.tracking.run_folder import RunFolder, Status, read_records, read_status, write_status


def test_folder_made_of_a_record_reads_like_the_first(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "first", "a")
    run.log_params({"lr": 0.1, "size": (2, 3), "text": "ü"})
    for epoch in (1, 2):
        run.log_metrics({"ap": epoch / 3, "loss": float("nan")}, step=epoch, time_ms=epoch)
    write_status(run.folder, Status("failed", "nan", "diverged", 3.5, "last\nlines"))
    path = pack_record(run.folder)
    stamp = path.stat().st_mtime_ns
    assert pack_record(run.folder).stat().st_mtime_ns == stamp, "the same record is not written, nor sent, again"
    unpack_record(path, tmp_path / "store" / "runs" / "second")
    second = tmp_path / "store" / "runs" / "second"
    assert repr(read_records(second)[0]) == repr(read_records(run.folder)[0]) and len(read_records(second)[0]) == 2
    assert read_status(second) == read_status(run.folder)
    assert RunFolder(second, "").read_params() == run.read_params()
    assert [item.name for item in second.parent.iterdir()] == ["second"]


@pytest.mark.parametrize("text", ["", "{}", '{"params": {"a": 1}, "status": null}'])
def test_broken_record_makes_no_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(StoreError, match="cannot be made a folder of"):
        unpack_record(tmp_path / "record.json", tmp_path / "runs" / "new")
    assert not list(tmp_path.glob("runs/*")) and not list(tmp_path.glob("runs/.*"))
