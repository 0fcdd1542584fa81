"""Promotion's decisions: which trial wins, and what its full training is."""

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from small_studies import DECAY, FACTS, RATE, make_config

from cityopt.errors import ConfigError, StudyError
from cityopt.search.plan import plan_promotion
from cityopt.search.promote import is_same_promotion, pick_winner
from cityopt.search.status import TrialStatus
from cityopt.settings import replace_section, replace_settings

WINNER = TrialStatus(3, "complete", None, 0.2, {RATE: 0.02}, "run-3", 1.0)


def study_of(*trials, direction="maximize"):
    study = optuna.create_study(direction=direction)
    for state, value in trials:
        study.add_trial(create_trial(state=state, value=value, intermediate_values={1: value or 0.0}))
    return study


def test_best_complete_trial_wins_when_pruned_ones_have_higher_scores():
    trials = [(TrialState.COMPLETE, 0.1), (TrialState.PRUNED, 0.9), (TrialState.COMPLETE, 0.3), (TrialState.FAIL, None)]
    assert pick_winner(study_of(*trials), make_config()).number == 2
    assert pick_winner(study_of(*trials, direction="minimize"), make_config(direction="minimize")).number == 0


def test_earlier_trial_wins_when_two_are_equal():
    trials = [(TrialState.COMPLETE, 0.1), (TrialState.COMPLETE, 0.3), (TrialState.COMPLETE, 0.3)]
    assert pick_winner(study_of(*trials), make_config()).number == 1


def test_promotion_is_refused_with_the_command_when_no_trial_is_complete():
    with pytest.raises(StudyError, match="cityopt sweep --study small"):
        pick_winner(study_of((TrialState.PRUNED, 0.5)), make_config())


def build(config, settings=None):
    (stage,) = plan_promotion(
        config, FACTS, WINNER, settings or {}, root=Path("/data"), device="cpu", store=Path("/store")
    )
    return stage.run


def test_settings_come_from_trial_then_overrides_then_options_when_promoted():
    config = replace_settings(
        make_config(training={"batch_size": 4}), {"promotion.overrides": {"training.epochs": 24, DECAY: 0.05}}
    )
    run = build(config, {"training.epochs": 2})
    assert run.training.learning_rate == 0.02 and run.training.batch_size == 4
    assert run.training.weight_decay == 0.05 and run.training.epochs == 2
    with pytest.raises(ConfigError, match=r"training\.epoch"):
        build(config, {"training.epoch": 2})


def test_loss_stays_when_it_is_what_models_are_judged_by():
    model, search = {"family": "semantic_fpn"}, {"metric": "val/loss/total", "direction": "minimize"}
    with pytest.raises(ConfigError, match=r"`--set` cannot hold model\.loss beside `search\.metric: val/loss/total`"):
        build(make_config(model=model, **search), {"model.loss": "dice"})
    assert build(make_config(model=model, metric="val/semantic/miou"), {"model.loss": "dice"}).model.loss == "dice"


def test_schedule_may_be_shorter_than_the_pruners_when_promoted():
    config = make_config(pruner={"name": "asha", "min_epochs": 4})
    assert build(config, {"training.epochs": 1}).training.epochs == 1


def test_promotion_trains_on_all_of_train_and_judges_on_all_of_val():
    run = build(make_config())
    assert (run.train_set.split, run.train_set.part) == ("train", "all")
    assert (run.validation_set.split, run.validation_set.part) == ("val", "all")
    assert run.keep == "last"  # a fixed schedule: val chooses no epoch
    assert run.kind == "promotion" and run.fingerprint == FACTS.fingerprint and run.threads == FACTS.threads
    assert [list(row) for row in run.model.anchor_table.sizes] == FACTS.anchors["sizes"]  # the study's anchors


def recall(config, change, **pins):
    """Say whether a promotion of this plan is the one that was stored, once what was stored is changed."""
    plan = plan_promotion(config, FACTS, WINNER, {}, root=Path("/data"), device="cpu", store=Path("/store"))
    plan = tuple(replace(stage, run=replace_section(stage.run, **pins)) for stage in plan)
    entry = {"config": change(plan[-1].run.model_dump(mode="json"))}
    return is_same_promotion(entry, plan)


@pytest.mark.parametrize("weights", ["none", "imagenet", "coco", "/a/path.pt"])
def test_promotion_goes_on_though_it_was_begun_when_there_were_fewer_settings(weights):
    rider = "none" if weights == "coco" else "person"  # a study of old has COCO's heads start afresh
    config = replace_settings(make_config(), {"model.weights": weights, "model.rider_from": rider})

    def forget(stored):
        del stored["model"]["rider_from"], stored["stop_epoch"], stored["weights_hash"]
        return stored

    assert recall(config, forget, weights_hash="a" * 64)


def test_promotion_is_another_when_its_settings_are():
    assert recall(make_config(), lambda stored: stored | {"threads": 99})
    assert not recall(make_config(), lambda stored: stored | {"seed": 99})
    assert not recall(make_config(), lambda stored: stored | {"weights_hash": "b"}, weights_hash="a")
    assert not recall(make_config(), lambda stored: stored | {"a_setting": "that is gone"})
    fresh = replace_settings(make_config(), {"model.weights": "coco"})
    assert not recall(fresh, lambda stored: stored | {"model": {"weights": "coco"}})  # its heads started afresh


def test_promotion_goes_on_in_smaller_pieces_when_memory_ran_out():
    """As `--set training.accumulation`, the advice that is given then, asks for."""
    plan = plan_promotion(
        make_config(), FACTS, WINNER, {"training.accumulation": 4}, root=Path(), device="cpu", store=Path("/store")
    )
    assert plan[-1].run.training.accumulation == 4
    assert is_same_promotion({"config": build(make_config()).model_dump(mode="json")}, plan)
