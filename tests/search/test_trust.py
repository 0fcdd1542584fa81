"""Whether a subset's ranking may be believed: every verdict, and that a shuffle turns it around."""

import numpy as np
import pytest

from cityopt.search.evidence import Cost, decide
from cityopt.search.trust import Point, judge_ranking

SUBSET = (0.21, 0.20, 0.18, 0.15, 0.12)
SEEDS = ([0.40, 0.41], [0.37, 0.38], [0.33, 0.34], [0.30, 0.29], [0.25, 0.26])


def judge(subset=SUBSET, seeds=SEEDS, halves=None, direction="maximize"):
    halves = halves or [None] * len(subset)
    points = [
        Point(number, score, half, tuple(values))
        for number, (score, half, values) in enumerate(zip(subset, halves, seeds, strict=True))
    ]
    return judge_ranking(points, decide(seeds, [Cost(1.0, 1.0)] * len(seeds), direction), direction)


def test_ranking_that_holds_is_believed_and_a_shuffled_one_is_not():
    held, shuffled = judge(), judge(subset=(0.12, 0.18, 0.21, 0.20, 0.15))
    assert held.verdict == "believe" and held.sentence.startswith("Believe")
    assert held.ranks.p_value == pytest.approx(1 / 120)
    assert shuffled.verdict == "enlarge the subset" and shuffled.sentence.startswith("Don't believe")


def test_minimized_objective_is_ranked_the_other_way_round():
    assert judge(direction="minimize").verdict == "believe"  # low goes with low
    assert judge(subset=SUBSET[::-1], direction="minimize").verdict == "enlarge the subset"


def test_more_epochs_are_advised_when_the_ranking_came_nearer_with_them():
    late = judge(subset=(0.15, 0.21, 0.12, 0.18, 0.20), halves=(0.02, 0.05, 0.06, 0.07, 0.09))
    assert late.verdict == "more epochs"


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_points_are_called_too_few_however_well_they_agree(count):
    seeds = SEEDS[:count] or SEEDS[:1]
    points = [Point(n, SUBSET[n], None, tuple(SEEDS[n])) for n in range(count)]
    found = judge_ranking(points, decide(seeds, [Cost(1.0, 1.0)] * len(seeds), "maximize"), "maximize")
    assert found.verdict == "too few points" and f"{count} finalist" in found.sentence


def test_points_that_agree_by_and_large_are_too_few_to_prove_it():
    found = judge(subset=(0.21, 0.18, 0.20, 0.15), seeds=SEEDS[:4])
    assert found.ranks.spearman.value == pytest.approx(0.8) and found.verdict == "too few points"


def test_seeds_are_wanted_when_they_are_one_each_or_drown_the_differences():
    assert judge(seeds=[values[:1] for values in SEEDS]).verdict == "add seeds"
    noisy = ([0.40, 0.20], [0.37, 0.22], [0.33, 0.35], [0.30, 0.24], [0.25, 0.36])
    found = judge(seeds=noisy)
    assert found.verdict == "add seeds" and "may be chance" in found.sentence and found.spread_p > 0.05


def test_finalists_outside_the_ranking_say_how_noisy_seeds_are_but_not_how_far_apart_points_lie():
    alike = ([0.40, 0.41], [0.41, 0.40], [0.405, 0.415], [0.41, 0.405])
    points = [Point(number, SUBSET[number], None, tuple(values)) for number, values in enumerate(alike)]
    everybody = [*alike, [0.10, 0.11]]  # such as a pruned standard recipe, or a rescaled rival
    decision = decide(everybody, [Cost(1.0, 1.0)] * 5, "maximize")
    found = judge_ranking(points, decision, "maximize")
    assert decision.spread_p < 0.001 and found.verdict == "add seeds"
    assert found.noise == decision.noise and found.spread == pytest.approx(np.std([np.mean(v) for v in alike], ddof=1))


def test_verdict_says_so_when_no_more_images_were_left():
    points = judge().points
    found = judge_ranking(points, decide(SEEDS, [Cost(1.0, 1.0)] * 5, "maximize"), "maximize", grown=False)
    assert found.verdict == "believe" and found.sentence.endswith("speaks of seeds, not of more data.")


def test_numbers_are_plain_data():
    document = judge().to_json()
    assert document["num_points"] == 5 and document["spearman"]["value"] == pytest.approx(1.0)
    assert document["seed_noise"] == pytest.approx(np.sqrt(0.5) * 0.01)
    assert judge(subset=SUBSET[:1], seeds=SEEDS[:1]).to_json()["kendall"] is None
