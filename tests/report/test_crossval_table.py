"""What a cross-validation prints: every fold, mean ± std, what is missing, and what to do next."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cityopt.image_set import Span
from cityopt.report.crossval_table import print_crossval
from cityopt.search.crossval_plan import Choice
from cityopt.search.crossval_result import CrossValidation, FoldResult
from cityopt.search.final_model import FinalModel
from cityopt.training.crossval import Division, Fold
from cityopt.training.fold_scores import summarize_folds

MIOU, ROAD, SKY = "val/semantic/miou", "val/semantic/iou/class/road", "val/semantic/iou/class/sky"
SCORES = [{MIOU: 0.5, SKY: 0.25, ROAD: 0.9}, {MIOU: 0.6, ROAD: 0.8}, {MIOU: 0.4, SKY: 0.75, ROAD: 0.4}]
FINAL = FinalModel("crossval-0001-final", "f", 4, {MIOU: 0.4321}, "models:/cityopt-x@champion (version 1): the first")


@pytest.fixture
def found():
    folds = tuple(
        Fold(number, (Span(city=city),), 20, 10, ("sky",) if number == 2 else (), ())
        for number, city in enumerate(("ulm", "jena", "bonn"), start=1)
    )
    return CrossValidation(
        study="x",
        name="crossval-0001",
        run_id="r",
        choice=Choice({"training.learning_rate": 0.02}, "trial 3, the best of 9 complete", 3),
        metric=MIOU,
        division=Division(folds, False, ("train",)),
        folds=tuple(FoldResult(f, f"r{f.number}", f.number + 1, SCORES[f.number - 1], 61.0) for f in folds),
        spreads=summarize_folds(SCORES, MIOU),
        final=FINAL,
        store=Path("mlruns").absolute(),
    )


def show(found):
    console = Console(file=StringIO(), width=200)
    print_crossval(console, found)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return text, rows


def test_rows_are_the_folds_and_the_last_is_numpys_mean_and_sample_deviation(found):
    text, rows = show(found)
    assert rows[:3] == [
        [str(number), city, "10", "20", str(number + 1), f"{SCORES[number - 1][MIOU]:.4f}", "1:01 min"]
        for number, city in enumerate(("ulm", "jena", "bonn"), start=1)
    ]
    values = [fold[MIOU] for fold in SCORES]
    assert rows[3][1] == "mean ± std" and rows[3][5] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert "trial 3, the best of 9 complete" in text and "sample standard deviation (n - 1) of 3 folds" in text


def test_class_that_a_fold_does_not_show_is_named_with_the_number_of_folds(found):
    text, rows = show(found)
    by_class = {row[0]: row[1:] for row in rows if row[0] in ("road", "sky")}
    assert list(by_class) == ["road", "sky"]  # in the official order, not that of the scores
    assert by_class["sky"] == [f"0.5000 ± {np.std([0.25, 0.75], ddof=1):.4f} (2 folds)", "2"]
    assert by_class["road"][1] == ""
    assert "no training image shows train" in text and "fold 2: its validation images show no sky" in text


def test_final_model_and_the_next_command_end_the_page(found):
    text, _ = show(found)
    assert "trained on all training images for 4 epochs, the mean of the folds' best" in text
    assert "official, at full resolution: val/semantic/miou 0.4321" in text
    assert "Next: cityopt predict IMAGES --model models:/cityopt-x@champion --out found\n" in text
    text, _ = show(replace(found, final=None))
    assert "official" not in text and "without --no-final trains the model" in text


def test_settings_of_a_trial_are_told_to_have_seen_the_folds(found):
    assert "The settings of trial 3 were chosen on the trials' holdout, which is among the images" in show(found)[0]
    baseline = replace(found, choice=Choice({}, "the study's first baseline, since no trial is complete", None))
    assert "were chosen on" not in show(baseline)[0]


def test_blocks_are_told_with_what_they_are_worth(found):
    spans = (Span(city="ulm", first="ulm_0", last="ulm_4"), Span(city="jena", first="jena_0", last="jena_4"))
    folds = tuple(replace(fold.fold, spans=spans) for fold in found.folds)
    text, rows = show(replace(found, division=Division(folds, True, ())))
    assert rows[0][1] == "2 blocks"
    assert "contiguous blocks of each city: neighbouring frames resemble each other" in text
