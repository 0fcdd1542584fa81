"""The part of a study's settings that says what is searched, how, and how much it may cost."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cityopt.dimension import Dimension, Scalar
from cityopt.errors import ConfigError
from cityopt.settings import Section

PositiveInt = Annotated[int, Field(strict=True, ge=1)]


class SamplerConfig(Section):
    """How settings are proposed."""

    name: Literal["tpe", "random", "cmaes", "gp"] = "tpe"
    startup_trials: PositiveInt = 10
    """Random trials before the model of the sampler is used."""
    history: Annotated[int, Field(strict=True, ge=100)] = 1000
    """Trials that TPE sees of a longer study: the best tenth, the latest that violate a constraint, the latest."""


class PrunerConfig(Section):
    """When a trial ends early."""

    name: Literal["hyperband", "asha", "median", "none"] = "hyperband"
    min_epochs: PositiveInt = 3
    """No trial ends before this epoch: beyond warm-up, since every AP is about 0 at epoch 1."""
    reduction_factor: Annotated[int, Field(strict=True, ge=2)] = 3
    startup_trials: PositiveInt = 5
    """Complete trials that `median` wants before it prunes."""


class SearchConfig(Section):
    """What is searched, how, and what counts."""

    metric: str = "val/coco/segm/ap"
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: PositiveInt = 40
    space: dict[str, Dimension] = Field(default_factory=dict)
    sampler: SamplerConfig = SamplerConfig()
    pruner: PrunerConfig = PrunerConfig()
    baselines: tuple[dict[str, Scalar], ...] = ()
    """Settings that are tried first, trial 0 before all."""
    max_failures: PositiveInt | None = 10
    """Trials that may fail in a row before the study stops and says what they have in common; null never stops it."""
    patience: PositiveInt | None = None
    """Trials without a better best score after which no other begins."""
    max_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of one sweep: no trial begins that would not end in time."""
    max_device_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours that all trials of the study may train, added up."""
    hang_limit_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a sign of life after which a training has failed as `hung`, or longer by `hang_factor`."""
    hang_factor: Annotated[float, Field(ge=1)] = 10.0
    """How many times the longest silence seen so far (the slowest step, say) a training may be silent."""

    @field_validator("space", mode="before")
    @classmethod
    def _take_out(cls, space: Any) -> Any:
        """Leave out what is null: so a study that extends another takes a dimension from its space."""
        return {k: v for k, v in space.items() if v is not None} if isinstance(space, dict) else space


def is_own_loss(metric: str) -> bool:
    """Say whether a metric is a loss on validation images, by which each model is judged as it was trained."""
    return metric.startswith("val/loss/")


def check_comparable(metric: str, settings: Iterable[str], where: str) -> None:
    """Check that settings leave the objective what it is. Raises ConfigError: it is a loss, and they change that."""
    if is_own_loss(metric):
        _refuse_losses(metric, settings, where)


def check_loss(metric: str, space: Iterable[str], class_weights: str) -> None:
    """Check that a loss as the objective is the same one for all trials, and for the promoted model.

    Raises ConfigError: the space changes it, or its class weights follow the images that each model trains on.
    """
    if "/loss/" in metric:
        _refuse_losses(metric, space, "search.space")
    if is_own_loss(metric) and metric != "val/loss/dice" and class_weights == "balanced":
        raise ConfigError(
            f"`search.metric: {metric}` must be one loss for all models, but with `model.class_weights: balanced` it "
            "depends on the images that a model was trained on. Use `search.metric: val/semantic/miou`."
        )


def _refuse_losses(metric: str, settings: Iterable[str], where: str) -> None:
    found = [key for key in settings if key in ("model.loss", "model.focal_gamma", "model.class_weights")]
    if found:
        raise ConfigError(
            f"`{where}` cannot hold {', '.join(found)} beside `search.metric: {metric}`: each model would be judged by "
            "a loss of its own. Use `search.metric: val/semantic/miou`, or set it for the whole study."
        )
