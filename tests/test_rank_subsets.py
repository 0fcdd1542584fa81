"""The comparison of random and stratified subsets: its arithmetic, and what it picks."""

from dataclasses import replace

import pytest
from test_bench import SCRIPTS

from cityopt.data.cityscapes import FrameFacts


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks import subset_ranks

    return subset_ranks


def test_ways_are_as_good_as_they_rank_the_means_on_all_images(ranks):
    scores = {
        "stratified": [[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]],
        "random": [[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.1]],
        "all": [[0.5, 0.6, 0.9, 0.8], [0.5, 0.6, 0.7, 0.9]],
    }
    found = ranks.summarize(scores, "maximize")["spearman"]
    assert found["stratified"]["by_seed"] == pytest.approx([1.0, 0.8]) and found["stratified"]["mean"] == 0.9
    assert found["random"]["by_seed"] == pytest.approx([-1.0])  # four equal scores rank nothing
    assert ranks.summarize(scores, "minimize")["spearman"]["stratified"]["mean"] == pytest.approx(0.9)


def test_lead_is_certain_when_one_way_ranks_right_and_the_other_wrong(ranks):
    truth = [float(number) for number in range(12)]
    low, high = ranks.resample_lead([truth, truth], [truth[::-1], truth[::-1]], truth)
    assert low == pytest.approx(2.0) and high == pytest.approx(2.0)
    low, high = ranks.resample_lead([truth], [truth], truth)
    assert (low, high) == (0.0, 0.0)


def test_stratified_subsets_show_every_class_and_stay_inside(ranks):
    plain = FrameFacts("", "train", "a", (8, 8), (0, 0, 9, 0, 0, 0, 0, 0), 0, 1, "0")
    facts = [replace(plain, name=f"a_{number:02d}") for number in range(20)]
    facts[7] = replace(facts[7], class_counts=(0, 0, 0, 0, 0, 1, 0, 0))
    whole = [fact.name for fact in facts[:15]]
    for seed in range(5):
        names = ranks.pick_stratified(facts, whole, 4, seed)
        assert len(names) == 4 and "a_07" in names and set(names) <= set(whole)
