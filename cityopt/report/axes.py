"""Axes of the report's charts: from values to pixels, with ticks at round numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cityopt.dimension import Dimension, Scalar

_MIN_DECADES = 1.5
"""A logarithmic axis that is shorter gets ticks at 2 and 5 too."""


@dataclass(frozen=True)
class Axis:
    """A range of values between two pixels; `start_px > end_px` turns it round, as upright axes want it."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False
    labels: tuple[str, ...] = ()
    """Names of categories, which stand at 0, 1, 2, …"""

    def place(self, value: float) -> float:
        """Return the pixel of a value; one outside the range lies at its end."""
        low, high = self._scale(self.low), self._scale(self.high)
        share = (self._scale(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start_px + share * (self.end_px - self.start_px)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        """Return about `count` values inside the range with their labels."""
        if self.labels:
            return [(float(place), label) for place, label in enumerate(self.labels)]
        return self._log_ticks(count) if self.is_log else _linear_ticks(self.low, self.high, count)

    def _log_ticks(self, count: int) -> list[tuple[float, str]]:
        first, last = math.log10(self.low), math.log10(self.high)
        steps = (1, 2, 5) if last - first < _MIN_DECADES else (1,)
        stride = max(1, math.ceil((last - first) / count))
        decades = range(math.floor(first), math.ceil(last) + 1)
        values = [step * 10.0**decade for decade in decades if decade % stride == 0 for step in steps]
        slack = 1e-9
        inside = [(v, _format_log(v)) for v in values if self.low * (1 - slack) <= v <= self.high * (1 + slack)]
        return inside if len(inside) > 1 else _linear_ticks(self.low, self.high, count)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def fit_axis(values: Iterable[float], start_px: float, end_px: float, *, margin: float = 0.06) -> Axis:
    """Return an axis that holds all finite values with some room at both ends, also a single one or none."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    room = (high - low) * margin or abs(high) * 0.1 or 0.5
    return Axis(low - room, high + room, start_px, end_px)


def fit_log_axis(values: Iterable[float], start_px: float, end_px: float) -> Axis:
    """Return a logarithmic axis that holds all positive values with some room."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    return Axis(min(positive) / 1.3, max(positive) * 1.3, start_px, end_px, is_log=True)


def build_setting_axis(dimension: Dimension, start_px: float, end_px: float) -> Axis:
    """Return the axis of a searched setting: its whole range, or its choices side by side."""
    if dimension.choices is not None:
        labels = tuple(str(choice) for choice in dimension.choices)
        return Axis(-0.5, len(labels) - 0.5, start_px, end_px, labels=labels)
    low, high = float(dimension.low or 0.0), float(dimension.high or 0.0)
    if low == high:
        return fit_axis([low], start_px, end_px)
    if dimension.log:
        return Axis(low / (high / low) ** 0.03, high * (high / low) ** 0.03, start_px, end_px, is_log=True)
    room = 0.03 * (high - low)
    return Axis(low - room, high + room, start_px, end_px)


def place_setting(axis: Axis, dimension: Dimension, value: Scalar) -> float | None:
    """Return the pixel of a trial's setting; None for a value that the dimension does not know."""
    if dimension.choices is not None:
        return axis.place(_index(dimension.choices, value)) if value in dimension.choices else None
    return None if isinstance(value, str) else axis.place(float(value))


def _index(choices: Sequence[Scalar], value: Scalar) -> int:
    return list(choices).index(value)


def _linear_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * raw)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    values = [place * step for place in range(first, math.floor(high / step + 1e-9) + 1)]
    return [(value, f"{value:.{decimals}f}".replace("-", "−")) for value in values]


def _format_log(value: float) -> str:
    if 0.1 <= value < 10_000:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
