"""Dotted keys: listed, and replaced in a config that is validated again."""

import pytest

from cityopt import config
from cityopt.config import RunConfig, StudyConfig
from cityopt.errors import ConfigError
from cityopt.settings import list_keys, replace_section, replace_settings, set_in_tree
from cityopt.study_file import load_study

SEARCH = {"search": {"space": {"model.freeze_depth": {"type": "int", "low": 0, "high": 5}}}}


def test_replace_settings_changes_what_is_named_and_nothing_else(write_study):
    study = load_study(write_study({"promotion": {"overrides": {"training.epochs": 20}}, **SEARCH}))
    changed = replace_settings(study, {"data.root": "/data", "model.freeze_depth": 4})
    assert (changed.data.root, changed.model.freeze_depth) == ("/data", 4)
    assert changed.promotion.overrides == {"training.epochs": 20}
    assert replace_settings(changed, {"data.root": None, "model.freeze_depth": 2}) == study
    assert replace_settings(study, {}) is study
    with pytest.raises(ConfigError, match=r"`model.freeze_depth`.*but got 9"):
        replace_settings(study, {"model.freeze_depth": 9})


def test_replace_section_validates_again_when_a_field_changes():
    section = replace_section(config.TrainingConfig(), batch_size=6, accumulation=3)
    assert (section.batch_size, section.accumulation) == (6, 3)
    with pytest.raises(ConfigError, match="accumulation must divide batch_size"):
        replace_section(config.TrainingConfig(), accumulation=3)


def test_list_keys_reaches_the_leaves():
    keys = list_keys(StudyConfig)
    assert {"seed", "training", "training.epochs", "data.synthetic.seed", "model.anchor_table.sizes"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert "train_set.part" in list_keys(RunConfig)


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("training.epochs", ["training", "epochs"]),
        ("data.synthetic.size", ["data", "synthetic", "size"]),
        ("search.space.model.freeze_depth.low", ["search", "space", "model.freeze_depth", "low"]),
        ("search.space.model.freeze_depth", ["search", "space", "model.freeze_depth"]),
        ("promotion.overrides.training.epochs", ["promotion", "overrides", "training.epochs"]),
    ],
)
def test_set_in_tree_splits_a_key_where_sections_end(key, parts):
    before = {"seed": 3, "search": {"space": {"training.momentum": {"low": 0}}}}
    tree = dict(before)
    set_in_tree(StudyConfig, tree, key, 7)
    found = tree
    for part in parts:
        found = found[part]
    assert found == 7 and tree["seed"] == 3
    assert tree["search"]["space"]["training.momentum"] == {"low": 0}
    assert before == {"seed": 3, "search": {"space": {"training.momentum": {"low": 0}}}}


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (StudyConfig, "train_set.part"),
        (RunConfig, "search.trials"),
        (StudyConfig, "training.epochs.x"),
        (StudyConfig, "seed."),
    ],
)
def test_set_in_tree_refuses_a_key_when_the_model_lacks_it(model, key):
    with pytest.raises(ConfigError, match="there is no config key"):
        set_in_tree(model, {}, key, 1)
