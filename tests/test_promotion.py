"""What a study may say of its promotion's stages: every refusal names the stage, the key and the fix."""

import pytest

from cityopt.errors import ConfigError
from cityopt.promotion import PromotionConfig, StageConfig
from cityopt.study_file import load_study

PRETRAIN = {"name": "pretrain", "model": "semantic_fpn", "split": "train_extra", "labels": "coarse"}
HEADS = {"name": "heads", "start_from": "pretrain", "freeze_depth": 5}
TUNE = {"name": "fine-tune", "start_from": "heads"}
STAGES = [PRETRAIN, HEADS, TUNE]


def study(stages, **promotion):
    return {"promotion": {"stages": stages, **promotion}}


@pytest.mark.parametrize(
    ("stages", "rest"),
    [
        ([PRETRAIN, PRETRAIN, TUNE], "'pretrain' comes twice"),
        ([{**PRETRAIN, "name": "weights"}], "'weights' comes twice"),
        ([HEADS, PRETRAIN], "stage 'heads' must start from `weights` or an earlier stage, but 'pretrain' comes later"),
        ([TUNE], "but 'heads' does not exist. Before it there are: weights"),
        ([{**HEADS, "start_from": "heads"}], "'heads' comes later"),
        ([PRETRAIN, {**HEADS, "epoch": 3}], "unknown key 'promotion.stages.1.epoch'"),
        ([{**TUNE, "start_from": "weights", "epoch": 3}], "Did you mean 'epochs'?"),
        ([{**PRETRAIN, "labels": "fine"}, HEADS], "`split: train_extra` has `labels: coarse` alone"),
        ([PRETRAIN, {**HEADS, "labels": "coarse"}], "coarse labels are for semantic models"),
        ([PRETRAIN], "`promotion.stages.pretrain.model` must do what the study's 'mask_rcnn' does"),
        ([PRETRAIN, {**HEADS, "freeze_depth": 6}], "freeze_depth"),
        ([PRETRAIN, {**HEADS, "learning_rate": 0.1, "learning_rate_factor": 2}], "exclude each other"),
        ([PRETRAIN, {**HEADS, "overrides": {"model.weights": "none"}}], "`overrides` cannot hold model.weights"),
        ([PRETRAIN, {**HEADS, "overrides": {"training.epochs": 3}}], "`overrides` cannot hold training.epochs"),
        ([PRETRAIN, {**HEADS, "overrides": {"data.num_images": 3}}], "'data.num_images'"),
        ([PRETRAIN, {**HEADS, "overrides": {"training.epoch": 3}}], "training.epoch"),
        ([{**PRETRAIN, "model": "semantic_fnp"}, HEADS], "semantic_fnp"),
    ],
)
def test_load_refuses_stages_that_cannot_be(write_study, stages, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(study(stages)))
    assert "street.yaml" in str(error.value) and "promotion" in str(error.value) and rest in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize(
    ("skip", "rest"),
    [
        (["pretrian"], "there is no 'pretrian'. Did you mean 'pretrain'?"),
        (["pretrain", "heads", "fine-tune"], "must leave a stage"),
    ],
)
def test_load_refuses_to_skip_what_is_not_there_or_everything(write_study, skip, rest):
    with pytest.raises(ConfigError) as error:
        load_study(write_study(study(STAGES, skip=skip)))
    assert rest in str(error.value)


@pytest.mark.parametrize(
    ("skip", "starts"),
    [
        ((), {"pretrain": "weights", "heads": "pretrain", "fine-tune": "heads"}),
        (("pretrain",), {"heads": "weights", "fine-tune": "heads"}),
        (("heads",), {"pretrain": "weights", "fine-tune": "pretrain"}),
        (("pretrain", "heads"), {"fine-tune": "weights"}),
    ],
)
def test_stage_starts_where_a_skipped_one_would_have(skip, starts):
    promotion = PromotionConfig(stages=tuple(StageConfig(**stage) for stage in STAGES), skip=skip)
    assert {stage.name: stage.start_from for stage in promotion.trained} == starts


def test_stages_are_set_by_name_or_taken_away_from_the_command_line(write_study):
    path = write_study(study(STAGES))
    settings = ["promotion.stages.heads.epochs=3", "promotion.stages.pretrain.overrides.data.size=[64, 128]"]
    found = load_study(path, settings=settings).promotion.stages
    assert [stage.epochs for stage in found] == [None, 3, None]
    assert found[0].overrides == {"data.size": [64, 128]} and found[0].split == "train_extra"
    assert load_study(path, settings=["promotion.stages=null"]).promotion.trained == ()
    with pytest.raises(ConfigError, match=r"no entry is named 'haeds'. Did you mean 'heads'\?"):
        load_study(path, settings=["promotion.stages.haeds.epochs=3"])
    with pytest.raises(ConfigError, match=r"no config key 'promotion.stages.heads.epoch'"):
        load_study(path, settings=["promotion.stages.heads.epoch=3"])


def test_stage_scales_the_learning_rate_or_replaces_it():
    assert StageConfig(name="a").list_settings(0.02) == {}
    assert StageConfig(name="a", learning_rate=0.5).list_settings(0.02) == {"training.learning_rate": 0.5}
    assert StageConfig(name="a", learning_rate_factor=0.5).list_settings(0.02) == {"training.learning_rate": 0.01}
