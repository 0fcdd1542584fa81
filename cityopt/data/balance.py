"""Which images an epoch sees: each once, or those with rare classes more often.

Stands between the facts of a training's images and its loader. Repeat factors (LVIS): a class that a share f of the
images shows, with f below the threshold t, is worth sqrt(t / f); an image is worth as much as its rarest class, at
least 1.
An epoch keeps its length, so that steps, schedule and cost stay those of uniform sampling: the n images of an epoch are
drawn in proportion to their worth, each floor or ceil of its expected number of times.

Shapes: N images, C classes.

Source: Gupta et al., LVIS (arXiv 1908.03195), appendix B.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cityopt.config import Task
from cityopt.data.cityscapes import FrameFacts
from cityopt.labels import VOID


def weigh_images(frames: Sequence[FrameFacts], task: Task, threshold: float) -> NDArray[np.float64]:
    """Return the worth (N,) of images: ones where `threshold` is 0."""
    shown = np.zeros((len(frames), VOID), dtype=bool)
    for row, frame in zip(shown, frames, strict=True):
        row[list(frame.list_classes(task))] = True
    return repeat_factors(shown, threshold)


def repeat_factors(shown: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """Return the repeat factor (N,) of images, given which classes they show, (N, C)."""
    share = shown.mean(axis=0)
    by_class = np.sqrt(np.maximum(threshold / np.maximum(share, 1 / len(shown)), 1.0))
    factors: NDArray[np.float64] = np.where(shown, by_class, 1.0).max(axis=1, initial=1.0)
    return factors


def draw_images(weights: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return N image numbers in random order; an image of weight w comes floor or ceil of N w / sum of w times."""
    num_images = len(weights)
    if (weights == weights[:1]).all():
        return rng.permutation(num_images)
    edges = np.cumsum(weights) * (num_images / weights.sum())
    edges[-1] = num_images
    points = np.arange(num_images) + rng.random()
    return rng.permutation(np.searchsorted(edges, points, side="right").clip(max=num_images - 1))
