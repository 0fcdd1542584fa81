"""Rank correlations beside scipy's, slow loops and counting."""

import itertools

import numpy as np
import pytest
from scipy import stats

from cityopt.search.ranks import check_ranks, least_p, measure_kendall, measure_spearman


@pytest.mark.parametrize("count", [4, 9])
def test_coefficients_are_scipys_with_ties(count):
    random = np.random.default_rng(count)
    x, y = random.integers(0, 5, (2, 40, count)).astype(float)
    for mine, theirs in ((measure_spearman, stats.spearmanr), (measure_kendall, stats.kendalltau)):
        for row, value in enumerate(mine(x, y)):
            if len(set(x[row])) > 1 and len(set(y[row])) > 1:
                assert value == pytest.approx(theirs(x[row], y[row]).statistic, abs=1e-12)
            else:
                assert np.isnan(value)


def test_p_value_counts_the_orders_that_rank_as_well():
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 3.0, 2.0, 4.0, 5.0]
    orders = list(itertools.permutations(second))
    as_good = [stats.spearmanr(first, order).statistic >= 0.9 - 1e-9 for order in orders]
    assert check_ranks(first, second).p_value == pytest.approx(sum(as_good) / len(orders))
    assert check_ranks(first, first).p_value == pytest.approx(least_p(5))
    assert check_ranks(first, first[::-1]).p_value == 1.0


def test_p_value_of_many_points_is_near_the_exact_one():
    first = [float(n) for n in range(9)]
    second = [0.0, 2.0, 1.0, 5.0, 3.0, 8.0, 4.0, 6.0, 7.0]
    assert check_ranks(first, second).p_value == pytest.approx(
        stats.spearmanr(first, second, alternative="greater").pvalue, abs=0.01
    )


def test_interval_holds_most_of_the_truth_of_many_points():
    random, inside = np.random.default_rng(0), 0
    truth = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman of a normal pair whose correlation is .7
    for seed in range(40):
        x, noise = random.standard_normal((2, 20))
        found = check_ranks(x, 0.7 * x + np.sqrt(1 - 0.49) * noise, seed=seed)
        assert found.spearman.low <= found.spearman.value <= found.spearman.high
        inside += found.spearman.low <= truth <= found.spearman.high
    assert inside >= 34


def test_same_numbers_come_out_for_the_same_seed():
    first, second = [0.1, 0.4, 0.2, 0.3], [0.2, 0.3, 0.4, 0.5]
    assert check_ranks(first, second, seed=3) == check_ranks(first, second, seed=3)


def test_nothing_is_found_where_a_score_does_not_differ():
    assert check_ranks([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert check_ranks([1.0], [1.0]) is None
    with pytest.raises(ValueError, match="same points"):
        check_ranks([1.0], [1.0, 2.0])
