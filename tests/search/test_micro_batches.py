"""A trial that completed only in smaller micro-batches is trained again in them, whatever it is trained for."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from small_studies import FACTS, RATE, make_config

from cityopt.search.crossval_plan import choose_settings
from cityopt.search.micro_batches import ACCUMULATION, keep_pieces, plan_retry
from cityopt.search.plan import plan_promotion
from cityopt.search.status import TrialStatus, describe_trials
from cityopt.settings import replace_settings

CONFIG = make_config(training={"batch_size": 8, "epochs": 6})
BATCH = "training.batch_size"
STAGES = [{"name": "heads", "epochs": 2}, {"name": "all", "start_from": "heads", "overrides": {BATCH: 6}}]


def finish_small(study: optuna.Study) -> TrialStatus:
    """Return a trial that ran out of memory once and is complete."""
    trial = study.ask({RATE: optuna.distributions.FloatDistribution(1e-5, 1e-1)})
    assert plan_retry(trial, CONFIG.training, 7.5) == 4
    study.tell(trial, 0.5)
    return describe_trials(study, live=False)[0]


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")


@pytest.mark.parametrize(
    ("params", "more", "accumulation"),
    [
        ({}, {}, 2),
        ({BATCH: 12, ACCUMULATION: 2}, {}, 2),  # of 6 images, as it went on with
        ({}, {BATCH: 16}, 4),  # still 4 images at once
        ({}, {BATCH: 6}, 2),  # 3 images, since 4 do not divide it
        ({}, {BATCH: 4}, 1),
        ({}, {ACCUMULATION: 1}, 1),  # asked for
    ],
)
def test_pieces_are_no_larger_than_those_that_fitted(params, more, accumulation):
    trial = TrialStatus(0, "complete", None, 0.5, params, "run", 1.0, accumulation=2)
    assert keep_pieces(CONFIG, trial, params, more) == {**params, **more, ACCUMULATION: accumulation}
    plenty = replace(trial, accumulation=None)
    assert keep_pieces(CONFIG, plenty, params, more) == {**params, **more}


def test_promotion_and_its_stages_keep_the_pieces_of_their_trial(study):
    trial = finish_small(study)
    given = {"root": Path("/data"), "device": "cpu", "store": Path("/store")}
    (plain,) = plan_promotion(CONFIG, FACTS, trial, {}, **given)
    assert (plain.run.training.accumulation, plain.run.training.learning_rate) == (2, trial.params[RATE])
    (asked,) = plan_promotion(CONFIG, FACTS, trial, {ACCUMULATION: 8}, **given)
    assert asked.run.training.accumulation == 8
    heads, last = plan_promotion(replace_settings(CONFIG, {"promotion.stages": STAGES}), FACTS, trial, {}, **given)
    assert (heads.run.training.accumulation, last.run.training.accumulation) == (2, 2)
    assert (heads.run.training.batch_size, last.run.training.batch_size) == (8, 6)


def test_folds_keep_the_pieces_of_the_best_trial(study):
    finish_small(study)
    assert choose_settings(study, CONFIG, {}).settings[ACCUMULATION] == 2
    assert choose_settings(study, CONFIG, {ACCUMULATION: 4}).settings[ACCUMULATION] == 4


def test_status_document_has_the_keys_of_old(study):
    assert "accumulation" not in finish_small(study).to_json()
