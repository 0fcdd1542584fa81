"""Full training of a study's winner, as its YAML says: what differs from a trial, and the stages it is trained in.

A part of the study (`config.py`), which checks each stage's settings beside the study's own; `search/plan.py` makes
one training of each.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from cityopt.errors import ConfigError
from cityopt.image_set import Labels
from cityopt.settings import Section, name_nearest

SEARCHED_DATA = ("data.hflip", "data.crop", "data.color_jitter", "data.blur", "data.repeat_threshold")
"""The settings of `data` that trials may differ in: scalars that do not say which images there are."""
FROM_WEIGHTS = "weights"
_PROMOTED_DATA = (*SEARCHED_DATA, "data.scale_jitter", "data.size", "data.num_workers")


class StageConfig(Section):
    """One training of a promotion. What it leaves open is as for a promotion in one go."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
    start_from: str = FROM_WEIGHTS
    """`weights` (those of `model.weights`), or an earlier stage: its network, or its ResNet alone for another model."""
    model: str | None = None
    """Model family, where it is not the study's."""
    split: Literal["train", "train_extra"] = "train"
    labels: Labels = "fine"
    num_images: Annotated[int, Field(strict=True, ge=1)] | None = None
    """How many images of the split, nested for growing counts; null takes all."""
    epochs: Annotated[int, Field(strict=True, ge=1)] | None = None
    freeze_depth: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """Frozen backbone stages; null takes the best trial's."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Per batch of 8; null takes the best trial's times `learning_rate_factor`."""
    learning_rate_factor: Annotated[float, Field(gt=0)] | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and values for this stage alone, such as `data.size: [512, 1024]`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.split == "train_extra" and self.labels != "coarse":
            raise ValueError(f"`split: train_extra` has `labels: coarse` alone, but got labels={self.labels!r}")
        if self.learning_rate is not None and self.learning_rate_factor is not None:
            raise ValueError("`learning_rate` and `learning_rate_factor` exclude each other: give one")
        own = {"model.family", "model.freeze_depth", "training.epochs", "training.learning_rate"}
        own |= {"model.weights"} if self.start_from != FROM_WEIGHTS else set()
        if twice := sorted(own & self.overrides.keys()):
            raise ValueError(
                f"`overrides` cannot hold {', '.join(twice)}: a stage says it in `start_from`, `model`, `epochs`, "
                "`freeze_depth`, `learning_rate` or `learning_rate_factor`"
            )
        return self

    def list_settings(self, learning_rate: float) -> dict[str, Any]:
        """Return the dotted keys and values that the stage sets, given the learning rate of a promotion in one go."""
        rate = self.learning_rate
        if self.learning_rate_factor is not None:
            rate = self.learning_rate_factor * learning_rate
        own = {
            "model.family": self.model,
            "training.epochs": self.epochs,
            "model.freeze_depth": self.freeze_depth,
            "training.learning_rate": rate,
        }
        return {**{key: value for key, value in own.items() if value is not None}, **self.overrides}


Rescaling = Literal["weight_decay", "learning_rate"]
"""Rules for settings that more data or epochs change (search/rescaling.py)."""


class PromotionConfig(Section):
    """Full training of the winner: who may win, and what differs from a trial."""

    finalists: Annotated[int, Field(strict=True, ge=1)] = 3
    """This many of the best trials, and trial 0, retrain on more images before one is promoted. With `finalists: 1` and
    `seeds: 1` the best trial is promoted as it is."""
    seeds: Annotated[int, Field(strict=True, ge=1)] = 3
    """Trainings of each finalist, which differ in their seed."""
    subset_factor: Annotated[float, Field(ge=1)] = 3.0
    """Finalists train on this many times the trials' images, those among them; on all outside the holdout if it has
    fewer."""
    finalist_epochs: Annotated[int, Field(strict=True, ge=1)] | None = None
    """Epochs of a finalist; null takes the trials'."""
    rescale: tuple[Rescaling, ...] = ()
    """Rules by which each finalist gets a rival, where they change anything; none by default, since they come from
    other networks than these."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys and values that replace the trial's, such as `training.epochs: 24`."""
    stages: tuple[StageConfig, ...] = ()
    """Trainings that follow one another, the last of which is the promoted model; none, or null, trains in one go."""
    skip: tuple[str, ...] = ()
    """Names of stages that are left out."""

    @field_validator("stages", "skip", "rescale", mode="before")
    @classmethod
    def _read_null(cls, value: Any) -> Any:
        return () if value is None else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [FROM_WEIGHTS]
        names = [stage.name for stage in self.stages]
        for stage in self.stages:
            if stage.name in known:
                raise ValueError(f"stages need names of their own beside `weights`, but {stage.name!r} comes twice")
            if stage.start_from not in known:
                later = "comes later" if stage.start_from in names else "does not exist"
                raise ValueError(
                    f"stage {stage.name!r} must start from `weights` or an earlier stage, but {stage.start_from!r} "
                    f"{later}. Before it there are: {', '.join(known)}"
                )
            known.append(stage.name)
        for name in self.skip:
            if name not in names:
                raise ValueError(f"`skip` must name stages, but there is no {name!r}.{name_nearest(name, names)}")
        if names and not self.trained:
            raise ValueError("`skip` must leave a stage. Set `promotion.stages` to null to train in one go")
        return self

    @property
    def has_finalists(self) -> bool:
        """Say whether finalists train at all."""
        return self.finalists > 1 or self.seeds > 1

    @property
    def trained(self) -> tuple[StageConfig, ...]:
        """The stages that are not skipped; what would start from a skipped one starts where that one would have."""
        starts = {FROM_WEIGHTS: FROM_WEIGHTS}
        kept = []
        for stage in self.stages:
            start = starts[stage.start_from]
            starts[stage.name] = start if stage.name in self.skip else stage.name
            if stage.name not in self.skip:
                kept.append(stage.model_copy(update={"start_from": start}))
        return tuple(kept)


def is_heeded(key: str) -> bool:
    """Say whether a setting may differ between a study's trials and full training: images and anchors may not."""
    free = key.startswith(("training.", "model.")) and not key.startswith("model.anchor")
    return free or key in _PROMOTED_DATA


def check_promoted(settings: Iterable[str], where: str) -> None:
    """Check that keys have an effect on full training: its images are all of train and val, its anchors the study's.

    Raises ConfigError that names those that have.
    """
    for key in settings:
        if not is_heeded(key):
            raise ConfigError(
                f"`{where}` takes keys that full training heeds, but got {key!r}. They are: training.*, model.* but "
                f"for the anchors, {', '.join(_PROMOTED_DATA)}. The dataset is named with --data."
            )
