"""The page says what the study says: its numbers, in every state of a study, with nothing from outside as markup."""

import re
from dataclasses import replace

import numpy as np
import optuna
import pytest
from fake_studies import (
    AP,
    AP50,
    DECAY,
    EPOCH_S,
    LOSS,
    MIXED,
    OPTIMIZER,
    RATE,
    REPORT,
    Fate,
    add_promotion,
    draw_picture,
    grow,
    invent_scores,
    make_study,
    name_run,
)
from page_reader import PageReader
from PIL import Image

from cityopt.evaluation.confusion import FILE, format_confusion
from cityopt.labels import THING_NAMES
from cityopt.report.charts import thin_points
from cityopt.report.confusion import write_confusion
from cityopt.report.findings import read_findings
from cityopt.report.origin import build_command, write_dataset, write_settings
from cityopt.report.page import PARTS, write_page
from cityopt.report.pictures import MAX_PICTURES, WIDTH_PX, encode_small
from cityopt.search.storage import open_storage
from cityopt.search.study_lock import lock_study
from cityopt.settings import replace_settings
from cityopt.study_file import load_study
from cityopt.tracking.run_folder import Record

COMPLETE = [2, 5, 0, 4]
"""The complete trials of MIXED, the best first."""


@pytest.fixture(scope="module")
def promoted(tmp_path_factory):
    """Return the findings and the page of a study with all kinds of trials and a promotion."""
    store = tmp_path_factory.mktemp("promoted")
    config = make_study(store, MIXED, pictures=True, trials=len(MIXED))
    add_promotion(store, config, trial=2, ap=0.35)
    findings = read_findings(store, config.name)
    return findings, PageReader(write_page(findings))


def read(store, fates, **changes):
    """Return the page of a study with these fates."""
    config = make_study(store, fates, **changes)
    return PageReader(write_page(read_findings(store, config.name)))


def test_verdict_names_best_score_baseline_gain_and_cost(promoted):
    text = promoted[1].sections["header"].text
    seconds = EPOCH_S * sum(len(fate.curve) for fate in MIXED)
    assert "Trial 2 is best: COCO mask AP 0.2441 with learning_rate" in text
    assert f"It beats trial 0, the baseline (0.2080), by {0.2441 - 0.2080:.4f}, at 128 × 256 px on 32 images" in text
    assert f"8 trials took {seconds // 60:.0f}:{seconds % 60:02.0f} min of GPU time" in text
    assert f"{100 * 4 * EPOCH_S / seconds:.0f} % of it pruned, {100 * EPOCH_S / seconds:.0f} % of it failed" in text
    assert "reach COCO mask AP 0.3500 on all of val; the trial’s own model reaches 0.3000 there" in text


def test_leaderboard_shows_every_trial_in_order_with_its_numbers(promoted):
    findings, page = promoted
    head, *rows = page.sections["leaderboard"].rows
    assert head == ["trial", "outcome", "score", "learning_rate", "weight_decay", "optimizer", "epochs", "time"]
    assert [int(re.match(r"\d+", row[0])[0]) for row in rows] == [*COMPLETE, 1, 7, 3, 6]
    for row in rows:
        number = int(re.match(r"\d+", row[0])[0])
        fate, params = MIXED[number], findings.trials[number].status.params
        score = f"{max(fate.curve):.4f}" if fate.state != "failed" else "–"
        settings = [f"{params[RATE]:.3g}", f"{params[DECAY]:.3g}", params[OPTIMIZER]]
        assert row[1:7] == [f"{fate.state} {fate.reason}".strip(), score, *settings, str(len(fate.curve))]
    assert rows[0][0] == "2 best" and rows[2][0] == "0 baseline"


def test_device_time_is_summed_by_outcome(promoted):
    _, *rows = promoted[1].sections["outcomes"].rows[:4]  # below them stands where memory ended
    total = sum(len(fate.curve) for fate in MIXED)
    for state, row in zip(("complete", "pruned", "failed"), rows, strict=True):
        epochs = [len(fate.curve) for fate in MIXED if fate.state == state]
        assert row[:2] == [state, str(len(epochs))] and row[3] == f"{100 * sum(epochs) / total:.0f} %"


