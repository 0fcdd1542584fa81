"""Is one model better than another on the same images, or only luckier? Pure functions on arrays, image by image.

Two questions, each over images, since objects of one image are no independent witnesses:
- of a mean of per-image scores: Wilcoxon's signed ranks, and a bootstrap of the mean difference;
- of a score of all images together, such as an AP, which is no mean: a bootstrap that draws images with replacement
  and lets both models have the same ones.

Few images make a bootstrap too sure of itself: its spread is too small by sqrt((N - 1) / N), and its tails are those
of a normal distribution. So its percentiles are moved outwards by as much as Student's t lies beyond them, and below
`MIN_IMAGES` nothing is said at all: of less than six images Wilcoxon's test cannot reach 5 % either.

A p-value here is two-sided, and not corrected for the number of comparisons. Shapes: N images, B draws.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 15; Wilcoxon, 1945; Hesterberg,
What Teachers Should Know about the Bootstrap (1411.5279), section 4.5, for the expanded percentiles; Kerby, The Simple
Difference Formula, 2014, for the balance of ranks.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
CONFIDENCE = 0.95
DRAWS = 1000
MIN_IMAGES = 10
"""Below, no interval and no p-value is given."""
_KNOWN_DRAWS = 0.92
"""Share of the draws that must have a score. Of two images 13 % of the draws have none, of three 5 %."""


@dataclass(frozen=True)
class PairedDifference:
    """How much higher the second of two models scores; NaN where there is nothing to compare."""

    difference: float
    low: float
    high: float
    """Ends of the bootstrap's 95 % interval; NaN, as both p, of less than `MIN_IMAGES` images."""
    p_bootstrap: float
    p_wilcoxon: float
    """NaN where the score is no mean of images."""
    num_images: int
    """Images that both have a score of."""
    rank_balance: float = math.nan
    """Wilcoxon's ranks of higher images less those of lower ones, over all: in -1 … 1; NaN where `p_wilcoxon` is."""

    @property
    def verdict(self) -> str:
        """Say `better`, `worse` or `undecided`: the interval leaves zero out, and Wilcoxon's test, if any, agrees."""
        if not self.low * self.high > 0:  # NaN too
            return "undecided"
        if self.p_wilcoxon >= 1 - CONFIDENCE or self.rank_balance * self.difference < 0:
            return "undecided"
        return "better" if self.difference > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, null for what is not known."""
        numbers = {name: None if isinstance(x, float) and math.isnan(x) else x for name, x in asdict(self).items()}
        return {**numbers, "verdict": self.verdict}


def compare_means(first: Floats, second: Floats, *, draws: int = DRAWS, seed: int = 0) -> PairedDifference:
    """Compare the means of two scores `(N,)` of the same images; images without one of them (NaN) are left out."""
    differences = second - first
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if count < MIN_IMAGES:
        return _leave_open(float(differences.mean()) if count else math.nan, count)
    means = np.array([differences[rows].mean() for rows in draw_images(count, draws, seed)])
    low, high, p_bootstrap = _read_draws(means, count)
    p_wilcoxon, balance = rank_signs(differences), balance_ranks(differences)
    return PairedDifference(float(differences.mean()), low, high, p_bootstrap, p_wilcoxon, count, balance)


def compare_scores(
    score: Callable[[Ints], tuple[float, float]], num_images: int, *, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    """Compare a score of all images together; `score` gives both models' for the images that it is told, some twice.

    It gives NaN where images have no such score. Draws of such images are left out; where they are more than a few,
    too little of what counts is in the images, and nothing is said.
    """
    if not num_images:
        return _leave_open(math.nan, 0)
    first, second = score(np.arange(num_images))
    if num_images < MIN_IMAGES or math.isnan(second - first):
        return _leave_open(second - first, num_images)
    found = np.array([score(rows) for rows in draw_images(num_images, draws, seed)])
    low, high, p_bootstrap = _read_draws(found[:, 1] - found[:, 0], num_images)
    return PairedDifference(second - first, low, high, p_bootstrap, math.nan, num_images)


def draw_images(num_images: int, draws: int, seed: int) -> Ints:
    """Draw images with replacement, `(B, N)` indices."""
    return np.random.default_rng(seed).integers(0, num_images, (draws, num_images))


def rank_signs(differences: Floats) -> float:
    """Return the p-value of Wilcoxon's signed-rank test; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences, zero_method="wilcox", method="auto").pvalue)


def balance_ranks(differences: Floats) -> float:
    """Return Wilcoxon's ranks above zero less those below, over the sum of all: in -1 … 1, 0 where nothing differs."""
    from scipy.stats import rankdata

    known = differences[differences != 0]
    if not len(known):
        return 0.0
    ranks = rankdata(np.abs(known))
    return float((ranks * np.sign(known)).sum() / ranks.sum())


def _leave_open(difference: float, count: int) -> PairedDifference:
    return PairedDifference(difference, math.nan, math.nan, math.nan, math.nan, count)


def _read_draws(drawn: Floats, count: int) -> tuple[float, float, float]:
    """Return both ends of the interval and the p-value of drawn differences; NaN where too many draws have none."""
    from scipy.stats import norm, t

    known = drawn[~np.isnan(drawn)]
    if len(known) < _KNOWN_DRAWS * len(drawn):
        return math.nan, math.nan, math.nan
    widening = math.sqrt(count / (count - 1))
    tail = norm.cdf(widening * t.ppf((1 - CONFIDENCE) / 2, count - 1))
    low, high = np.quantile(known, [tail, 1 - tail])
    # Draws that lie beyond zero on the lesser side, one at least: a p of 0 would be too sure of itself.
    beyond = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0))
    share = min(0.5, max(beyond / len(known), 1 / (len(known) + 1)))
    return float(low), float(high), float(2 * t.cdf(norm.ppf(share) / widening, count - 1))
