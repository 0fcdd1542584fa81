"""Traced, clipped and hull outlines against PIL's own fill and scipy."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import binary_fill_holes
from scipy.spatial import ConvexHull

from cityopt.data.scenery.outlines import Polygon, clip_outline, hull, trace_outline, trace_outlines


def fill(polygon: Polygon, height: int, width: int) -> np.ndarray:
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image).astype(bool)


def blob(seed: int, side: int = 64) -> np.ndarray:
    """Grow one connected blob with holes: a disc with a wavy border and a hole."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    border = 20 + sum(rng.uniform(-3, 3) * np.cos(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5))
    return (radius < border) & (radius > 5)


@pytest.mark.parametrize("seed", range(5))
def test_trace_outline_fills_to_the_mask_without_its_hole_when_nothing_is_thinned(seed: int) -> None:
    mask = blob(seed)
    assert np.array_equal(fill(trace_outline(mask, 0.0), 64, 64), binary_fill_holes(mask))


@pytest.mark.parametrize("seed", range(5))
def test_trace_outline_stays_near_the_mask_with_fewer_corners_when_thinned(seed: int) -> None:
    mask = binary_fill_holes(blob(seed))
    exact, thinned = trace_outline(mask, 0.0), trace_outline(mask, 1.0)
    filled = fill(thinned, 64, 64)
    assert len(thinned) < len(exact) / 2
    assert (filled & mask).sum() / (filled | mask).sum() > 0.93


def test_trace_outline_takes_the_largest_part_and_reaches_the_image_border() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[:, 12:] = True
    mask[2:5, 2:5] = True
    assert np.array_equal(fill(trace_outline(mask), 20, 30), np.arange(30)[None] + np.zeros((20, 1)) >= 12)


def test_trace_outline_of_nothing_is_empty() -> None:
    assert trace_outline(np.zeros((8, 8), dtype=bool)) == []


def test_clip_outline_keeps_what_lies_inside_and_drops_what_does_not() -> None:
    assert sorted(clip_outline([(-10.0, -10.0), (50.0, -10.0), (50.0, 5.0), (-10.0, 5.0)], 20, 30)) == [
        (0, 0), (0, 5), (29, 0), (29, 5),
    ]  # fmt: skip
    assert clip_outline([(40.0, 1.0), (50.0, 1.0), (45.0, 9.0)], 20, 30) == []


def test_clip_outline_fills_as_the_unclipped_polygon_does() -> None:
    triangle = [(-8, 3), (40, -6), (21, 34)]
    clipped = fill(clip_outline([(float(x), float(y)) for x, y in triangle], 20, 30), 20, 30)
    whole = fill(triangle, 20, 30)
    assert (clipped ^ whole).sum() <= 0.03 * whole.sum()  # the new corners are rounded


def test_hull_equals_scipys() -> None:
    points = np.random.default_rng(3).normal(size=(40, 2))
    expected = points[ConvexHull(points).vertices]
    assert sorted(hull([(float(x), float(y)) for x, y in points])) == sorted(map(tuple, expected.tolist()))


def test_trace_outlines_gives_every_part_largest_first_and_no_hole() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[5:30, 5:30] = True
    mask[10:20, 10:20] = False
    mask[32:38, 40:55] = True
    parts = trace_outlines(mask, 0.0)
    assert [fill(part, 40, 60).sum() for part in parts] == [25 * 25, 6 * 15]
