"""Who becomes champion."""

from dataclasses import replace

import pytest

from cityopt.config import ModelConfig
from cityopt.search.registration import describe_loss, judge_challenger
from cityopt.tracking.mlflow_registry import ModelVersion

TAGS = {
    "cityopt.metric": "val/coco/segm/ap",
    "cityopt.value": 0.3,
    "cityopt.fingerprint": "f",
    "cityopt.split": "val",
    "cityopt.size": "64x128",
    "cityopt.run_id": "new",
}


def champion(**tags):
    texts = {key: str(value) for key, value in (TAGS | {f"cityopt.{k}": v for k, v in tags.items()}).items()}
    return ModelVersion("cityopt-small", 4, "old", texts, ("champion",), "")


@pytest.mark.parametrize(
    ("old", "direction", "alias", "words"),
    [
        (None, "maximize", "champion", "there was no champion"),
        (champion(value=0.2), "maximize", "champion", "0.3000 against 0.2000 of version 4"),
        (champion(value=0.4), "maximize", "challenger", "no better than the champion"),
        (champion(value=0.3), "maximize", "challenger", "no better than the champion"),
        (champion(value=0.4), "minimize", "champion", "it beats the champion"),
        (champion(value=0.1, fingerprint="g"), "maximize", "challenger", "another fingerprint: g, not f"),
        (champion(value=0.1, split="train"), "maximize", "challenger", "another split"),
        (champion(value=0.1, size="32x64"), "maximize", "challenger", "another size: 32x64, not 64x128"),
        (champion(value=0.1, metric="val/coco/bbox/ap"), "maximize", "challenger", "another metric"),
    ],
)
def test_champion_is_beaten_only_on_the_same_ground(old, direction, alias, words):
    assert judge_challenger(old, TAGS, direction)[0] == alias
    assert words in judge_challenger(old, TAGS, direction)[1]


def test_champion_of_another_loss_is_not_beaten_by_a_lower_one():
    tags = TAGS | {"cityopt.metric": "val/loss/total", "cityopt.loss": "dice"}
    old = champion(metric="val/loss/total", loss="cross_entropy", value=0.9)
    alias, reason = judge_challenger(old, tags, "minimize")
    assert alias == "challenger" and "another loss: cross_entropy, not dice" in reason
    assert (
        judge_challenger(champion(metric="val/loss/total", loss="dice", value=0.9), tags, "minimize")[0] == "champion"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "cross_entropy"),
        ({"loss": "focal+dice", "focal_gamma": 1.5}, "focal+dice, gamma 1.5"),
        ({"class_weights": "balanced"}, "cross_entropy, balanced class weights"),
    ],
)
def test_losses_differ_by_all_that_changes_their_values(settings, text):
    assert describe_loss(ModelConfig(**settings)) == text


def test_champion_stays_champion_when_its_own_promotion_is_resumed():
    own = ModelVersion("cityopt-small", 1, "new", {}, ("champion",), "")
    assert judge_challenger(own, TAGS, "maximize")[0] == "champion"


def test_model_without_a_value_beats_nobody_and_one_with_a_value_beats_it():
    nothing = {key: value for key, value in TAGS.items() if key != "cityopt.value"}
    assert judge_challenger(None, nothing, "maximize")[0] == "champion"
    alias, reason = judge_challenger(champion(value=0.2), nothing, "maximize")
    assert alias == "challenger" and "it has no val/coco/segm/ap" in reason
    silent = replace(champion(), tags={key: str(value) for key, value in nothing.items()})
    assert judge_challenger(silent, TAGS, "maximize")[0] == "champion"
