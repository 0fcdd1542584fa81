"""From a YAML's dimensions to Optuna's distributions and back to the config of one run."""

import json
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from small_studies import DECAY, DEPTH, FACTS, FLAT, MOMENTUM, OPTIMIZER, RATE, make_config, open_plain

from cityopt.config import RunConfig
from cityopt.errors import ConfigError
from cityopt.runtime import derive_seed
from cityopt.search.space import build_trial_config, sample_settings, training_subset, trial_holdout
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study


def sample(space, count=1, fixed=None):
    config = make_config(space=space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(count):
        trial = study.ask() if fixed is None else optuna.trial.FixedTrial(fixed)
        trials.append((sample_settings(trial, config.search.space), trial))
    return trials


@pytest.mark.parametrize(
    ("key", "dimension", "distribution"),
    [
        (RATE, {"type": "float", "low": 1e-5, "high": 0.1, "log": True}, FloatDistribution(1e-5, 0.1, log=True)),
        (DECAY, {"type": "float", "low": 0, "high": 0.1}, FloatDistribution(0.0, 0.1)),
        (DECAY, {"type": "float", "low": 0, "high": 0.1, "step": 0.05}, FloatDistribution(0.0, 0.1, step=0.05)),
        (DEPTH, {"type": "int", "low": 0, "high": 5}, IntDistribution(0, 5)),
        (DEPTH, {"type": "int", "low": 0, "high": 4, "step": 2}, IntDistribution(0, 4, step=2)),
        (
            "training.batch_size",
            {"type": "int", "low": 1, "high": 64, "log": True},
            IntDistribution(1, 64, log=True),
        ),
        (OPTIMIZER, {"type": "categorical", "choices": ["sgd", "adamw"]}, CategoricalDistribution(["sgd", "adamw"])),
        ("data.hflip", {"type": "categorical", "choices": [0.0, 0.5]}, CategoricalDistribution([0.0, 0.5])),
    ],
)
def test_dimension_becomes_the_distribution_that_it_says_when_asked(key, dimension, distribution):
    settings, trial = sample({key: dimension})[0]
    assert trial.distributions == {key: distribution}
    assert distribution._contains(distribution.to_internal_repr(settings[key]))


def test_range_is_covered_when_many_trials_are_asked():
    depths = [settings[DEPTH] for settings, _ in sample({DEPTH: FLAT[DEPTH]}, count=100)]
    assert set(depths) == {0, 1, 2, 3, 4, 5} and all(type(depth) is int for depth in depths)
    rates = [settings[RATE] for settings, _ in sample({RATE: FLAT[RATE]}, count=200)]
    assert min(rates) >= 1e-5 and max(rates) <= 0.1
    assert 60 < sum(rate < 1e-3 for rate in rates) < 140  # half of a logarithmic range, not a hundredth


CHAIN = {
    "training.clip_norm": {"type": "float", "low": 1, "high": 9, "when": {MOMENTUM: 0.5}},
    MOMENTUM: {"type": "categorical", "choices": [0.5, 0.9], "when": {OPTIMIZER: "sgd"}},
    OPTIMIZER: {"type": "categorical", "choices": ["sgd", "adamw"]},
}


@pytest.mark.parametrize(
    ("fixed", "expected"),
    [
        ({OPTIMIZER: "adamw", MOMENTUM: 0.5, "training.clip_norm": 2.0}, {OPTIMIZER}),
        ({OPTIMIZER: "sgd", MOMENTUM: 0.9, "training.clip_norm": 2.0}, {OPTIMIZER, MOMENTUM}),
        ({OPTIMIZER: "sgd", MOMENTUM: 0.5, "training.clip_norm": 2.0}, {OPTIMIZER, MOMENTUM, "training.clip_norm"}),
    ],
)
def test_setting_is_asked_only_when_its_condition_holds(fixed, expected):
    settings, _ = sample(CHAIN, fixed=fixed)[0]
    assert settings.keys() == expected
    assert settings == {key: fixed[key] for key in expected}


def test_circle_of_conditions_is_refused_when_the_study_is_read():
    space = {
        MOMENTUM: {"type": "categorical", "choices": [0.5, 0.9], "when": {OPTIMIZER: "sgd"}},
        OPTIMIZER: {"type": "categorical", "choices": ["sgd", "adamw"], "when": {MOMENTUM: 0.5}},
    }
    with pytest.raises(ConfigError, match=r"training\.momentum, training\.optimizer in `search.space` run in a circle"):
        sample(space)


def test_baselines_are_the_first_trials_when_a_study_begins(tmp_path: Path):
    baselines = [{RATE: 0.01, DECAY: 1e-4, DEPTH: 2}, {RATE: 0.001}]
    config = make_config(baselines=baselines)
    study, _ = open_study(open_storage(tmp_path), config, FACTS)
    asked = [sample_settings(study.ask(), config.search.space) for _ in range(3)]
    assert asked[0] == baselines[0]
    assert asked[1][RATE] == 0.001 and asked[1].keys() == FLAT.keys()  # the rest is sampled
    plain = make_config()
    free = open_plain(tmp_path / "free.db", plain)
    unbound = [sample_settings(free.ask(), plain.search.space) for _ in range(3)]
    assert asked[2] == unbound[2]  # a baseline does not shift the later proposals


def test_trial_config_is_complete_when_built_from_settings():
    study = make_config(seed=5, training={"learning_rate": 0.5, "batch_size": 4})
    settings = {RATE: 0.02, DEPTH: 3}
    config = build_trial_config(study, FACTS, 7, settings, device="cpu", cache=Path("/cache"))
    assert (config.name, config.kind, config.study) == ("trial-0007", "trial", "small")
    assert config.training.learning_rate == 0.02 and config.model.freeze_depth == 3  # the trial's own
    assert config.training.batch_size == 4 and config.training.weight_decay == 1e-4  # the study's
    assert config.seed == derive_seed(5, "trial", 7) != derive_seed(5, "trial", 8)
    assert config.data.root == FACTS.root and config.fingerprint == FACTS.fingerprint and config.threads == 1
    assert config.model.anchors == "explicit"
    assert [list(row) for row in config.model.anchor_table.sizes] == FACTS.anchors["sizes"]
    assert config.train_set == training_subset(study) and config.validation_set == trial_holdout(study)
    assert (config.metric, config.direction) == ("val/coco/segm/ap", "maximize")
    assert RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_trial_and_holdout_rules_share_seed_and_cities_when_a_study_says_them():
    study = make_config(seed=9)
    assert training_subset(study).part == "subset" and trial_holdout(study).part == "holdout"
    for rule in (training_subset(study), trial_holdout(study)):
        assert (rule.split, rule.seed, rule.holdout_fraction) == ("train", 9, 0.15)


def test_settings_need_not_stand_beside_other_values_of_the_space_when_a_trial_is_built():
    space = {
        "training.batch_size": {"type": "categorical", "choices": [4, 6]},
        "training.accumulation": {"type": "categorical", "choices": [1, 4]},
    }
    study = make_config(space=space, training={"batch_size": 12})

    def build(batch_size, accumulation):
        settings = {"training.batch_size": batch_size, "training.accumulation": accumulation}
        return build_trial_config(study, FACTS, 0, settings, device="cpu", cache=Path("/cache")).training

    assert (build(4, 4).accumulation, build(6, 1).batch_size) == (4, 6)
    with pytest.raises(ConfigError, match="accumulation must divide batch_size"):
        build(6, 4)


def test_setting_that_cannot_be_is_refused_when_a_trial_is_built():
    with pytest.raises(ConfigError, match="freeze_depth"):
        build_trial_config(make_config(), FACTS, 0, {DEPTH: 6}, device="cpu", cache=Path("/cache"))
