"""What a few seeds say about settings: intervals of their means, the winner, and who ties with it.

Pure numbers, for `finalists.py`. Seeds of all finalists share one variance, estimated from all of them: with two or
three seeds each, a variance of one's own would be worth nothing. A mean's interval is then Student's, of `LEVEL`, with
as many degrees of freedom as there are seeds beyond the first of each finalist; its worse end is the bound that the
winner has the best of. A finalist ties with the leader when that same t says nothing about their difference (no
correction for several comparisons). A tie goes to a cheaper one: to the cheapest whose typical time is `CHEAPER` of the
leader's least time, or less. Times are measured beside other work, and smaller differences come and go with it.

Source: Student's t with a pooled variance, as in Fisher's protected comparisons after an analysis of variance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Of two-sided intervals."""
CHEAPER = 0.8


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds for which a training keeps its device busy, by its fastest epoch and by the median of its epochs."""

    least: float
    typical: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its interval; without any seed beyond the first there is none."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Who wins among finalists, by their places."""

    winner: int
    leader: int
    """Who has the best bound; the winner, unless a cheaper one ties with it."""
    tied: tuple[int, ...]
    """Those that the seeds do not tell from the leader, without it."""
    intervals: tuple[Interval, ...]
    noise: float | None
    """Standard deviation of one training's score from seed to seed; None where nobody has two seeds."""
    spread: float | None
    """Standard deviation of the finalists' means; None of a single one."""
    spread_p: float | None
    """Chance of means as far apart as these if all finalists were equal; None where it cannot be known."""
    freedom: int = 0
    """Degrees of freedom of the noise."""


def decide(scores: Sequence[Sequence[float]], costs: Sequence[Cost], direction: str) -> Decision:
    """Return the winner among finalists, each given with its seeds' scores (one or more) and the cost of a training.

    Of equal bounds the earlier one leads. Raises ValueError: no finalist, or one without a score.
    """
    if not scores or not all(scores):
        raise ValueError(f"a decision needs finalists that have scores, but got {scores!r}")
    noise, freedom = pool_deviation(scores)
    margin = 0.0 if noise is None else noise * find_t(freedom)
    intervals = tuple(_find_interval(values, None if noise is None else margin) for values in scores)
    sign = 1.0 if direction == "maximize" else -1.0
    bounds = [sign * it.mean - margin / math.sqrt(it.num_seeds) for it in intervals]
    leader = max(range(len(scores)), key=lambda place: (bounds[place], -place))
    tied = tuple(
        place
        for place, it in enumerate(intervals)
        if noise is not None and place != leader and _is_tie(it, intervals[leader], margin)
    )
    cheap = [place for place in tied if 0 < costs[place].typical <= CHEAPER * costs[leader].least]
    winner = min(cheap, key=lambda place: (costs[place].typical, -bounds[place], place)) if cheap else leader
    return Decision(winner, leader, tied, intervals, noise, *measure_spread(scores, noise, freedom), freedom)


def pool_deviation(scores: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Return the standard deviation within groups and its degrees of freedom; None and 0 where no group has two."""
    freedom = sum(len(values) - 1 for values in scores)
    if freedom == 0:
        return None, 0
    means = [math.fsum(values) / len(values) for values in scores]
    squares = math.fsum((x - mean) ** 2 for values, mean in zip(scores, means, strict=True) for x in values)
    return math.sqrt(squares / freedom), freedom


def find_t(freedom: int, level: float = LEVEL) -> float:
    """Return the quantile of Student's t that a two-sided interval of `level` reaches to."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _find_interval(values: Sequence[float], margin: float | None) -> Interval:
    mean = math.fsum(values) / len(values)
    if margin is None:
        return Interval(mean, None, None, len(values))
    half = margin / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def _is_tie(one: Interval, other: Interval, margin: float) -> bool:
    return abs(one.mean - other.mean) <= margin * math.sqrt(1 / one.num_seeds + 1 / other.num_seeds)


def measure_spread(
    scores: Sequence[Sequence[float]], noise: float | None, freedom: int
) -> tuple[float | None, float | None]:
    """Return the standard deviation of the means, and the p-value of a one-way analysis of variance.

    The noise may be known from more finalists than these.
    """
    if len(scores) < 2:
        return None, None
    means = [math.fsum(values) / len(values) for values in scores]
    centre = math.fsum(means) / len(means)
    spread = math.sqrt(math.fsum((mean - centre) ** 2 for mean in means) / (len(means) - 1))
    if noise is None:
        return spread, None
    count = sum(map(len, scores))
    grand = math.fsum(x for values in scores for x in values) / count
    between = math.fsum(len(v) * (m - grand) ** 2 for v, m in zip(scores, means, strict=True)) / (len(scores) - 1)
    if noise == 0:
        return spread, 1.0 if between == 0 else 0.0
    from scipy.stats import f

    return spread, float(f.sf(between / noise**2, len(scores) - 1, freedom))
