"""What a study may say: every refusal names the file, the key and the fix."""

import re

import pytest

from cityopt.config import StudyConfig
from cityopt.errors import ConfigError
from cityopt.promotion import check_promoted
from cityopt.search_config import check_comparable
from cityopt.study_file import load_study

RATE = "training.learning_rate"
DEPTH = {"model.freeze_depth": {"type": "int", "low": 0, "high": 5}}


def search(space=None, **rest):
    return {"search": {"space": DEPTH if space is None else space, **rest}}


@pytest.mark.parametrize(
    ("content", "key", "rest"),
    [
        ({"trainng": {}}, "'trainng'", "Did you mean 'training'?"),
        ({"training": {"epoch": 3}}, "'training.epoch'", "Did you mean 'training.epochs'?"),
        ({"data": {"synthetic": {"seeds": 3}}}, "'data.synthetic.seeds'", "Did you mean 'data.synthetic.seed'?"),
        (search({"model.freeze_depth": {**DEPTH["model.freeze_depth"], "hi": 5}}), "freeze_depth.hi'", "mean 'high'?"),
        ({"training": {"epochs": "many"}}, "`training.epochs`", "'many'"),
        ({"training": {"epochs": True}}, "`training.epochs`", "True"),
        ({"training": {"epochs": "12"}}, "`training.epochs`", "'12'"),
        ({"training": {"epochs": 2.5}}, "`training.epochs`", "2.5"),
        ({"training": {"epochs": 0}}, "`training.epochs`", "greater than or equal to 1, but got 0"),
        ({"training": None}, "`training`", "but got None"),
        ({"training": {"learning_rate": float("inf")}}, "`training.learning_rate`", "finite"),
        ({"training": {"optimizer": "sdg"}}, "`training.optimizer`", "'sgd', 'adam' or 'adamw', but got 'sdg'"),
        ({"training": {"accumulation": 3}}, "`training`", "accumulation=3, batch_size=8"),
        ({"training": {"milestones": [0.5, 1.5]}}, "`training.milestones.1`", "1.5"),
        ({"training": {1: 2}}, "`training.1`", "strings"),
        ({"data": {"size": [256]}}, "`data.size.1`", "[256]"),
        ({"data": {"size": 256}}, "`data.size`", "256"),
        ({"data": {"root": 5}}, "`data.root`", "5"),
        ({"data": {"scale_jitter": [2, 1]}}, "`data`", "`0 < low <= high` must hold, but got scale_jitter=(2.0, 1.0)"),
        ({"model": {"freeze_depth": 7}}, "`model.freeze_depth`", "less than or equal to 5, but got 7"),
        ({"seed": -1}, "`seed`", "-1"),
        ({"name": "a b"}, "`name`", "'a b'"),
        ({"training": {"epochs": 2}}, "`search.pruner.min_epochs <= training.epochs`", "min_epochs=3, epochs=2"),
        ({"promotion": {"overrides": {"training.epoch": 9}}}, "`promotion.overrides`", "mean 'training.epochs'?"),
        ({"promotion": {"overrides": {"training.epochs": 0}}}, "`promotion.overrides`", "training.epochs=0"),
        ({"promotion": {"overrides": {"search.trials": 9}}}, "`promotion.overrides`", "'search.trials'"),
        ({"promotion": {"overrides": {"training": {"epochs": 9}}}}, "`promotion.overrides`", "'training'"),
        ({"promotion": {"overrides": {"data.num_images": 9}}}, "`promotion.overrides`", "'data.num_images'"),
    ],
)
def test_load_names_file_key_and_value_when_a_study_is_wrong(write_study, content, key, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(content))
    message = str(error.value)
    assert "street.yaml" in message and key in message and rest in message
    assert "\n" not in message and "pydantic" not in message


