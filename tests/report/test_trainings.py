"""The report's tables of stages and folds, on a study that never trained."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_studies import AP, AP50, Fate, add_promotion, grow, make_study, write_run
from page_reader import PageReader

from cityopt.config import StudyConfig
from cityopt.report.findings import read_findings
from cityopt.report.page import write_page
from cityopt.search.crossvalidation import CROSSVALS
from cityopt.search.promote import PROMOTIONS
from cityopt.search.storage import open_storage

CURVES = {1: [0.1, 0.3, 0.2], 2: [0.2, 0.1, 0.1], 3: [0.1, 0.2, 0.4]}
MIOU = "val/semantic/miou"


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return make_study(tmp_path, [Fate(grow(0.2))])


def load(store: Path, config: StudyConfig) -> optuna.Study:
    return optuna.load_study(study_name=config.name, storage=open_storage(store))


def read(store: Path, config: StudyConfig) -> PageReader:
    return PageReader(write_page(read_findings(store, config.name)))


def add_crossval(
    store: Path, config: StudyConfig, folds: dict[int, list[float]], num_folds: int = 3, trial: int | None = None
) -> None:
    runs = {}
    for number, curve in folds.items():
        runs[f"fold-{number}"] = f"{number}" * 32
        write_run(store / "runs" / runs[f"fold-{number}"], curve, pictures=False)
    division = {"grouping": "blocks", "absent": [], "folds": [{}] * num_folds}
    entry = {"name": "crossval-0001", "run_id": "c" * 32, "runs": runs, "division": division, "trial": trial}
    load(store, config).set_user_attr(CROSSVALS, [entry])


def test_folds_stand_at_their_best_epochs_with_mean_and_spread(config: StudyConfig, tmp_path: Path) -> None:
    add_crossval(tmp_path, config, CURVES)
    section = read(tmp_path, config).sections["folds"]
    rows = {row[0]: row[1:] for row in section.rows}
    assert [rows[f"fold {n}"][:2] for n in (1, 2, 3)] == [["2", "0.3000"], ["1", "0.2000"], ["3", "0.4000"]]
    assert rows["mean ± std"][1] == "0.3000 ± 0.1000"
    assert "3 folds of contiguous blocks" in section.text and "not finished" not in section.text
    assert "were chosen on" not in section.text


def test_folds_say_when_their_settings_were_chosen_on_their_images(config: StudyConfig, tmp_path: Path) -> None:
    add_crossval(tmp_path, config, CURVES, trial=2)
    assert "The settings of trial 2 were chosen on the trials' holdout" in read(tmp_path, config).sections["folds"].text


def test_folds_that_are_not_trained_are_counted(config: StudyConfig, tmp_path: Path) -> None:
    add_crossval(tmp_path, config, {2: CURVES[2]}, num_folds=5)
    section = read(tmp_path, config).sections["folds"]
    assert "4 of them have not finished an epoch" in section.text
    assert {row[0]: row[1:] for row in section.rows}["mean ± std"][1] == "0.2000 ± –"


def test_cross_validation_that_has_just_begun_says_so(config: StudyConfig, tmp_path: Path) -> None:
    add_crossval(tmp_path, config, {})
    assert "crossval-0001 has not finished an epoch yet" in read(tmp_path, config).sections["folds"].text


def describe(family: str, split: str, labels: str, epochs: int, depth: int, metric: str) -> dict[str, Any]:
    return {
        "model": {"family": family, "freeze_depth": depth},
        "train_set": {"split": split, "labels": labels},
        "validation_set": {"split": "val"},
        "training": {"epochs": epochs},
        "data": {"size": [128, 256]},
        "metric": metric,
    }


def test_stages_stand_in_their_order_with_what_each_reached(config: StudyConfig, tmp_path: Path) -> None:
    add_promotion(tmp_path, config, trial=0, ap=0.3)
    study = load(tmp_path, config)
    (entry,) = study.user_attrs[PROMOTIONS]
    folder = tmp_path / "runs" / ("d" * 32)
    folder.mkdir()
    record = {"step": 1, "time_ms": 1, "metrics": {MIOU: 0.25, "system/epoch_s": 90.0}}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    entry["config"] = describe("mask_rcnn", "train", "fine", 2, 1, AP)
    entry["stages"] = [
        {
            "name": "pretrain",
            "run_id": folder.name,
            "config": describe("semantic_fpn", "train_extra", "coarse", 1, 0, MIOU),
        },
        {"name": "heads", "config": describe("mask_rcnn", "train", "fine", 1, 5, AP50)},
    ]
    for stage in entry["stages"]:
        stage["config"]["validation_set"] = {"split": "train", "part": "holdout"}
    study.set_user_attr(PROMOTIONS, [entry])
    rows = {row[0]: row[1:] for row in read(tmp_path, config).sections["promotion"].rows}
    assert rows["pretrain"][:4] == ["semantic_fpn", "train_extra, coarse labels", "1", "0"]
    assert rows["pretrain"][4].startswith("0.2500") and rows["pretrain"][5] == "1:30 min"
    assert rows["heads"][4].startswith("–")
    assert rows["the last"][:4] == ["mask_rcnn", "train, fine labels", "2", "1"]
    assert rows["the last"][4].startswith("0.3000")
    assert rows["pretrain"][4].endswith("on the trials’ holdout")
    assert rows["heads"][4].endswith("on the trials’ holdout, on which it has trained")
    assert "holdout" not in rows["the last"][4]


def test_promotion_of_one_training_has_no_stages(config: StudyConfig, tmp_path: Path) -> None:
    add_promotion(tmp_path, config, trial=0, ap=0.3)
    page = read(tmp_path, config)
    assert "Stages" not in page.sections["promotion"].text and "folds" not in page.sections
