"""Is one model better than another on the same images, or only luckier? Pure functions on arrays, image by image.

Two questions, each over images, since objects of one image are no independent witnesses:
- of a mean of per-image scores: Wilcoxon's signed ranks, and a bootstrap of the mean difference;
- of a score of all images together, such as an AP, which is no mean: a bootstrap that draws images with replacement
  and lets both models have the same ones.

A p-value here is two-sided. Shapes: N images, B draws.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 15; Wilcoxon, 1945.
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


@dataclass(frozen=True)
class PairedDifference:
    """How much higher the second of two models scores; NaN where there is nothing to compare."""

    difference: float
    low: float
    high: float
    """Ends of the bootstrap's 95 % interval."""
    p_bootstrap: float
    p_wilcoxon: float
    """NaN where the score is no mean of images."""
    num_images: int
    """Images that both have a score of."""

    @property
    def verdict(self) -> str:
        """Say `better`, `worse` or `undecided`, by whether the interval leaves zero out."""
        if not self.low * self.high > 0:  # NaN too
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
    if not count:
        return PairedDifference(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    means = np.array([differences[rows].mean() for rows in draw_images(count, draws, seed)])
    return _describe(float(differences.mean()), means, rank_signs(differences), count)


def compare_scores(
    score: Callable[[Ints], tuple[float, float]], num_images: int, *, draws: int = DRAWS, seed: int = 0
) -> PairedDifference:
    """Compare a score of all images together; `score` gives both models' for the images that it is told, some twice."""
    if not num_images:
        return PairedDifference(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
    first, second = score(np.arange(num_images))
    found = np.array([score(rows) for rows in draw_images(num_images, draws, seed)])
    return _describe(second - first, found[:, 1] - found[:, 0], math.nan, num_images)


def draw_images(num_images: int, draws: int, seed: int) -> Ints:
    """Draw images with replacement, `(B, N)` indices."""
    return np.random.default_rng(seed).integers(0, num_images, (draws, num_images))


def rank_signs(differences: Floats) -> float:
    """Return the p-value of Wilcoxon's signed-rank test; 1 where nothing differs."""
    from scipy.stats import wilcoxon

    if not np.any(differences):
        return 1.0
    return float(wilcoxon(differences, zero_method="wilcox", method="auto").pvalue)


def _describe(difference: float, drawn: Floats, p_wilcoxon: float, count: int) -> PairedDifference:
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or math.isnan(difference):
        return PairedDifference(difference, math.nan, math.nan, math.nan, p_wilcoxon, count)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    # Draws that lie beyond zero on the lesser side, one more than there are: a p of 0 would be too sure of itself.
    beyond = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p_bootstrap = float(min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))
    return PairedDifference(difference, float(low), float(high), p_bootstrap, p_wilcoxon, count)
