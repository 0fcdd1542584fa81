"""Whether one ranking predicts another: Spearman's and Kendall's coefficients, an interval, an exact test.

Pure numbers, for `trust.py`. What decides is the permutation test, which is exact for any number of points. The
interval is a percentile bootstrap over the points, for the eye: of a handful of points it covers less than it says.

Source: Kendall, "Rank Correlation Methods" (tau-b, Spearman with ties by midranks).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""Of two-sided bootstrap intervals."""
_RESAMPLES = 2000
_EXACT_UP_TO = 7
"""Points of which all orders (5,040) are gone through; of more, as many random ones as resamples are drawn."""

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A rank correlation with its bootstrap interval; None where no resample has two different points."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RankCheck:
    """How well a first score ranks a second one."""

    num_points: int
    spearman: Coefficient
    kendall: Coefficient
    p_value: float
    """Chance of a Spearman's coefficient at least this high if the first score said nothing."""


def check_ranks(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> RankCheck | None:
    """Compare two scores of the same points; None where either is the same for all of them, or there are under two."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"both scores must be of the same points, but got {len(first)} and {len(second)}")
    if len(x) < 2 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    random = np.random.default_rng(seed)
    places = random.integers(0, len(x), (_RESAMPLES, len(x)))
    coefficients = []
    for measure in (measure_spearman, measure_kendall):
        drawn = measure(x[places], y[places])
        known = drawn[np.isfinite(drawn)]
        edges = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known.size else (None, None)
        value = float(measure(x[None], y[None])[0])
        coefficients.append(Coefficient(value, *(None if edge is None else float(edge) for edge in edges)))
    return RankCheck(len(x), coefficients[0], coefficients[1], _test(x, y, coefficients[0].value, random))


def measure_spearman(x: Rows, y: Rows) -> Rows:
    """Return Spearman's coefficient of each row of two arrays (rows, points), NaN where a row is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y)]
    return _divide((ranks[0] * ranks[1]).sum(1), np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1)))


def measure_kendall(x: Rows, y: Rows) -> Rows:
    """Return Kendall's tau-b of each row of two arrays (rows, points), NaN where a row is constant."""
    first, second = np.triu_indices(x.shape[1], 1)
    signs = [np.sign(values[:, first] - values[:, second]) for values in (x, y)]
    pairs = [np.abs(sign).sum(1) for sign in signs]
    return _divide((signs[0] * signs[1]).sum(1), np.sqrt(pairs[0] * pairs[1]))


def least_p(num_points: int) -> float:
    """Return the smallest p-value that this many points can have: that of one order among all."""
    return 1 / math.factorial(num_points)


def _test(x: Rows, y: Rows, found: float, random: np.random.Generator) -> float:
    if len(x) <= _EXACT_UP_TO:
        orders = np.array(list(itertools.permutations(range(len(x)))))
        values = measure_spearman(np.broadcast_to(x, orders.shape), y[orders])
        return float((values >= found - 1e-12).mean())
    orders = random.permuted(np.broadcast_to(np.arange(len(x)), (_RESAMPLES, len(x))), axis=1)
    values = measure_spearman(np.broadcast_to(x, orders.shape), y[orders])
    return float(((values >= found - 1e-12).sum() + 1) / (_RESAMPLES + 1))


def _divide(numerator: Any, denominator: Any) -> Rows:
    quotient: Rows = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) > 0)
    return quotient
