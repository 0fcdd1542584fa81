"""A budget refuses what would not end in time, and learns; with a clock that stands still until it is turned."""

import pytest

from cityopt.search.budget import Budget
from cityopt.search_config import SearchConfig


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make_budget(clock, **search):
    return Budget(SearchConfig(**search), clock)


def run_trial(budget, clock, number, seconds, *, is_complete=True, is_best=False):
    budget.start(number, epochs=4)
    clock.now += seconds
    budget.end(number, seconds, is_complete=is_complete, is_best=is_best)


def test_nothing_is_refused_when_there_is_no_limit(clock):
    budget = make_budget(clock)
    for number in range(50):
        run_trial(budget, clock, number, 3600)
    assert budget.find_objection() == "" and not budget.is_over


def test_no_trial_begins_when_it_would_not_end_in_the_hours(clock):
    budget = make_budget(clock, max_hours=1.0)
    assert budget.find_objection() == ""  # of the first one nothing is known
    run_trial(budget, clock, 0, 1000)
    run_trial(budget, clock, 1, 100, is_complete=False)  # a pruned one says nothing about a whole one
    assert budget.expected_s == 1000 and budget.find_objection() == ""
    run_trial(budget, clock, 2, 1500)
    assert budget.expected_s == 1500  # corrected
    assert budget.find_objection() == "16.7 min of --max-hours are left, and a trial takes 25.0 min"
    assert not budget.is_over
    clock.now += 1000
    assert budget.is_over


def test_estimate_stands_on_epochs_when_no_trial_is_complete(clock):
    budget = make_budget(clock, max_hours=1.0)
    budget.start(0, epochs=4)
    clock.now += 1000
    budget.take_epoch(0, 700.0)
    assert budget.expected_s == 2800 and "a trial takes 46.7 min" in budget.find_objection()
    clock.now += 600
    budget.end(0, 1600, is_complete=True, is_best=True)
    assert budget.expected_s == 1600 and budget.find_objection() == ""  # corrected: the first epoch was a slow one


def test_device_hours_count_earlier_trials_and_those_at_work(clock):
    budget = make_budget(clock, max_device_hours=1.0)
    budget.recall(1200.0, is_complete=True, is_best=True)
    budget.recall(None, is_complete=False, is_best=False)
    assert budget.find_objection() == ""  # 2400 s are left, and one takes 1200
    budget.start(2, epochs=4)
    assert budget.find_objection() == ""  # exactly one more
    clock.now += 60
    budget.start(3, epochs=4)
    assert "0.0 min of --max-device-hours are left" in budget.find_objection()
    budget.leave(3)
    assert budget.find_objection() == ""


def test_patience_ends_when_too_many_trials_bring_nothing_better(clock):
    budget = make_budget(clock, patience=3)
    for number, is_best in enumerate([True, False, False]):
        run_trial(budget, clock, number, 1, is_best=is_best)
    assert budget.find_objection() == ""
    run_trial(budget, clock, 3, 1, is_complete=False)
    assert "3 trials brought no better score" in budget.find_objection()
    run_trial(budget, clock, 4, 1, is_best=True)
    assert budget.find_objection() == ""
