"""Search space: a study's dimensions -> Optuna's suggestions; a trial's settings -> the config of its run."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import optuna

from cityopt.config import AnchorTable, ModelConfig, RunConfig, StudyConfig
from cityopt.dimension import Dimension, Scalar
from cityopt.image_set import ImageSet
from cityopt.runtime import derive_seed
from cityopt.search.facts import StudyFacts
from cityopt.settings import replace_section
from cityopt.study_file import settle_training


def sample_settings(trial: optuna.trial.BaseTrial, space: Mapping[str, Dimension]) -> dict[str, Scalar]:
    """Ask a trial for every setting whose condition holds, parents before the settings that depend on them.

    The study's config makes sure that conditions do not run in a circle.
    """
    settings: dict[str, Scalar] = {}
    open_keys = list(space)
    while open_keys:
        ready = [key for key in open_keys if not set(space[key].when) & set(open_keys)]
        for key in ready:
            open_keys.remove(key)
            if all(settings.get(parent) == value for parent, value in space[key].when.items()):
                settings[key] = _suggest(trial, key, space[key])
    return settings


def build_trial_config(
    study: StudyConfig, facts: StudyFacts, number: int, settings: Mapping[str, Scalar], *, device: str, cache: Path
) -> RunConfig:
    """Return the run of trial `number`: the study's config with the trial's settings, its data and its anchors."""
    config = settle_training(study, settings)
    return RunConfig(
        study=study.name,
        name=f"trial-{number:04d}",
        kind="trial",
        seed=derive_seed(study.seed, "trial", number),
        threads=facts.threads,
        device=device,
        cache=str(cache),
        data=replace_section(config.data, root=facts.root),
        model=fix_anchors(config.model, facts),
        training=config.training,
        train_set=training_subset(study),
        validation_set=trial_holdout(study),
        metric=study.search.metric,
        direction=study.search.direction,
        fingerprint=facts.fingerprint,
    )


def fix_anchors(model: ModelConfig, facts: StudyFacts, *, zoom: tuple[float, float] = (1.0, 1.0)) -> ModelConfig:
    """Return a model with the study's anchors in numbers; a semantic one has none.

    `zoom` says how many times as high and as wide images are as those that the anchors were fitted to: they grow
    with the objects. torchvision's defaults are for any size.
    """
    if model.task == "semantic":
        return model
    table = facts.anchor_table
    if zoom != (1.0, 1.0) and facts.anchors["adopted"] != "default":
        scale, slope = math.sqrt(zoom[0] * zoom[1]), zoom[0] / zoom[1]
        table = AnchorTable(
            sizes=tuple(tuple(scale * size for size in row) for row in table.sizes),
            ratios=tuple(tuple(slope * ratio for ratio in row) for row in table.ratios),
        )
    return replace_section(model, anchors="explicit", anchor_table=table)


def training_subset(study: StudyConfig) -> ImageSet:
    """Return the rule for the images that trials train on."""
    data = study.data
    return ImageSet(part="subset", num_images=data.num_images, seed=study.seed, holdout_fraction=data.holdout_fraction)


def trial_holdout(study: StudyConfig) -> ImageSet:
    """Return the rule for the images that trials validate on: other cities than they train on."""
    data = study.data
    return ImageSet(
        part="holdout", num_images=data.num_holdout, seed=study.seed, holdout_fraction=data.holdout_fraction
    )


def _suggest(trial: optuna.trial.BaseTrial, key: str, dimension: Dimension) -> Scalar:
    if dimension.choices is not None:
        return cast(Scalar, trial.suggest_categorical(key, list(dimension.choices)))
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if dimension.type == "int":
        return trial.suggest_int(key, int(low), int(high), step=int(dimension.step or 1), log=dimension.log)
    return trial.suggest_float(key, low, high, step=dimension.step, log=dimension.log)