@pytest.mark.parametrize(
    ("space", "rest"),
    [
        ({RATE: {"type": "float", "low": 1, "high": 0.1}}, "`low <= high` must hold, but got low=1, high=0.1"),
        ({RATE: {"type": "float", "low": 0, "high": 0.1, "log": True}}, "`low > 0` must hold with `log: true`"),
        ({RATE: {"type": "float", "low": -1, "high": 0.1, "log": True}}, "got low=-1"),
        ({RATE: {"type": "float", "low": 0.1, "high": 1, "log": True, "step": 0.1}}, "exclude each other"),
        ({RATE: {"type": "float", "low": 0.1, "high": 1, "step": 0}}, "greater than 0, but got 0"),
        ({RATE: {"type": "float", "low": 0, "high": 1}}, "training.learning_rate=0.0"),  # fits no training
        ({RATE: {"type": "float", "low": 1}}, "`type: float` takes `low` and `high`, and no choices"),
        ({RATE: {"type": "float", "low": 1, "high": 2, "choices": [1]}}, "`type: float` takes `low` and `high`"),
        ({RATE: {"type": "floats", "low": 1, "high": 2}}, "'float', 'int' or 'categorical', but got 'floats'"),
        ({RATE: 0.1}, "but got 0.1"),
        ({"training.learning_rte": {"type": "float", "low": 1, "high": 2}}, "Did you mean 'training.learning_rate'?"),
        ({"search.trials": {"type": "int", "low": 1, "high": 2}}, "takes keys of data, model and training"),
        ({"model": {"freeze_depth": {"type": "int", "low": 1, "high": 2}}}, "search.space.model.type"),
        ({"model.freeze_depth": {"type": "int", "low": 0, "high": 7}}, "model.freeze_depth=6"),
        ({"model.freeze_depth": {"type": "int", "low": 0.5, "high": 3}}, "whole numbers"),
        ({"model.freeze_depth": {"type": "float", "low": 0.5, "high": 3}}, "model.freeze_depth=0.5"),
        ({"training.accumulation": {"type": "int", "low": 1, "high": 4}}, "training.accumulation=3"),  # 8 % 3
        ({"model.backbone": {"type": "categorical", "choices": []}}, "takes `choices`, at least one"),
        ({"model.backbone": {"type": "categorical", "choices": ["resnet5"]}}, "'resnet101', but got 'resnet5'"),
        ({"model.backbone": {"type": "categorical", "low": 1, "choices": ["resnet50"]}}, "no low, high, step or log"),
        ({**DEPTH, RATE: {"type": "float", "low": 1, "high": 2, "when": {"a": 1}}}, "another searched setting"),
        ({RATE: {"type": "float", "low": 1, "high": 2, "when": {RATE: 1}}}, "another searched setting"),
        ({**DEPTH, RATE: {"type": "float", "low": 1, "high": 2, "when": {"model.freeze_depth": 9}}}, "never 9"),
    ],
)
def test_load_refuses_a_search_space_when_it_is_impossible(write_study, space, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(search(space)))
    assert "street.yaml" in str(error.value) and "search.space" in str(error.value) and rest in str(error.value)


def test_space_admits_conditions_when_they_can_hold(write_study):
    optimizer = {"type": "categorical", "choices": ["sgd", "adam"]}
    momentum = {"type": "float", "low": 0.1, "high": 0.9, "when": {"training.optimizer": "sgd"}}
    study = load_study(write_study(search({"training.momentum": momentum, "training.optimizer": optimizer})))
    assert study.search.space["training.momentum"].when == {"training.optimizer": "sgd"}


@pytest.mark.parametrize(
    ("baseline", "rest"),
    [
        ({"model.freeze_depth": 6}, "baseline 1 must lie in the search space, but got model.freeze_depth=6"),
        ({"model.freeze_depth": 2.5}, "model.freeze_depth=2.5"),
        ({"model.freeze_depth": True}, "model.freeze_depth=True"),
        ({"model.freeze_depht": 2}, "which `search.space` lacks. Did you mean 'model.freeze_depth'?"),
    ],
)
def test_load_refuses_a_baseline_when_it_lies_outside_the_space(write_study, baseline, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(search(baselines=[{"model.freeze_depth": 2}, baseline])))
    assert "street.yaml" in str(error.value) and rest in str(error.value)


TABLE = {"sizes": [[4.5] * 3, [9.0] * 3, [18.0] * 3, [36.0] * 3, [72.0] * 3], "ratios": [[0.5, 1, 2]] * 5}


def test_anchors_come_with_a_table_when_they_are_explicit(write_study):
    study = load_study(write_study({"model": {"anchors": "explicit", "anchor_table": TABLE}}))
    assert study.model.anchor_table is not None and study.model.anchor_table.sizes[0] == (4.5,) * 3


@pytest.mark.parametrize(
    ("model", "rest"),
    [
        ({"anchors": "explicit"}, "give both or neither"),
        ({"anchors": "kmeans", "anchor_table": TABLE}, "give both or neither"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"sizes": TABLE["sizes"][:4]}}, "5 rows (P2..P6)"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"ratios": [[1.0]] * 5}}, "one common length"),
        ({"anchors": "explicit", "anchor_table": TABLE | {"ratios": [[0.0, 1, 2]] * 5}}, "must be positive"),
        ({"anchors": "explicit", "anchor_table": {"sizes": TABLE["sizes"]}}, "`model.anchor_table.ratios`"),
        ({"anchors": "kmean"}, "'kmeans', 'default' or 'explicit', but got 'kmean'"),
    ],
)
def test_load_refuses_anchors_when_mode_and_table_disagree(write_study, model, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study({"model": model}))
    assert "street.yaml" in str(error.value) and "model" in str(error.value) and rest in str(error.value)


