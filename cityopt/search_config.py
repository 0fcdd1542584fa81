"""The part of a study's settings that says what is searched, how, and how much it may cost."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cityopt.dimension import Dimension, Scalar
from cityopt.settings import Section

PositiveInt = Annotated[int, Field(strict=True, ge=1)]


class SamplerConfig(Section):
    """How settings are proposed."""

    name: Literal["tpe", "random", "cmaes", "gp"] = "tpe"
    startup_trials: PositiveInt = 10
    """Random trials before the model of the sampler is used."""


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
