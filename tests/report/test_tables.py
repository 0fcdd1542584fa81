"""What people read: durations, settings, and tables that hold what the study holds."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cityopt.report.tables import (
    format_seconds,
    format_settings,
    format_spending,
    format_value,
    print_anchors,
    print_check,
    print_conversion,
    print_forecast,
    print_leaderboard,
    print_prediction,
    print_promotion,
    print_statistics,
)
from cityopt.search.comparison import Comparison
from cityopt.search.forecast import Forecast, Range
from cityopt.search.promote import Promotion
from cityopt.search.status import Spending, StudyStatus, TrialStatus
from cityopt.training.prediction_folder import PredictSummary


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def lines(console):
    return console.file.getvalue().splitlines()


def cells(console):
    """The rows of all tables, cell by cell."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines(console) if line.startswith("│")]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (60, "1:00 min"),
        (185, "3:05 min"),
        (3599.7, "1:00 h"),
        (3600, "1:00 h"),
        (7805, "2:10 h"),
    ],
)
def test_duration_is_as_people_say_it(seconds, text):
    assert format_seconds(seconds) == text


def test_settings_are_one_line_in_three_digits():
    settings = {"training.learning_rate": 0.00123456, "model.freeze_depth": 2, "training.optimizer": "sgd"}
    assert format_settings(settings) == "learning_rate=0.00123, freeze_depth=2, optimizer=sgd"
    assert format_settings({}) == "defaults"


def test_value_is_a_dash_when_there_is_none():
    assert (format_value(None), format_value(0.5), format_value(0.0)) == ("–", "0.5000", "0.0000")


def trial(number, state, value=None, reason=None, **params):
    return TrialStatus(number, state, reason, value, params, f"{number}" * 32, 61.0)


def test_leaderboard_has_the_best_on_top_and_the_reasons(console):
    trials = [
        trial(0, "complete", 0.1, depth=2),
        trial(1, "failed", reason="nan", depth=3),
        trial(2, "complete", 0.4, depth=1, momentum=0.9),
        trial(3, "pruned", 0.3, depth=5),
        trial(4, "waiting", reason="interrupted"),
    ]
    print_leaderboard(console, StudyStatus("small", "val/ap", "maximize", trials[2], trials))
    assert "small: 2 complete, 1 pruned, 1 failed, 1 waiting" in lines(console)[0]
    rows = cells(console)
    assert [row[0] for row in rows] == ["2", "0", "3", "4", "1"]
    assert rows[0] == ["2", "complete", "0.4000", "1", "0.9", "1:01 min", "22222222"]
    assert rows[4][:3] == ["1", "failed (nan)", "–"] and rows[3][1] == "waiting (interrupted)"


def test_leaderboard_says_what_it_leaves_out_when_trials_are_many(console):
    trials = [trial(number, "complete", number / 100) for number in range(30)]
    print_leaderboard(console, StudyStatus("small", "val/ap", "maximize", trials[29], trials), limit=4)
    assert [row[0] for row in cells(console)] == ["29", "28", "27", "26"]
    assert "… and 26 more" in lines(console)[-1] and "--json" in lines(console)[-1]


def test_failures_are_told_in_words_however_many_trials_rank_before_them(console):
    trials = [trial(number, "complete", value=0.1) for number in range(30)]
    trials.append(replace(trial(30, "failed", reason="oom"), message="memory ran out [2 GiB]"))
    print_leaderboard(console, StudyStatus("demo", "val/coco/segm/ap", "maximize", trials[0], trials))
    assert "trial 30 failed (oom): memory ran out [2 GiB]" in lines(console)


def test_leaderboard_says_so_when_there_is_no_trial(console):
    print_leaderboard(console, StudyStatus("small", "val/ap", "maximize", None, []))
    assert "no trial yet" in lines(console)[0]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((None, None, None), "trained for 2:00 h, 3 trials left"),
        ((8.0, None, 4.0), "trained for 2:00 h of 8:00 h, 3 trials left"),
        ((None, 0.5, 4.0), "trained for 2:00 h, 3 trials left, at work for 30:00 min of 4:00 h"),
    ],
)
def test_spending_names_the_limits_that_there_are(limits, said):
    max_device_hours, hours, max_hours = limits
    assert format_spending(Spending(2.0, max_device_hours, hours, max_hours, 3)) == said


def test_forecast_shows_ranges_and_what_it_does_not_know(console):
    spans = {"trial_s": Range(45, 60, 75), "sweep_s": Range(60, 120, 600), "device_s": Range(60, 240, 1200)}
    found = Forecast("small", 4, 2, 1, "cuda:0", 12, 5.0, **spans, memory_gib=3.25, disk_gib=1.5, promotion_s=None)
    print_forecast(console, found)
    text = "\n".join(lines(console))
    assert "small: 4 trials, 2 worker(s) on cuda:0, 1 threads each" in text
    assert "2:00 min (1:00 min to 10:00 min)" in text and "3.25 GiB" in text and "a stage has another model" in text
    print_forecast(console, replace(found, promotion_s=90.0, finalists=12, finalists_s=3600.0))
    text = "\n".join(lines(console))
    assert "about 1:30 min" in text and "12 trainings, about 1:00" in text


