"""May the subset's ranking be believed? One sentence, from finalists' scores on the subset and on more data.

Pure: `finalists.py` has the numbers, `cityopt trust` and the report print what is found here. The verdicts, in the
order in which they are tried:

    too few points       no order of so few points could pass the test, or they agree and are too few to prove it
    add seeds            what lies between the finalists on more data is no more than seeds make
    believe              the subset's scores rank the finalists as more data does (permutation test at `ALPHA`)
    more epochs          they do not, but their ranking got better towards the end of the trials' epochs
    enlarge the subset   they do not, and it did not

Finalists are the best trials, so a ranking is asked of those that are alike: over all trials it would look better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cityopt.search.evidence import Decision, measure_spread
from cityopt.search.ranks import RankCheck, check_ranks, least_p

ALPHA = 0.05
AGREES = 0.5
"""A Spearman's coefficient from which on points that cannot prove it are called too few, not wrong."""
BETTER_LATER = 0.2
"""How much higher Spearman's coefficient must be at the end of the trials' epochs than halfway, for more to help."""

Verdict = Literal["too few points", "add seeds", "believe", "more epochs", "enlarge the subset"]


@dataclass(frozen=True, slots=True)
class Point:
    """A finalist's place in the rank check; scores in the direction of the objective."""

    trial: int
    subset_score: float
    half_score: float | None
    """Best score of the trial in the first half of its epochs."""
    scores: tuple[float, ...]
    """Of its seeds on more data."""

    @property
    def mean(self) -> float:
        """The mean of its seeds on more data."""
        return math.fsum(self.scores) / len(self.scores)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a rank check says."""

    verdict: Verdict
    sentence: str
    points: tuple[Point, ...]
    ranks: RankCheck | None
    noise: float | None
    spread: float | None
    spread_p: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        ranks = self.ranks
        coefficients = {
            name: {"value": it.value, "low": it.low, "high": it.high}
            for name, it in (("spearman", ranks.spearman), ("kendall", ranks.kendall))
        } if ranks else {"spearman": None, "kendall": None}  # fmt: skip
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "num_points": len(self.points),
            **coefficients,
            "p_value": ranks.p_value if ranks else None,
            "seed_noise": self.noise,
            "spread": self.spread,
            "spread_p": self.spread_p,
            "points": [
                {"trial": p.trial, "subset_score": p.subset_score, "mean": p.mean} for p in self.points
            ],
        }  # fmt: skip


def judge_ranking(points: Sequence[Point], decision: Decision, direction: str, *, grown: bool = True) -> Trust:
    """Return the verdict on the subset's ranking.

    `points` are the finalists whose trials are complete; `decision` is that over all finalists, whose seeds all say how
    large the noise is. Where the finalists' images have not `grown`, since there are no more, the verdict is on what
    other seeds make of the same images.
    """
    sign = 1.0 if direction == "maximize" else -1.0
    means = [sign * point.mean for point in points]
    ranks = check_ranks([sign * point.subset_score for point in points], means)
    noise = decision.noise
    spread, spread_p = measure_spread([point.scores for point in points], noise, decision.freedom)
    found = Trust("too few points", "", tuple(points), ranks, noise, spread, spread_p)
    verdict, sentence = _find_verdict(found, _rises(points, means, sign, ranks))
    sentence += "" if grown else " They had the trials' own images, so this speaks of seeds, not of more data."
    return replace(found, verdict=verdict, sentence=sentence)


def _find_verdict(found: Trust, rises: bool) -> tuple[Verdict, str]:
    points, ranks = found.points, found.ranks
    count = f"{len(points)} finalist{'s' * (len(points) != 1)} with a complete trial"
    if least_p(len(points)) > ALPHA:
        return (
            "too few points",
            f"Too few points: {count} cannot show whether the subset's ranking holds; it takes 4 or more, "
            "such as --finalists 5.",
        )
    if found.noise is None or found.spread_p is None:
        return "add seeds", "Add seeds: with one seed each, nobody knows how much of a difference is chance."
    noise = f"seed noise {found.noise:.4f}, spread of the means {found.spread:.4f}"
    if found.spread_p > ALPHA or ranks is None:
        return "add seeds", f"Add seeds: what lies between the finalists may be chance ({noise})."
    numbers = f"Spearman {ranks.spearman.value:.2f}, p {ranks.p_value:.3f}, {count}; {noise}"
    if ranks.p_value <= ALPHA:
        return "believe", f"Believe the subset's ranking: more data ranks the finalists as it did ({numbers})."
    if ranks.spearman.value >= AGREES:
        return (
            "too few points",
            f"Too few points: the rankings agree, but may do so by chance ({numbers}). Add finalists.",
        )
    if rises:
        return (
            "more epochs",
            f"Don't believe the subset's ranking: give its trials more epochs, which bring it nearer ({numbers}).",
        )
    return "enlarge the subset", f"Don't believe the subset's ranking: enlarge the subset ({numbers})."


def _rises(points: Sequence[Point], means: Sequence[float], sign: float, ranks: RankCheck | None) -> bool:
    """Say whether the trials' ranking came nearer to that on more data in the second half of their epochs."""
    halves = [point.half_score for point in points]
    if ranks is None or any(half is None for half in halves):
        return False
    before = check_ranks([sign * half for half in halves if half is not None], means)
    return before is not None and ranks.spearman.value - before.spearman.value >= BETTER_LATER
