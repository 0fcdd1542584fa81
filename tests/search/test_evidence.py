"""The choice among finalists: planted problems, coverage, ties."""

import math

import numpy as np
import pytest
from scipy import stats

from cityopt.search.evidence import CHEAPER, Cost, decide, find_t, pool_deviation

COST = Cost(95.0, 100.0)


def draw(random, truths, noise, seeds):
    return [list(truth + noise * random.standard_normal(seeds)) for truth in truths]


def test_interval_is_students_with_a_pooled_variance():
    scores = [[0.30, 0.34, 0.32], [0.20, 0.21], [0.28, 0.25, 0.27]]
    found = decide(scores, [COST] * 3, "maximize")
    residuals = np.concatenate([np.array(values) - np.mean(values) for values in scores])
    noise = math.sqrt((residuals**2).sum() / (8 - 3))
    assert found.noise == pytest.approx(noise, rel=1e-12)
    for values, it in zip(scores, found.intervals, strict=True):
        low, high = stats.t.interval(0.95, 5, loc=np.mean(values), scale=noise / math.sqrt(len(values)))
        assert (it.low, it.high, it.num_seeds) == (pytest.approx(low), pytest.approx(high), len(values))
    assert found.spread_p == pytest.approx(stats.f_oneway(*scores).pvalue, rel=1e-9)


@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_cover_at_their_stated_rate(seeds):
    random, truths = np.random.default_rng(0), (0.3, 0.28, 0.2, 0.25)
    covered = []
    for _ in range(1000):
        found = decide(draw(random, truths, 0.02, seeds), [COST] * 4, "maximize")
        covered += [it.low <= truth <= it.high for truth, it in zip(truths, found.intervals, strict=True)]
    assert abs(np.mean(covered) - 0.95) < 0.03


def test_procedure_finds_the_true_best_where_argmax_falls_for_a_lucky_outlier():
    """Twelve settings; on the subset a mediocre one is lucky, and the rest are as noisy as one seed makes them."""
    random, right, fooled = np.random.default_rng(1), 0, 0
    truths = np.linspace(0.20, 0.31, 12)
    lucky, noise, best = 7, 0.012, 11
    for _ in range(200):
        subset = truths - 0.08 + noise * random.standard_normal(12)
        subset[lucky] += 0.05 if random.random() < 0.6 else 0.0
        fooled += int(np.argmax(subset)) != best
        finalists = list(dict.fromkeys([*np.argsort(-subset)[:3], 0]))  # the three best and trial 0
        scores = draw(random, truths[finalists], 0.004, 3)
        right += finalists[decide(scores, [COST] * len(finalists), "maximize").winner] == best
    assert 200 - fooled <= 120, f"argmax was right {200 - fooled} times of 200"
    assert right >= 180, f"the procedure was right {right} times of 200"


def test_planted_twins_tie_and_a_worse_third_does_not():
    random, ties, false_ties = np.random.default_rng(2), 0, 0
    for _ in range(400):
        found = decide(draw(random, (0.3, 0.3, 0.2), 0.01, 3), [COST] * 3, "maximize")
        twin = 1 - found.leader
        ties += twin in found.tied
        false_ties += 2 in found.tied
    assert ties / 400 > 0.92 and false_ties == 0


@pytest.mark.parametrize(("cost", "winner"), [(Cost(1.0, 95.0 * CHEAPER), 1), (Cost(1.0, 95.0 * CHEAPER + 1), 0)])
def test_tie_goes_to_the_cheaper_when_it_is_clearly_cheaper(cost, winner):
    found = decide([[0.30, 0.32], [0.29, 0.31]], [COST, cost], "maximize")
    assert (found.leader, found.tied, found.winner) == (0, (1,), winner)


def test_cheaper_loses_when_it_does_not_tie():
    found = decide([[0.30, 0.31], [0.10, 0.11]], [COST, Cost(1.0, 1.0)], "maximize")
    assert (found.winner, found.tied) == (0, ())


def test_lower_scores_win_when_the_objective_is_minimized():
    assert decide([[1.0, 1.1], [0.5, 0.6]], [COST] * 2, "minimize").winner == 1


def test_fewer_seeds_weigh_against_a_finalist_of_the_same_mean():
    scores = [[0.30], [0.29, 0.30, 0.31], [0.1, 0.11, 0.09]]
    assert decide(scores, [COST] * 3, "maximize").winner == 1


def test_one_seed_each_has_no_interval_and_the_best_score_wins():
    found = decide([[0.2], [0.3]], [COST, Cost(1.0, 1.0)], "maximize")
    assert (found.winner, found.tied, found.noise, found.spread_p) == (1, (), None, None)
    assert found.intervals[1].low is None
    assert pool_deviation([[0.2], [0.3]]) == (None, 0)


def test_equal_finalists_tie_and_the_first_leads():
    found = decide([[0.2, 0.2], [0.2, 0.2]], [COST] * 2, "maximize")
    assert (found.winner, found.tied, found.spread_p) == (0, (1,), 1.0)
    assert decide([[0.1, 0.1], [0.2, 0.2]], [COST] * 2, "maximize").tied == ()


def test_t_is_that_of_the_tables():
    assert find_t(6) == pytest.approx(2.446912, abs=1e-6)


def test_nothing_to_decide_is_refused():
    for scores in ([], [[]], [[0.1], []]):
        with pytest.raises(ValueError, match="scores"):
            decide(scores, [COST] * len(scores), "maximize")
