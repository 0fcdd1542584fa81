"""One dimension of a search space: the type, the range or the choices of a searched setting."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cityopt.settings import Section

Scalar = bool | int | float | str
_OFF_GRID = 1e-8
"""Of a step: what rounding may leave, as for Optuna, and no more."""


class Dimension(Section):
    """One searched setting."""

    type: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: Annotated[float, Field(gt=0)] | None = None
    choices: tuple[Scalar, ...] | None = None
    when: dict[str, Scalar] = Field(default_factory=dict)
    """Other searched settings and the value each must have for this one to be sampled."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.type == "categorical":
            if not self.choices or (self.low, self.high, self.step) != (None, None, None) or self.log:
                raise ValueError("`type: categorical` takes `choices`, at least one, and no low, high, step or log")
            return self
        if self.low is None or self.high is None or self.choices is not None:
            raise ValueError(f"`type: {self.type}` takes `low` and `high`, and no choices")
        if self.low > self.high:
            raise ValueError(f"`low <= high` must hold, but got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"`low > 0` must hold with `log: true`, but got low={self.low:g}")
        if self.log and self.step is not None:
            raise ValueError("`log: true` and `step` exclude each other")
        if self.type == "int" and not all(v is None or _is_whole(v) for v in (self.low, self.high, self.step)):
            raise ValueError("`type: int` takes whole numbers of at most 2**53 for low, high and step")
        return self

    def examples(self) -> tuple[Scalar, ...]:
        """Return all choices, all whole numbers of a short range, or the ends of any other."""
        if self.choices is not None:
            return self.choices
        if self.low is None or self.high is None:
            return ()
        if self.type == "float":
            return (self.low, self.high)
        numbers = range(int(self.low), int(self.high) + 1, int(self.step or 1))
        return tuple(numbers) if len(numbers) <= 64 else (numbers[0], numbers[-1])

    def admits(self, value: Scalar) -> bool:
        """Say whether a value lies in the dimension: in its range, and on its grid where it has one."""
        if self.type == "categorical":
            return self.choices is not None and value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float) or self.low is None or self.high is None:
            return False
        if not self.low <= value <= self.high or (self.type == "int" and value != int(value)):
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) < _OFF_GRID


def _is_whole(value: float) -> bool:
    return abs(value) <= 2**53 and value == int(value)


def check_conditions(space: Mapping[str, Dimension]) -> None:
    """Check that conditions of a search space do not run in a circle.

    Settles what depends on settled settings until nothing moves. Raises ValueError: something is left.
    """
    settled: set[str] = set()
    while ready := {key for key in space.keys() - settled if space[key].when.keys() <= settled}:
        settled |= ready
    if open_keys := sorted(space.keys() - settled):
        raise ValueError(f"the conditions (`when`) of {', '.join(open_keys)} in `search.space` run in a circle")
