"""Scores of any choice of images, beside the protocols' own evaluators fed with those images one by one."""

import math

import numpy as np
import pytest
import test_coco_ap
import test_semantic

from cityopt.evaluation.coco_ap import CocoEvaluator, metric_names
from cityopt.evaluation.image_scores import InstanceScores, SemanticScores
from cityopt.evaluation.paired import compare_scores
from cityopt.evaluation.semantic import SemanticEvaluator


def make_scenes(seed, count=9):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, (6, 9), (count, 2)).tolist()
    scenes = [test_coco_ap.make_scene(rng, (40, 60), *some) for some in counts]
    return rng, scenes


@pytest.mark.parametrize("seed", range(3))
def test_instance_scores_equal_the_evaluator_on_any_choice_of_images(seed):
    rng, scenes = make_scenes(seed)
    scores = InstanceScores()
    for number, (raster, prediction) in enumerate(scenes):
        scores.add(str(number), raster, prediction)
    for rows in (np.arange(len(scenes)), rng.integers(0, len(scenes), len(scenes)), np.array([3, 3, 3])):
        evaluator = CocoEvaluator()
        for place, row in enumerate(np.sort(rows)):
            evaluator.add(str(place), *scenes[row])
        expected = evaluator.summarize()
        for metric, value in zip(metric_names(), scores.prepare(metric_names())(rows), strict=True):
            assert value == pytest.approx(expected[metric], abs=1e-12, nan_ok=True), (metric, rows)


def test_instance_scores_of_nothing_found_and_of_nothing_there():
    _, scenes = make_scenes(0)
    raster = scenes[1][0]
    nothing = test_coco_ap.make_prediction(raster.shape, [], [], [])
    scores = InstanceScores()
    scores.add("a", raster, nothing)
    scores.add("b", np.full_like(raster, 7), nothing)
    score = scores.prepare(["coco/segm/ap"])
    assert score(np.array([0, 1])) == (0.0,) and math.isnan(*score(np.array([1, 1])))


@pytest.mark.parametrize("metric", ["coco/mask/ap", "coco/segm/ap90", "coco/segm/ap75/class/car"])
def test_unknown_metric_is_no_metric_of_images(metric):
    with pytest.raises(KeyError):
        InstanceScores().prepare([metric])


def test_semantic_scores_equal_the_evaluator_on_any_choice_of_images():
    rng = np.random.default_rng(5)
    scenes = [test_semantic.make_scene(rng) for _ in range(6)]
    scores = SemanticScores()
    for number, (raster, found) in enumerate(scenes):
        scores.add(str(number), raster, found, {"total": 0.5 + number})
    for rows in (np.arange(6), rng.integers(0, 6, 6)):
        evaluator = SemanticEvaluator()
        for place, row in enumerate(rows):
            evaluator.add(str(place), *scenes[row])
        expected = evaluator.summarize()
        values = scores.prepare([*expected, "loss/total"])(rows)
        assert values == pytest.approx((*expected.values(), 0.5 + rows.mean()), abs=1e-12, nan_ok=True)
    for metric in ("semantic/mean", "loss/other"):
        with pytest.raises(KeyError):
            scores.prepare([metric])


def test_paired_test_tells_a_worse_model_and_calls_twins_a_tie():
    """A model, itself, and itself without every other of its detections."""
    _, scenes = make_scenes(7, count=40)
    models = [InstanceScores() for _ in range(3)]
    for number, (raster, prediction) in enumerate(scenes):
        kept = slice(None, None, 2)
        poor = test_coco_ap.SimpleNamespace(
            size=prediction.size,
            boxes_xyxy=prediction.boxes_xyxy[kept],
            classes=prediction.classes[kept],
            scores=prediction.scores[kept],
            masks=prediction.masks[kept],
        )
        for model, found in zip(models, (prediction, prediction, poor), strict=True):
            model.add(str(number), raster, found)
    good, twin, poor = (model.prepare(["coco/segm/ap50"]) for model in models)
    worse = compare_scores(lambda rows: (*good(rows), *poor(rows)), len(scenes), draws=200)
    same = compare_scores(lambda rows: (*good(rows), *twin(rows)), len(scenes), draws=200)
    assert worse.verdict == "worse" and worse.high < 0 and worse.p_bootstrap < 0.05
    assert (same.difference, same.low, same.high, same.verdict) == (0, 0, 0, "undecided")


def test_interval_of_a_paired_mean_covers_at_its_stated_rate():
    """What the bootstrap says of many images, checked on losses, whose mean is known."""
    rng, covered = np.random.default_rng(0), 0
    for trial in range(400):
        losses = rng.gamma(2.0, 0.2, (2, 80))
        losses[1] += 0.1
        found = compare_scores(lambda rows, x=losses: tuple(x[:, rows].mean(1)), 80, draws=300, seed=trial)
        covered += found.low <= 0.1 <= found.high
    assert abs(covered / 400 - 0.95) < 0.03
