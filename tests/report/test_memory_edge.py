"""The edge of memory in the report: what fitted and what did not, from trials whose ends are known."""

import json
import re
from pathlib import Path

import optuna
from fake_studies import FACTS, write_run

from cityopt.config import StudyConfig
from cityopt.report.findings import read_findings
from cityopt.report.memory_edge import write_memory_edge
from cityopt.report.page import write_page
from cityopt.search.space import sample_settings
from cityopt.search.status import ENDING, OUT_OF_MEMORY, RUN_ID
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.settings import validate

BATCH = "training.batch_size"


def make_study(store: Path, fates: list[tuple[int, str, float | None, int | None]]) -> StudyConfig:
    """Write a study of trials by (batch size, reason, peak of the attempt that ended, accumulation after an end)."""
    tree = {
        "name": "edge",
        "data": {"size": [128, 256], "root": "/data/streets"},
        "search": {
            "space": {BATCH: {"type": "categorical", "choices": [2, 4, 8]}},
            "sampler": {"name": "random"},
            "baselines": [{BATCH: batch} for batch, *_ in fates],
        },
    }
    config = validate(StudyConfig, tree, origin="test")
    study, _ = open_study(open_storage(store), config, FACTS)
    for number, (_, reason, peak, accumulation) in enumerate(fates):
        trial = study.ask()
        sample_settings(trial, config.search.space)
        run_id = f"{number:032x}"
        trial.set_user_attr(RUN_ID, run_id)
        write_run(store / "runs" / run_id, [] if reason else [0.5], pictures=False)
        if accumulation:
            trial.set_user_attr(OUT_OF_MEMORY, {"peak_gib": 9.0, "accumulation": accumulation})
        if peak is not None:
            record = {"step": 2, "time_ms": 2, "metrics": {"system/gpu_memory_gib": peak}}
            with (store / "runs" / run_id / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
        trial.set_user_attr(ENDING, {"state": "failed" if reason else "complete", "reason": reason, "seconds": 1.0})
        if reason:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, 0.5)
    return config


def read_rows(text: str) -> list[list[str]]:
    return [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text) if "<td>" in row]


def test_edge_lies_between_what_fitted_and_what_did_not(tmp_path: Path) -> None:
    fates = [(2, "", 2.5, None), (4, "", 5.0, None), (4, "", 5.5, None), (8, "", 5.25, 2), (8, "oom", None, 2)]
    make_study(tmp_path, [*fates, (2, "crash", None, None)])
    findings = read_findings(tmp_path, "edge")
    assert read_rows(str(write_memory_edge(findings))) == [
        ["8", "128 x 256", "–", "2 (up to 9.00 GiB)"],
        ["4", "128 x 256", "3 (up to 5.50 GiB)", "1"],
        ["2", "128 x 256", "1 (up to 2.50 GiB)", "–"],
    ]
    assert "Where memory ended" in write_page(findings)


def test_report_speaks_of_no_edge_when_memory_sufficed(tmp_path: Path) -> None:
    make_study(tmp_path, [(2, "", 2.5, None), (4, "crash", None, None)])
    findings = read_findings(tmp_path, "edge")
    assert write_memory_edge(findings) is None and "Where memory ended" not in write_page(findings)