def make_promotion(metric="val/ap", **changes):
    promotion = Promotion(
        study="small",
        name="promotion-0001",
        run_id="r",
        trial=2,
        settings={"training.learning_rate": 0.01},
        comparisons=(
            Comparison("val", metric, 0.25, 0.5),
            Comparison("trials' holdout", metric, 0.4, None, "the promoted model has trained on these images"),
        ),
        model="models:/cityopt-small@champion",
        version=3,
        reason="there was no champion",
        store=Path("/store"),
    )
    return replace(promotion, **changes)


def test_promotion_shows_trial_and_promoted_on_the_same_images(console):
    print_promotion(console, make_promotion())
    assert cells(console) == [
        ["val", "val/ap", "0.2500", "0.5000", "+0.2500"],
        ["trials' holdout", "val/ap", "0.4000", "–", "–"],
    ]
    assert lines(console)[-2] == "trials' holdout: the promoted model has trained on these images"
    assert lines(console)[-1] == "models:/cityopt-small@champion (version 3): there was no champion"


@pytest.mark.parametrize("metric", ["val/coco/segm/ap", "val/semantic/iou/class/motorcycle"])
def test_promotion_shows_its_numbers_whole_in_a_narrow_terminal(metric):
    console = Console(file=io.StringIO(), width=80)
    print_promotion(console, make_promotion(metric))
    (val, *_) = cells(console)
    assert val == ["val", metric, "0.2500", "0.5000", "+0.2500"]
    assert max(map(len, lines(console)[:-1])) <= 80 and "…" not in console.file.getvalue()


def test_anchors_stand_beside_the_defaults_level_by_level(console):
    recall = {"mean_best_iou": 0.6, "recall_50": 0.7, "recall_70": 0.2}
    measured = recall | {"bins": {size: dict.fromkeys(recall, None) for size in ("small", "medium", "large")}}
    report = {
        "adopted": "kmeans",
        "reason": "better",
        "sizes": [[1.0, 2.0, 3.0]] * 5,
        "ratios": [[0.5, 1.0, 2.0]] * 5,
        "kmeans": measured,
        "default": measured | {"recall_50": 0.1},
    }
    print_anchors(console, report)
    rows = cells(console)
    assert [row[0] for row in rows[:5]] == ["P2", "P3", "P4", "P5", "P6"]
    assert rows[0][1:] == ["1.00  2.00  3.00", "0.50  1.00  2.00"]
    assert ["objects with IoU ≥ .5", "0.7000", "0.1000"] in rows


def test_check_lists_problems_up_to_a_few(console):
    problems = [{"file": f"train/{number}.png", "problem": "is truncated"} for number in range(13)]
    found = {"root": "/data", "splits": {"train": {"images": 20, "labels": 19, "problems": problems}}}
    print_check(console, found)
    assert cells(console) == [["train", "20", "19", "13"]]
    assert "train: train/0.png: is truncated" in lines(console)
    assert lines(console)[-1].startswith("train: … and 3 more")


def test_square_brackets_are_printed_as_they_are(console):
    problems = [{"file": "train/[v1]/0.png", "problem": "is [/truncated]"}]
    splits = {"train": {"images": 1, "labels": 1, "problems": problems}}
    print_check(console, {"root": "/data/[bold]/x", "splits": splits})
    assert "/data/[bold]/x" in lines(console)[0] and "train: train/[v1]/0.png: is [/truncated]" in lines(console)
    statistics = {"root": "/data/[/x]", "splits": {}, "classes": [], "remarks": ["/data/[raw]/test is left out"]}
    print_statistics(console, statistics)
    assert any("/data/[/x]" in line for line in lines(console)) and "/data/[raw]/test is left out" in lines(console)
    print_prediction(console, PredictSummary(problems={"[/i].png": "is [b]"}), Path("/out/[raw]"))
    assert "  [/i].png: is [b]" in lines(console) and any("/out/[raw]/overlays" in line for line in lines(console))
    converted = dict.fromkeys(("family", "backbone", "classes", "framework", "anchors", "licence"), "x")
    converted |= {
        "num_tensors": 1,
        "num_parameters": 1,
        "dropped": [],
        "source": "/[/x].pkl",
        "checkpoint": "/[b]/c.pt",
    }
    print_conversion(console, converted)
    assert any("/[/x].pkl" in line for line in lines(console)) and any("/[b]/c.pt" in line for line in lines(console))
    print_promotion(console, make_promotion(reason="see [/x]"))
    assert lines(console)[-1].endswith("see [/x]")
    found = replace(trial(0, "complete", 0.5), params={"model.weights": "/[red]/a.pt"})
    print_leaderboard(console, StudyStatus("small", "val/ap", "maximize", found, [found]))
    assert any("/[red]/a.pt" in line for line in lines(console))
