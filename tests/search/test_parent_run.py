"""The study's own run when two coordinators believe that it is theirs: one that was suspended has yet to hear of it."""

from pathlib import Path
from types import SimpleNamespace

from cityopt.search.ownership import SoleOwner
from cityopt.search.parent_run import ParentRun
from cityopt.tracking.run_folder import read_records


def test_both_go_on_and_lose_no_metric_when_a_run_was_taken_over(tmp_path: Path):
    forgotten: list[str] = []
    shipper = SimpleNamespace(watch=lambda *_: None, forget=forgotten.append)
    sleeper, other = (ParentRun("run", tmp_path, shipper, SoleOwner()) for _ in range(2))  # type: ignore[arg-type]
    sleeper.log_metrics({"best/ap": 0.1}, step=0)
    other.log_metrics({"best/ap": 0.2}, step=1)
    sleeper.log_metrics({"best/ap": 0.3}, step=2)
    sleeper.write_artifact("study.yaml", "x")
    assert forgotten == ["run"]
    other.log_metrics({"best/ap": 0.4}, step=3)
    other.log_metrics({"best/ap": 0.5}, step=4)
    assert [(r.step, r.metrics["best/ap"]) for r in read_records(tmp_path)[0]] == [
        (0, 0.1),
        (1, 0.2),
        (2, 0.3),
        (3, 0.4),
        (4, 0.5),
    ]
