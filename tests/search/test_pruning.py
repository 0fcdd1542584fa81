"""Rungs against Optuna's own successive halving, against Hyperband's formulas, and asked twice."""

import math
import random
from fractions import Fraction

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

from cityopt.search.pruning import RungPruner, build_pruner
from cityopt.search_config import PrunerConfig

NAN = math.nan


def make_curves(seed, *, num_trials=40, epochs=27, nans=0.0):
    """Noisy curves that rise or fall; some values tie, some are NaN."""
    rng = random.Random(seed)
    curves = []
    for _ in range(num_trials):
        level, slope = rng.choice([-1, 0, 1, 2]), rng.uniform(-0.1, 0.2)
        curve = [round(level + slope * epoch + rng.gauss(0, 0.3), 1) for epoch in range(epochs)]
        curves.append([NAN if rng.random() < nans else value for value in curve])
    return curves


def play(pruner, curves, direction, *, in_parallel=1, seed=0):
    """Let trials report their curves, `in_parallel` of them mixed at random; return where each was pruned."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    rng, waiting, running = random.Random(seed), list(enumerate(curves)), []
    ends = {}
    while waiting or running:
        while waiting and len(running) < in_parallel:
            number, curve = waiting.pop(0)
            running.append([number, curve, study.ask(), 0])
        place = rng.randrange(len(running))
        number, curve, trial, epoch = running[place]
        running[place][3] = epoch = epoch + 1
        trial.report(curve[epoch - 1], epoch)
        if trial.should_prune():
            ends[number] = epoch
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            running.pop(place)
        elif epoch == len(curve):
            ends[number] = None
            last = curve[-1]
            study.tell(trial, last, skip_if_finished=True) if last == last else study.tell(
                trial, state=optuna.trial.TrialState.FAIL
            )
            running.pop(place)
    return [ends[number] for number in range(len(curves))]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize(("min_epochs", "factor", "nans"), [(1, 2, 0.0), (3, 3, 0.0), (2, 4, 0.0), (1, 3, 0.2)])
@pytest.mark.parametrize("seed", range(4))
def test_rungs_decide_as_optunas_successive_halving_when_there_is_one_bracket(
    direction, min_epochs, factor, nans, seed
):
    curves = make_curves(seed, nans=nans)
    ours = play(RungPruner(min_epochs, 27, factor, brackets=False), curves, direction)
    theirs = play(SuccessiveHalvingPruner(min_resource=min_epochs, reduction_factor=factor), curves, direction)
    assert ours == theirs
    assert len({end for end in ours if end is not None}) > 1, "the curves must reach several rungs"


@pytest.mark.parametrize("seed", range(3))
def test_rungs_decide_as_optunas_successive_halving_when_trials_run_side_by_side(seed):
    curves = make_curves(seed, nans=0.05)
    ours = play(RungPruner(1, 27, 3, brackets=False), curves, "maximize", in_parallel=4, seed=seed)
    theirs = play(SuccessiveHalvingPruner(1, 3), curves, "maximize", in_parallel=4, seed=seed)
    assert ours == theirs


def test_nans_of_others_neither_help_nor_raise_when_they_are_many():
    curves = [[NAN]] * 5 + [[0.5], [0.6], [0.4]]
    assert play(RungPruner(1, 4, 2, brackets=False), curves, "maximize") == [1] * 5 + [None, None, 1]


def test_answer_is_the_same_when_asked_twice_though_optunas_own_is_not():
    def ask_twice(pruner):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for value in (0.9, 0.8, 0.7, 0.1):
            trial = study.ask()
            trial.report(value, 1)
            first, second = trial.should_prune(), trial.should_prune()
        return first, second

    assert ask_twice(SuccessiveHalvingPruner(1, 2)) == (True, False)
    assert ask_twice(RungPruner(1, 8, 2, brackets=False)) == (True, True)
    assert ask_twice(RungPruner(1, 8, 2, brackets=True)) == (True, True)


def hyperband_brackets(min_epochs, max_epochs, factor):
    """Algorithm 1 of Hyperband: s_max and the number of configurations of each bracket, in exact arithmetic."""
    s_max = 0
    while Fraction(max_epochs, min_epochs) >= factor ** (s_max + 1):
        s_max += 1
    return [math.ceil(Fraction((s_max + 1) * factor**s, s + 1)) for s in range(s_max, -1, -1)]


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("min_epochs", [1, 2, 3, 5])
@pytest.mark.parametrize("max_epochs", [5, 9, 12, 16, 27, 64, 81, 243, 1000])
def test_brackets_have_hyperbands_shares_when_trials_are_counted(min_epochs, max_epochs, factor):
    shares = hyperband_brackets(min_epochs, max_epochs, factor)
    pruner = RungPruner(min_epochs, max_epochs, factor, brackets=True)
    found = [pruner.bracket_of(number) for number in range(3 * sum(shares))]
    assert [found.count(bracket) for bracket in range(len(shares))] == [3 * share for share in shares]


@pytest.mark.parametrize(("min_epochs", "max_epochs", "factor"), [(1, 27, 3), (3, 24, 2), (3, 12, 3), (5, 243, 3)])
def test_rungs_stand_at_powers_of_the_factor_when_a_bracket_begins_later(min_epochs, max_epochs, factor):
    pruner = RungPruner(min_epochs, max_epochs, factor, brackets=True)
    for bracket in range(len(hyperband_brackets(min_epochs, max_epochs, factor))):
        rungs = {min_epochs * factor ** (bracket + i) for i in range(20)}
        found = {epoch for epoch in range(1, max_epochs + 1) if pruner.is_rung(bracket, epoch)}
        assert found == {rung for rung in rungs if rung <= max_epochs}
        assert min(found) >= min_epochs


def test_trials_are_judged_within_their_bracket_when_there_are_several():
    pruner = RungPruner(1, 9, 3, brackets=True)  # shares 9, 5, 3
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for number in range(17):
        trial = study.ask()
        assert trial.number == number
        bracket = 0 if number < 9 else 1 if number < 14 else 2
        first = 3**bracket
        for epoch in range(1, first + 1):
            trial.report(100.0 - number, epoch)  # each is worse than all before
            expected = epoch == first and number not in (0, 9, 14)  # only the first of a bracket leads it
            assert trial.should_prune() == expected, (number, epoch)


def test_build_pruner_returns_optunas_own_when_it_only_reads():
    assert isinstance(build_pruner(PrunerConfig(name="none"), 12), NopPruner)
    median = build_pruner(PrunerConfig(name="median", min_epochs=3, startup_trials=2), 12)
    assert isinstance(median, MedianPruner)
    study = optuna.create_study(direction="maximize", pruner=median)
    for _ in range(2):
        study.add_trial(optuna.trial.create_trial(value=1.0, intermediate_values=dict.fromkeys(range(1, 13), 1.0)))
    trial, verdicts = study.ask(), []
    for epoch in range(1, 5):
        trial.report(0.5, epoch)
        verdicts.append(trial.should_prune())
    assert verdicts == [False, False, True, True]  # nobody ends before `min_epochs`


@pytest.mark.parametrize(("name", "brackets"), [("asha", 1), ("hyperband", 3)])
def test_build_pruner_takes_epochs_as_resource_when_it_halves(name, brackets):
    pruner = build_pruner(PrunerConfig(name=name, min_epochs=3, reduction_factor=2), 12)
    assert isinstance(pruner, RungPruner) and len(pruner.shares) == brackets
    assert [epoch for epoch in range(1, 13) if pruner.is_rung(0, epoch)] == [3, 6, 12]
