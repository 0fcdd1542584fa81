"""One suite over every Tracker: what a training may rely on, whichever it is given."""

from pathlib import Path

import pytest

from cityopt.tracking.run_folder import NullTracker, Record, RunFolder, Tracker


@pytest.fixture(params=["folder", "null"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    return RunFolder(tmp_path / "run", "a") if request.param == "folder" else NullTracker()


def test_tracker_takes_everything_a_training_records(tracker: Tracker) -> None:
    tracker.log_params({"lr": 0.1, "size": (1, 2), "weights": None, "path": Path("x")})
    tracker.log_metrics({"train/loss/total": float("nan"), "val/coco/segm/ap": 0.5}, step=1)
    tracker.write_artifact("config.yaml", "a: 1")
    tracker.write_artifact("overlays/one.png", b"\x89PNG")


def test_tracker_has_records_only_when_it_has_a_folder(tracker: Tracker) -> None:
    tracker.log_metrics({"a": 1.0}, step=2, time_ms=5)
    assert tracker.read_records() == ([Record(2, 5, {"a": 1.0})] if tracker.folder else [])
    assert tracker.folder is None or tracker.folder.is_dir()


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../escape", "a/../../b", ".hidden", "a/.b"])
def test_tracker_refuses_an_artifact_when_its_name_leaves_the_folder(tracker: Tracker, name: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        tracker.write_artifact(name, b"")


def test_tracker_refuses_metrics_when_the_step_is_negative(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="step >= 0"):
        tracker.log_metrics({"a": 1.0}, step=-1)


def test_tracker_refuses_metrics_when_a_value_is_no_number(tracker: Tracker) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        tracker.log_metrics({"a": "high"}, step=1)
    assert tracker.read_records() == []


def test_tracker_changes_nothing_when_a_step_is_recorded_again(tracker: Tracker) -> None:
    tracker.log_metrics({"a": 1.0}, step=1, time_ms=5)
    before = tracker.read_records()
    tracker.log_metrics({"a": 2.0}, step=1, time_ms=6)
    assert tracker.read_records() == before