def test_study_survives_when_it_travels_as_json(write_study):
    study = load_study(write_study({"model": {"anchors": "explicit", "anchor_table": TABLE}, **search()}))
    assert StudyConfig.model_validate_json(study.model_dump_json()) == study


def test_configs_cannot_be_changed_once_they_are_made(write_study):
    with pytest.raises(ValueError, match="frozen"):
        load_study(write_study({"seed": 1})).seed = 2


@pytest.mark.parametrize(
    "key",
    ["search.trials", "name", "seed", "data.root", "data.num_holdout", "data.synthetic.seed", "model.anchors"],
)
def test_setting_of_a_promotion_is_refused_with_those_it_heeds_when_it_has_no_effect(key):
    with pytest.raises(ConfigError) as error:
        check_promoted(["training.epochs", key], "--set")
    assert f"`--set` takes keys that full training heeds, but got {key!r}" in str(error.value)
    assert all(word in str(error.value) for word in ("training.*", "model.*", "data.size", "--data"))


def test_settings_of_a_promotion_are_taken_when_they_have_an_effect():
    check_promoted(["training.epochs", "model.freeze_depth", "data.size", "data.hflip"], "--set")


@pytest.mark.parametrize(("fraction", "min_epochs"), [(0.5, 6), (0.25, 3), (0.3, 3), (1.0, 12)])
def test_pruning_is_refused_when_it_could_begin_before_the_warm_up_is_over(write_study, fraction, min_epochs):
    content = {
        "training": {"epochs": 12, "warmup_fraction": fraction},
        "search": {"pruner": {"name": "asha", "min_epochs": min_epochs}},
    }
    with pytest.raises(ConfigError, match=rf"min_epochs` must lie beyond the warm-up.*but got {min_epochs}"):
        load_study(write_study(content))
    content["search"]["pruner"]["name"] = "none"
    load_study(write_study(content))


def test_pruning_is_taken_when_it_begins_beyond_the_warm_up(write_study):
    searched = {"training.warmup_fraction": {"type": "float", "low": 0.0, "high": 0.5}}
    content = {"training": {"epochs": 12}, "search": {"pruner": {"min_epochs": 4}, "space": searched}}
    with pytest.raises(ConfigError, match="= 6\\), where no score means anything"):
        load_study(write_study(content))
    content = {"training": {"epochs": 12, "warmup_fraction": 0.25}, "search": {"pruner": {"min_epochs": 4}}}
    assert load_study(write_study(content)).search.pruner.min_epochs == 4


@pytest.mark.parametrize(
    "key", ["data.num_images", "data.root", "data.holdout_fraction", "data.synthetic.seed", "model.anchors"]
)
def test_space_is_refused_when_it_holds_what_is_fixed_for_all_trials(write_study, key):
    """Another value per trial would give each trial other images or anchors, and scores that do not compare."""
    space = {key: {"type": "categorical", "choices": ["kmeans"]}}
    with pytest.raises(ConfigError, match=rf"cannot hold '{re.escape(key)}'.*data.hflip and data.crop"):
        load_study(write_study(search(space)))


def test_space_takes_how_images_are_augmented(write_study):
    space = {"data.hflip": {"type": "float", "low": 0, "high": 1}}
    assert list(load_study(write_study(search(space))).search.space) == ["data.hflip"]


def test_poolings_are_refused_when_they_leave_nothing_of_the_image(write_study):
    unet = {"family": "unet", "weights": "none", "freeze_depth": 0, "depth": 6}
    content = {"model": unet, "data": {"size": [64, 176]}}
    assert load_study(write_study(content)).model.depth == 6
    content["data"]["size"] = [63, 176]
    with pytest.raises(ConfigError, match=r"`model.depth` must be at most 5 at data.size=\[63, 176\].*may be 6"):
        load_study(write_study(content))
    content = search({"model.depth": {"type": "int", "low": 1, "high": 7}}) | {
        "model": {**unet, "depth": 2},
        "data": {"size": [64, 64]},
    }
    with pytest.raises(ConfigError, match=r"`model.depth` must be at most 6.*may be 7"):
        load_study(write_study(content))


UNET = {"family": "unet", "weights": "none", "freeze_depth": 0}


def test_poolings_that_are_searched_count_and_not_those_that_no_trial_has(write_study):
    searched = {"type": "int", "low": 1, "high": 3}
    content = {"model": UNET, "data": {"size": [8, 16]}}
    assert load_study(write_study(content | search({"model.depth": searched}))).model.depth == 4
    rate = {"type": "categorical", "choices": ["sgd", "adam"]}
    conditional = {"model.depth": {**searched, "when": {"training.optimizer": "sgd"}}, "training.optimizer": rate}
    with pytest.raises(ConfigError, match="may be 4"):  # the study's own, with adam
        load_study(write_study(content | search(conditional)))