def test_class_scores_are_those_of_the_best_epoch_beside_the_promoted_models(promoted):
    rows = {row[0]: row[1:] for row in promoted[1].sections["classes"].rows}
    trial, full = invent_scores(max(MIXED[2].curve)), invent_scores(0.35)
    assert rows["class"] == ["COCO mask AP trial 2", "COCO mask AP at IoU .5 trial 2", "COCO mask AP promoted"]
    for name in set(THING_NAMES) - {"train"}:
        scores = (trial[f"coco/segm/ap/class/{name}"], trial[f"coco/segm/ap50/class/{name}"])
        assert rows[name] == [f"{score:.4f}" for score in (*scores, full[f"coco/segm/ap/class/{name}"])]
    assert (
        rows["train"] == ["–"] * 3
        and "of that class to find (train in none of them)" in promoted[1].sections["classes"].text
    )
    for size, area in (("small", "under 32² px"), ("large", "over 96² px")):
        assert rows[f"{size} {area}"] == [f"{s[f'coco/segm/ap_{size}']:.4f}" for s in (trial, full)]


def test_promotion_compares_on_the_same_images_and_names_them(promoted):
    rows = {row[0]: row[1:] for row in promoted[1].sections["promotion"].rows}
    assert rows["COCO mask AP on all of val"] == ["0.3000", "0.3500", "+0.0500"]
    holdout = "COCO mask AP on the trials’ holdout, the promoted model has trained on these images"
    assert rows[holdout] == ["0.3300", "0.4500", "+0.1200"]


def test_half_of_val_is_named_wherever_a_model_was_judged_on_it(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2))])
    half = {"split": "val", "part": "first_half", "halves": "count"}
    folder = add_promotion(tmp_path, config, trial=0, ap=0.35, validation_set=half)
    (folder / "artifacts" / FILE).write_text(format_confusion(np.eye(19, 20, dtype=int)))
    page = PageReader(write_page(read_findings(tmp_path, config.name)))
    said = "val, first half by count"
    assert f"reach COCO mask AP 0.3500 on {said}; the trial" in page.sections["header"].text
    assert page.sections["promotion"].rows[1][0] == f"COCO mask AP on {said}"
    assert f"promoted on {said} at 128 × 256 px" in page.sections["classes"].text
    assert f"promotion-0001 on {said}:" in write_confusion(read_findings(tmp_path, config.name))
    assert all("all of val" not in section.text for section in page.sections.values())


RARE = "data.repeat_threshold"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "each image once an epoch"),
        ({RARE: 0.1}, "images of classes that under 10% of them show are drawn more often (repeat factors)"),
        ({"search.space": {RARE: {"type": "float", "low": 0, "high": 1}}, "search.baselines": []}, f"searched: {RARE}"),
    ],
)
def test_dataset_says_how_often_images_are_drawn(promoted, settings, words):
    findings = replace(promoted[0], config=replace_settings(promoted[0].config, settings))
    assert words in write_dataset(findings)


def test_anchors_stand_beside_the_defaults(promoted):
    rows = {row[0]: row[1:] for row in promoted[1].sections["anchors"].rows}
    assert rows["objects with IoU ≥ .5"] == [f"{REPORT[name]['recall_50']:.3f}" for name in ("kmeans", "default")]
    shapes = [attributes for _, attributes in promoted[1].elements if "anchor" in (attributes.get("class") or "")]
    assert sum("data-tip" in attributes for attributes in shapes) == 15 + 15


def test_every_chart_shows_every_trial_that_belongs_in_it(promoted):
    elements = promoted[1].elements
    marks = [a["data-trial"] for _, a in elements if (a.get("class") or "").startswith("mark ")]
    assert sorted(marks) == sorted(3 * [str(number) for number in range(8)])  # one per searched setting
    lines = [a["data-trial"] for _, a in elements if (a.get("class") or "").startswith("line ")]
    assert sorted(lines) == sorted(3 * 2 * [str(n) for n in range(8) if MIXED[n].curve])  # metrics, wide and narrow


def test_pictures_of_best_and_worst_are_inside_the_page(promoted):
    _, page = promoted
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 3 * 2 and all(p["src"].startswith("data:image/jpeg;base64,") for p in pictures)
    text = page.sections["pictures"].text
    assert (
        "Trial 2, the best trial (COCO mask AP 0.2441)" in text
        and "Trial 7, the worst" in text
        and "bochum_000000_000019" in text
    )


def test_ranked_pictures_of_a_promotion_come_first_where_there_are_some(tmp_path):
    config = make_study(tmp_path, MIXED[:3])
    folder = add_promotion(tmp_path, config, trial=2, ap=0.3)
    for place in range(1, MAX_PICTURES + 3):
        for name in ("best", "worst"):
            draw_picture(folder / f"artifacts/overlays/{name}/{place:02d}_f1-0.{place}0_lindau_{place}.jpg", 40 * place)
    text = PageReader(write_page(read_findings(tmp_path, config.name))).sections["pictures"].text
    assert "promotion-0001 on val, best images" in text and "lindau_1, F1 0.10" in text
    assert "worst images by F1 (detections of score 0.5 or more, masks’ IoU 0.5 or more)" in text
    assert text.count("lindau_") == 2 * MAX_PICTURES


