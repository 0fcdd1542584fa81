"""The study's own run when two coordinators believe that it is theirs: one that was suspended has yet to hear of it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cityopt.errors import StoreError
from cityopt.search.ownership import SoleOwner
from cityopt.search.parent_run import ParentRun, open_parent
from cityopt.tracking.run_folder import read_records


def test_both_go_on_and_lose_no_metric_when_a_run_was_taken_over(tmp_path: Path):
    forgotten: list[str] = []
    shipper = SimpleNamespace(watch=lambda *_: None, forget=forgotten.append)
    sleeper, other = (ParentRun("run", tmp_path, shipper, SoleOwner()) for _ in range(2))
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


@pytest.mark.parametrize("is_there", [True, False])
def test_others_may_decide_while_a_joiner_waits_for_mlflow(is_there: bool):
    """Only who makes the run keeps them off."""
    decisions: list[float] = []

    class Owner(SoleOwner):
        def deciding(self, longest_s: float | None = None) -> AbstractContextManager[None]:
            decisions.append(longest_s or 0.0)
            return nullcontext()

    def be_away(*_: object) -> str:
        raise StoreError("MLflow is away")

    mlflow = SimpleNamespace(find_run=lambda *_: "id" if is_there else None, open_parent=be_away)
    config = SimpleNamespace(name="tiny", seed=0, search=SimpleNamespace(metric="ap"))
    facts = SimpleNamespace(fingerprint="", subset_hash="", holdout_hash="", root="")
    parts: Any = (mlflow, config, facts, None, Owner())
    with pytest.raises(StoreError, match="away"), open_parent(*parts):
        pass
    assert len(decisions) == (0 if is_there else 1)
