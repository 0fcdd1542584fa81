"""Importances beside Optuna's own on a study without pruning, and where they must not be given."""

import math

import optuna
import pytest
from fake_studies import DECAY, OPTIMIZER, RATE, make_config
from fake_studies import SPACE as SPACE_TREE
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from cityopt.errors import ConfigError
from cityopt.report.importance import BEST_SHARE, MIN_TRIALS, measure_importance
from cityopt.search.space import sample_settings
from cityopt.search.status import TrialStatus

SPACE = make_config().search.space


def play(count, state="complete"):
    """Return trials whose score hangs on the learning rate alone, and Optuna's study of them."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    trials = []
    for number in range(count):
        trial = study.ask()
        settings = sample_settings(trial, SPACE)
        value = -abs(math.log10(settings[RATE]) + 3)
        study.tell(trial, value)
        trials.append(TrialStatus(number, state, None, value, settings, None, 1.0))
    return trials, study


def test_importance_equals_optunas_when_all_trials_are_complete():
    trials, study = play(40)
    found = measure_importance(trials, SPACE, "maximize")
    with pytest.warns(UserWarning, match="low `target` values"):
        evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
        own = get_param_importances(study, evaluator=evaluator, target=lambda trial: -trial.value)
    assert found.shares == pytest.approx(own) and list(found.shares) == list(own)
    assert max(found.shares, key=found.shares.__getitem__) == RATE and sum(found.shares.values()) == pytest.approx(1)
    assert found == measure_importance(trials, SPACE, "maximize")


def test_direction_turns_the_question_round():
    trials, _ = play(40)
    turned = [TrialStatus(t.number, "pruned", None, -t.value, t.params, None, 1.0) for t in trials]
    assert measure_importance(turned, SPACE, "minimize").shares == measure_importance(trials, SPACE, "maximize").shares


def test_importance_is_not_told_when_too_few_trials_have_a_score():
    trials, _ = play(MIN_TRIALS)
    assert measure_importance(trials, SPACE, "maximize").shares.keys() == {RATE, DECAY, OPTIMIZER}
    failed = TrialStatus(99, "failed", "nan", None, trials[0].params, None, 1.0)
    few = measure_importance([*trials[1:], failed], SPACE, "maximize")
    assert few.shares == {} and few.num_trials == MIN_TRIALS - 1 and f"takes {MIN_TRIALS}" in few.reason
    assert "searches no setting" in measure_importance(trials, {}, "maximize").reason


def test_baseline_off_the_grid_is_refused_before_it_can_spoil_the_report():
    """Optuna runs such a trial, but builds no study of it again."""
    steps = {"type": "float", "low": 0.0, "high": 0.1, "step": 0.02}
    baseline = {RATE: 1e-3, DECAY: 0.01, OPTIMIZER: "adamw"}
    with pytest.raises(ConfigError, match=r"baseline 0 must lie in the search space.*0\.01"):
        make_config(space=SPACE_TREE | {DECAY: steps}, baselines=[baseline])
    assert make_config(space=SPACE_TREE | {DECAY: steps}, baselines=[baseline | {DECAY: 0.06}]).search.baselines