CASES = {
    "none": ((), "No trial has ended yet.", "Stopped after 0 of 4 trials"),
    "single": ((Fate(grow(0.2)),), "So far trial 0 is best: COCO mask AP 0.2000", "It is the only trial"),
    "failures": (
        (Fate([], "failed", "oom", "out"),) * 2,
        "None of the 2 trials that ended is complete: 2 failed.",
        "oom",
    ),
    "pruned": ((Fate([0.1], "pruned"),), "The one trial that ended is not complete: 1 pruned.", "0.1000"),
    "first best": ((Fate(grow(0.3)), Fate(grow(0.2))), "So far trial 0 is best", "no other trial beat it"),
    "baseline failed": ((Fate([], "failed", "nan"), Fate(grow(0.2))), "So far trial 1 is best", "(failed (nan))"),
    "baseline pruned ahead": (
        (Fate([0.25], "pruned"), Fate(grow(0.2))),
        "Trial 0, the baseline, had reached 0.2500 before it was pruned; trial 1 was judged",
        "Difference",
    ),
    "open": ((Fate(grow(0.2)), Fate([0.1, 0.2], "open")), "So far trial 0 is best", "waiting interrupted"),
}


@pytest.mark.parametrize("name", CASES)
def test_page_makes_sense_in_every_state_of_a_study(tmp_path, name):
    fates, headline, also = CASES[name]
    page = read(tmp_path, fates)
    text = "".join(section.text for section in page.sections.values())
    assert headline in page.sections["header"].text and also in text
    assert set(page.sections) == {"header", *(part.name for part in PARTS)} - {
        "evidence",
        "promotion",
        "folds",
        "confusion",
    }
    for _, attributes in page.elements:
        for key in ("d", "x", "y", "cx", "cy", "style", "width"):
            assert not re.search(r"nan|inf|None", attributes.get(key) or "")


def test_page_of_a_sweep_at_work_says_so(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2)), Fate([0.1], "open")])
    with lock_study(tmp_path, config.name):
        page = PageReader(write_page(read_findings(tmp_path, config.name)))
    assert "At work: 1 of 4 trials have ended" in page.sections["header"].text
    assert [row[1] for row in page.sections["leaderboard"].rows[1:]] == ["complete", "running"]


def test_promotion_that_is_not_finished_is_told_without_numbers(tmp_path):
    config = make_study(tmp_path, MIXED[:3])
    add_promotion(tmp_path, config, trial=2, ap=0.3, outcome="unfinished")
    page = PageReader(write_page(read_findings(tmp_path, config.name)))
    assert "promotion of trial 2 is not finished after 2 of 2 epochs" in page.sections["header"].text
    assert "promotion" not in page.sections


def test_text_from_outside_is_text_when_it_looks_like_markup(tmp_path):
    evil = "</style></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    config = make_study(tmp_path, [Fate(grow(0.2)), Fate([0.1], "failed", "nan", evil)])
    first, latest = (tmp_path / "runs" / name_run(config.name, number) for number in (0, 1))
    draw_picture(first / "artifacts" / "overlays" / '"onload="x".jpg', 9)
    (latest / "params.json").write_text('{"environment.device": "<b>GPU</b>", "environment.cuda": "13"}')
    page = PageReader(write_page(read_findings(tmp_path, config.name)))
    assert evil in page.sections["outcomes"].text and "<b>GPU</b>" in page.sections["origin"].text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [a for _, a in page.elements for key in a if key.startswith("on")]
    assert "x" not in [a.get("src") for _, a in page.elements]


def test_page_asks_nobody_for_anything(promoted):
    for tag, attributes in promoted[1].elements:
        for key in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(key) or "#").startswith(("#", "data:")), f"{tag} {key}={attributes[key]}"
    policy = next(a for tag, a in promoted[1].elements if tag == "meta" and "http-equiv" in a)["content"]
    assert policy.startswith("default-src 'none'") and "http" not in policy


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """A picture of noise as the page would hold it: no photograph is larger."""
    path = tmp_path_factory.mktemp("noise") / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (540, 2000, 3), dtype=np.uint8)).save(path)
    return encode_small(path)


def test_page_stays_small_when_its_pictures_are_large(tmp_path, noise):
    rows = [Fate(grow(0.1 + 0.0005 * n)[: 2 + n % 5], "complete" if n % 3 else "pruned") for n in range(12)]
    config = make_study(tmp_path, rows, trials=12)
    assert noise.size == (WIDTH_PX, round(540 * WIDTH_PX / 2000))
    page = write_page(read_findings(tmp_path, config.name))
    assert len(page.encode()) + 3 * MAX_PICTURES * len(noise.uri) < 10e6


