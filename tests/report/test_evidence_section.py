"""The report's "Why this one?": who competed, with which seeds, who won, and whether the subset may be believed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from fake_studies import AP, Fate, add_promotion, grow, make_study, name_run, write_run
from page_reader import PageReader
from rich.console import Console

from cityopt.errors import StudyError
from cityopt.report.finalist_table import print_trust
from cityopt.report.findings import read_findings
from cityopt.report.page import write_page
from cityopt.search.finalist_result import FINALISTS, read_last_finalists
from cityopt.search.storage import open_storage

SUBSET = (0.208, 0.31, 0.29, 0.25, 0.22)
"""By trial; trial 0 is the standard recipe."""
SEEDS = {1: (0.41, 0.40), 2: (0.39, 0.385), 3: (0.35, 0.345), 4: (0.31, 0.315), 0: (0.29, 0.285)}
LUCKY = {1: (0.29, 0.285), 2: (0.35, 0.345), 3: (0.31, 0.315), 4: (0.39, 0.385), 0: (0.41, 0.40)}


def make_finalists(store: Path, seeds=SEEDS, **changes):
    """Write a study with five complete trials, and finalists of these seeds."""
    config = make_study(store, [Fate(grow(value)) for value in SUBSET], trials=5, **changes)
    candidates = []
    for trial, scores in seeds.items():
        runs = []
        for seed, score in enumerate(scores, start=1):
            run_id = name_run("finalists", 100 * trial + seed)
            write_run(store / "runs" / run_id, grow(score), pictures=False)
            status = {"outcome": "complete", "reason": "", "message": "", "seconds": 60.0}
            (store / "runs" / run_id / "status.json").write_text(json.dumps(status))
            runs.append({"digest": run_id[:16], "run_id": run_id})
        settings = {"training.learning_rate": 0.01 * (1 + trial)}
        candidate = {"name": f"trial-{trial:04d}", "trial": trial, "settings": settings, "rescaled": [], "runs": runs}
        candidates.append(candidate)
    winner = max(seeds, key=lambda trial: np.mean(seeds[trial]))
    entry = {"name": "finalists-0001", "digest": "d", "note": "on 600 images instead of 200", "num_images": 600}
    entry |= {"num_subset": 200, "candidates": candidates, "winner": f"trial-{winner:04d}"}
    study = optuna.load_study(study_name=config.name, storage=open_storage(store))
    study.set_user_attr(FINALISTS, [entry])
    return config


def read(store, config):
    return PageReader(write_page(read_findings(store, config.name)))


def test_section_shows_finalists_with_intervals_the_plot_the_verdict_and_the_gate(tmp_path):
    config = make_finalists(tmp_path)
    add_promotion(tmp_path, config, trial=1, ap=0.5, finalists="finalists-0001")
    section = read(tmp_path, config).sections["evidence"]
    rows = {row[0].split()[0]: row[1:] for row in section.rows}
    assert [row[0].split()[0] for row in section.rows[1:]] == [f"trial-{n:04d}" for n in (1, 2, 3, 4, 0)]
    assert rows["trial-0003"][:2] == ["0.2500", "0.3475"] and rows["trial-0003"][3] == "0.3500 0.3450"
    low, high = (float(end) for end in rows["trial-0003"][2].split(" … "))
    assert low < 0.3475 < high and low + high == pytest.approx(2 * 0.3475, abs=2e-4)
    text = section.text
    assert "trial-0001 wins by the best bound of its mean" in text
    assert "Believe the subset's ranking" in text and "Spearman 1.00" in text and "600 images instead of 200" in text
    assert "models:/cityopt-streets@champion" in text  # what the gate said
    page = write_page(read_findings(tmp_path, config.name))
    assert page.count('class="span"') == 5


@pytest.mark.parametrize("finalists", [None, "finalists-0002"])
def test_gate_of_another_promotion_is_not_shown_beside_finalists(tmp_path, finalists):
    config = make_finalists(tmp_path)
    add_promotion(tmp_path, config, trial=1, ap=0.5, finalists=finalists)
    text = read(tmp_path, config).sections["evidence"].text
    assert "trial-0001 wins" in text and "The gate" not in text and "@champion" not in text


def test_standard_recipe_is_named_when_it_wins_and_the_verdict_turns(tmp_path):
    config = make_finalists(tmp_path, LUCKY)
    text = read(tmp_path, config).sections["evidence"].text
    assert "trial-0000, the standard recipe, wins" in text
    assert "Don't believe the subset's ranking: enlarge the subset" in text


def test_subset_is_shown_beside_the_whole_by_class_and_rare_classes_are_named(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2))])
    findings = read_findings(tmp_path, config.name)
    assert "share in train" not in PageReader(write_page(findings)).sections["origin"].text  # a study of old
    counts = {"car": [30, 10, 300, 150], "train": [2, 1, 12, 9]}
    found = PageReader(write_page(replace(findings, facts=replace(findings.facts, class_counts=counts))))
    rows = {row[0]: row[1:] for row in found.sections["origin"].rows}
    assert rows["car"] == ["30", "10", "93.8 %", "96.2 %", "300 in 150"]
    assert "Rare in the subset, under 20 objects: train." in found.sections["origin"].text


def test_section_is_left_out_without_finalists(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2))])
    assert "evidence" not in read(tmp_path, config).sections
    with pytest.raises(StudyError, match="cityopt promote --study streets"):
        read_last_finalists(tmp_path, config.name)


def test_finalists_that_are_not_decided_are_not_shown(tmp_path):
    config = make_finalists(tmp_path)
    study = optuna.load_study(study_name=config.name, storage=open_storage(tmp_path))
    (entry,) = study.user_attrs[FINALISTS]
    del entry["winner"]
    study.set_user_attr(FINALISTS, [entry])
    assert read_findings(tmp_path, config.name).finalists is None


def test_trust_prints_the_table_and_one_sentence_and_its_numbers_as_plain_data(tmp_path):
    config = make_finalists(tmp_path)
    found = read_last_finalists(tmp_path, config.name)
    console = Console(width=200, record=True)
    print_trust(console, found)
    text = console.export_text()
    assert "trial-0001" in text and "Believe the subset's ranking" in text and "seed noise" in text
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["trust"]["verdict"] == "believe" and document["winner"] == "trial-0001"
    assert document["metric"] == AP and [row["trial"] for row in document["finalists"]] == list(SEEDS)