@pytest.mark.parametrize(
    ("promotion", "where"),
    [
        ({"overrides": {"data.size": [8, 16]}}, "promotion.overrides"),
        ({"overrides": {"model.depth": 5}}, "promotion.overrides"),
        ({"stages": [{"name": "tune", "overrides": {"data.size": [8, 16]}}]}, "promotion.stages.tune"),
    ],
)
def test_poolings_are_refused_when_a_promotion_leaves_nothing_of_the_image(write_study, promotion, where):
    content = {"model": {**UNET, "depth": 4}, "data": {"size": [16, 32]}}
    load_study(write_study(content))
    with pytest.raises(ConfigError, match=rf"`{where}`: `model.depth` must be at most"):
        load_study(write_study(content | {"promotion": promotion}))


@pytest.mark.parametrize(
    ("model", "size", "batch", "is_refused"),
    [
        (UNET, [16, 16], 1, True),
        (UNET, [16, 17], 1, False),  # padded to 16 x 32: two values
        (UNET, [16, 16], 2, False),
        ({**UNET, "norm": "group"}, [16, 16], 1, False),
        ({**UNET, "family": "unet_resnet34"}, [24, 32], 1, True),
        ({**UNET, "family": "unet_resnet34"}, [24, 33], 1, False),
    ],
)
def test_micro_batches_of_one_are_refused_when_a_batch_norm_would_see_one_value(
    write_study, model, size, batch, is_refused
):
    content = {"model": {**model, "depth": 4}, "data": {"size": size}}
    content["training"] = {"batch_size": 2 * batch, "accumulation": 2}
    if is_refused:
        with pytest.raises(ConfigError, match=r"micro-batches must have 2 images or more where a unet"):
            load_study(write_study(content))
    else:
        load_study(write_study(content))


FOCAL = {"model.loss": {"type": "categorical", "choices": ["cross_entropy", "focal"]}}


@pytest.mark.parametrize("metric", ["val/loss/total", "train/loss/total"])
def test_losses_cannot_be_searched_when_the_objective_is_a_loss(write_study, metric):
    semantic = {"model": {"family": "semantic_fpn", "weights": "none"}}
    with pytest.raises(ConfigError, match=r"`search.space` cannot hold model.loss beside.*street.yaml"):
        load_study(write_study(semantic | search(FOCAL, metric=metric, direction="minimize")))
    load_study(write_study(semantic | search(FOCAL, metric="val/semantic/miou")))


@pytest.mark.parametrize("key", ["model.loss", "model.focal_gamma", "model.class_weights"])
def test_promotion_cannot_change_a_loss_that_is_the_objective(write_study, key):
    value = {"model.loss": "dice", "model.focal_gamma": 1.0, "model.class_weights": "balanced"}[key]
    for promotion in ({"overrides": {key: value}}, {"stages": [{"name": "tune", "overrides": {key: value}}]}):
        content = {"model": {"family": "semantic_fpn", "weights": "none"}, "promotion": promotion}
        with pytest.raises(ConfigError, match=rf"`promotion.*overrides` cannot hold {key}"):
            load_study(write_study(content | search({}, metric="val/loss/total", direction="minimize")))
        load_study(write_study(content | search({}, metric="val/semantic/miou")))
    with pytest.raises(ConfigError, match=r"`--set` cannot hold model.loss"):
        check_comparable("val/loss/total", ["training.epochs", "model.loss"], "--set")
    check_comparable("val/semantic/miou", ["model.loss"], "--set")


def test_loss_with_class_weights_of_its_own_images_is_no_objective(write_study):
    model = {"family": "semantic_fpn", "weights": "none", "class_weights": "balanced", "loss": "cross_entropy+dice"}
    for metric in ("val/loss/total", "val/loss/cross_entropy"):
        with pytest.raises(ConfigError, match="depends on the images that a model was trained on"):
            load_study(write_study({"model": model} | search({}, metric=metric, direction="minimize")))
    for metric in ("val/loss/dice", "val/semantic/miou"):
        load_study(write_study({"model": model} | search({}, metric=metric)))


def test_families_of_different_tasks_are_refused_in_one_space(write_study):
    space = {"model.family": {"type": "categorical", "choices": ["mask_rcnn", "semantic_fpn"]}}
    with pytest.raises(ConfigError, match="must hold families of one task"):
        load_study(write_study({"search": {"space": space}}))
    space["model.family"]["choices"] = ["mask_rcnn", "point_rend"]
    assert load_study(write_study({"search": {"space": space}})).search.space["model.family"].choices


def test_whole_numbers_are_refused_when_they_are_too_large_to_be_counted(write_study):
    space = {"model.freeze_depth": {"type": "int", "low": 0, "high": 1e300}}
    with pytest.raises(ConfigError, match=r"whole numbers of at most 2\*\*53"):
        load_study(write_study({"search": {"space": space}}))