def test_page_stays_small_when_trials_and_epochs_are_many(tmp_path, noise):
    """300 trials of 200 epochs, beside as many pictures as a page may have."""
    count, epochs = 300, 200
    config = make_study(tmp_path, [Fate(grow(0.2))], trials=count)
    findings = read_findings(tmp_path, config.name)
    model, rng = findings.trials[0], np.random.default_rng(0)
    trials = []
    for number in range(count):
        noisy = 0.2 + 0.001 * number - 0.1 / np.arange(1, epochs + 1) + 0.01 * rng.normal(size=epochs)
        scores = [{AP: float(v), AP50: 1.5 * float(v), LOSS: 1 - float(v), "system/epoch_s": 1.0} for v in noisy]
        records = tuple(Record(step, step, metrics) for step, metrics in enumerate(scores, start=1))
        status = replace(model.status, number=number, value=float(noisy.max()))
        trials.append(replace(model, status=status, records=records))
    status = replace(findings.status, trials=[t.status for t in trials], best=trials[-1].status)
    page = write_page(replace(findings, status=status, trials=tuple(trials)))
    lines = [a for _, a in PageReader(page).elements if (a.get("class") or "").startswith("line ")]
    assert len(lines) == count * 3 * 2
    assert len(page.encode()) + 3 * MAX_PICTURES * len(noise.uri) < 10e6, len(page)


def test_thin_curve_keeps_its_ends_and_extremes():
    values = np.random.default_rng(1).normal(size=200).round(3).tolist()
    points = list(enumerate(values, start=1))
    thin = thin_points(points, 30)
    assert len(thin) <= 32 and set(thin) <= set(points) and thin == sorted(thin)
    assert thin[0] == points[0] and thin[-1] == points[-1]
    assert min(v for _, v in thin) == min(values) and max(v for _, v in thin) == max(values)
    assert thin_points(points, 200) == points


def test_settings_in_the_page_make_the_same_study(promoted, tmp_path):
    findings, page = promoted
    path = tmp_path / "streets.yaml"
    path.write_text(write_settings(findings), encoding="utf-8")
    assert load_study(str(path)) == findings.config
    command = build_command(findings)
    assert (
        command
        == "cityopt sweep --study ./streets.yaml --trials 8 --data /data/streets --set threads=2 --store streets-again"
    )
    assert command in page.sections["repeat"].text and write_settings(findings) in page.sections["repeat"].text


def test_page_has_no_anchors_when_the_model_has_none(promoted):
    findings = promoted[0]
    semantic = replace(findings, facts=replace(findings.facts, anchors={}))
    assert "anchors" not in PageReader(write_page(semantic)).sections


def test_command_names_a_shipped_study_when_the_settings_are_its_own(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2))])
    findings = replace(read_findings(tmp_path, config.name), config=load_study("demo"))
    assert build_command(findings) == "cityopt sweep --study demo --trials 6 --set threads=2 --store demo-again"


@pytest.mark.parametrize(
    ("first", "direction", "said", "name"),
    [
        (Fate([0.5]), "minimize", "It beats trial 0, the baseline (0.5000), by 0.3000", "Gain−0.3000"),
        (Fate([0.1], "pruned"), "minimize", "had reached 0.1000 before it was pruned", "Difference+0.1000"),
        (Fate([0.1], "pruned"), "maximize", "It beats trial 0, the baseline (0.1000, pruned), by 0.1000", "Gain+0.1"),
    ],
)
def test_gain_is_what_is_better_in_the_direction_of_the_objective(tmp_path, first, direction, said, name):
    text = read(tmp_path, [first, Fate([0.2])], direction=direction).sections["header"].text
    assert said in text and name in text.replace(" ", "")


def test_objective_may_be_any_metric_and_its_protocol_is_named(tmp_path):
    page = read(tmp_path, [Fate(grow(0.2))], metric="val/coco/bbox/ap50")
    assert "COCO box AP at IoU .5" in page.sections["header"].text and AP not in page.sections["header"].text


def test_trials_that_wait_in_line_beyond_those_asked_for_are_not_counted(tmp_path):
    config = make_study(tmp_path, [Fate(grow(0.2)), Fate(grow(0.3))], trials=2)
    study = optuna.load_study(study_name=config.name, storage=open_storage(tmp_path))
    study.enqueue_trial({})
    page = PageReader(write_page(read_findings(tmp_path, config.name)))
    assert "Finished: all 2 trials have ended" in page.sections["header"].text
    assert "2 trials took" in page.sections["header"].text and "--trials 2" in page.sections["repeat"].text
