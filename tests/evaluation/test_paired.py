"""Paired comparisons, against exact enumeration, known tables and worlds in which the answer is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cityopt.evaluation.paired import (
    MIN_IMAGES,
    balance_ranks,
    compare_means,
    compare_scores,
    draw_images,
    rank_signs,
)


def enumerate_signs(differences) -> float:
    """Return Wilcoxon's exact two-sided p-value the slow way: all 2^N signs."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=len(ranks))
    ]
    own = ranks[differences > 0].sum()
    tail = min(np.mean(np.array(sums) <= own), np.mean(np.array(sums) >= own))
    return min(1.0, 2 * tail)


def test_signed_ranks_equal_an_enumeration_of_all_signs():
    rng = np.random.default_rng(0)
    for _ in range(5):
        differences = rng.normal(0.3, 1, 9)
        assert rank_signs(differences) == pytest.approx(enumerate_signs(differences))
    assert rank_signs(np.zeros(5)) == 1


def test_better_model_is_found_and_equal_ones_are_not():
    rng = np.random.default_rng(1)
    first = rng.uniform(0.4, 0.8, 60)
    better = compare_means(first, first + 0.02 + 0.01 * rng.normal(size=60))
    assert better.verdict == "better" and better.low < better.difference < better.high
    assert better.p_bootstrap < 0.01 and better.p_wilcoxon < 0.01
    assert compare_means(first + 0.02, first).verdict == "worse"
    same = compare_means(first, first + 0.05 * rng.permutation(np.repeat((-1.0, 1.0), 30)))
    assert same.verdict == "undecided" and same.p_bootstrap > 0.1


def test_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for seed in range(200):
        found = compare_means(np.zeros(40), rng.normal(0.1, 0.3, 40), draws=200, seed=seed)
        held += found.low <= 0.1 <= found.high
    assert 0.88 <= held / 200 <= 0.98


@pytest.mark.parametrize("count", [1, 2, 5, MIN_IMAGES - 1])
def test_few_images_decide_nothing(count):
    """However far apart the models are on them."""
    ahead = np.full(count, 0.3) + 0.01 * np.arange(count)
    means = compare_means(np.zeros(count), ahead)
    scores = compare_scores(lambda rows: (0.0, float(ahead[rows].mean())), count, draws=20)
    for found in (means, scores):
        assert found.verdict == "undecided" and found.num_images == count
        assert found.difference == pytest.approx(ahead.mean())
        assert np.isnan([found.low, found.high, found.p_bootstrap, found.p_wilcoxon]).all()
        assert found.to_json()["low"] is None


@pytest.mark.parametrize("count", [MIN_IMAGES, 20])
def test_noise_alone_decides_about_as_seldom_as_it_should(count):
    rng, decided = np.random.default_rng(6), {"means": 0, "scores": 0}
    for seed in range(300):
        noise = rng.normal(0, 1, count)
        means = compare_means(np.zeros(count), noise, draws=200, seed=seed)
        decided["means"] += means.verdict != "undecided"
        decided["scores"] += means.low * means.high > 0  # what `compare_scores` goes by
    assert decided["means"] <= 0.07 * 300 and decided["scores"] <= 0.085 * 300, decided


def test_tests_that_disagree_decide_nothing():
    """Most images are a little worse, a few far better: the mean says one thing, the ranks another."""
    differences = np.concatenate([np.linspace(-0.02, -0.01, 90), np.linspace(0.9, 1.1, 10)])
    found = compare_means(np.zeros(100), differences)
    assert found.low > 0 and found.p_wilcoxon < 0.05
    ranks = stats.rankdata(np.abs(differences))
    assert found.rank_balance == pytest.approx((2 * ranks[90:].sum() - ranks.sum()) / ranks.sum())
    assert found.rank_balance < 0 and found.verdict == "undecided"
    assert balance_ranks(np.zeros(3)) == 0 and balance_ranks(np.array([1.0, 2.0, 0.0])) == 1


def test_class_that_few_images_show_decides_nothing():
    """A score that a draw without them has not (NaN) is one of a choice of draws."""
    for shown, verdict in ((1, "undecided"), (2, "undecided"), (6, "better")):

        def score(rows, shown=shown):
            return (0.5, 0.6) if (rows < shown).any() else (math.nan, math.nan)

        assert compare_scores(score, 40).verdict == verdict


def test_images_without_a_score_are_left_out():
    first, second = np.array([0.1, np.nan, 0.3, 0.5]), np.array([0.2, 0.9, np.nan, 0.7])
    found = compare_means(first, second)
    assert (found.num_images, found.difference) == (2, pytest.approx(0.15))
    nothing = compare_means(first[1:2], second[1:2])
    assert nothing.num_images == 0 and math.isnan(nothing.difference) and nothing.verdict == "undecided"
    assert nothing.to_json()["difference"] is None


def test_score_of_all_images_is_drawn_with_the_same_images_for_both():
    rng = np.random.default_rng(3)
    scores = rng.uniform(0, 1, 30)

    def score(rows):
        return float(np.median(scores[rows])), float(np.median(scores[rows]) + 0.1)

    found = compare_scores(score, 30, draws=50)
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1)) and found.verdict == "better"
    # No draw is at or below zero: 1 of 51, which Student's t of 30 images takes less seriously.
    expected = 2 * stats.t.cdf(stats.norm.ppf(1 / 51) * math.sqrt(29 / 30), 29)
    assert found.p_bootstrap == pytest.approx(expected) and math.isnan(found.p_wilcoxon)
    assert found.p_bootstrap > 2 / 51


def test_draws_of_a_mean_are_those_of_its_score():
    rng = np.random.default_rng(4)
    first, second = rng.normal(size=(2, 25))
    mean = compare_means(first, second, draws=100, seed=7)
    score = compare_scores(lambda rows: (first[rows].mean(), second[rows].mean()), 25, draws=100, seed=7)
    assert (mean.low, mean.high) == (pytest.approx(score.low), pytest.approx(score.high))


def test_draws_repeat_with_the_seed():
    assert np.array_equal(draw_images(9, 3, 5), draw_images(9, 3, 5))
    assert not np.array_equal(draw_images(9, 3, 5), draw_images(9, 3, 6))
