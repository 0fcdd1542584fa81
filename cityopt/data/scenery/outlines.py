"""Polygons with whole coordinates, as annotators draw them: traced from a mask, thinned out, or clipped to the image.

Used by canvas for each labelled object and by synthetic for the coarse annotations. Coordinates are pixel
centres, (x, y), because PIL's polygon fill includes the pixels that the outline runs through.
"""

from collections.abc import Sequence

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray

from cityopt.data.scenery.view import Point

Polygon = list[tuple[int, int]]


def trace_outline(mask_HW: NDArray[np.bool_], tolerance_px: float = 0.6) -> Polygon:
    """Trace the largest part of a mask as one polygon through its border pixels; see `trace_outlines`."""
    return next(iter(trace_outlines(mask_HW, tolerance_px)), [])


def trace_outlines(mask_HW: NDArray[np.bool_], tolerance_px: float = 0.6) -> list[Polygon]:
    """Trace each part of a mask as a polygon through its border pixels, the largest first.

    Holes are filled, as annotators do with the wheels of a bicycle. `tolerance_px` is about how far a polygon may
    leave the border. Parts of fewer than three corners are left out, so an empty mask gives an empty list.
    """
    padded = np.zeros((mask_HW.shape[0] + 2, mask_HW.shape[1] + 2), dtype=np.float32)
    padded[1:-1, 1:-1] = mask_HW
    # A level just below 1 puts the line onto the border pixels instead of half a pixel outside.
    lines = contour_generator(z=padded, line_type=LineType.Separate).lines(0.98)
    rounded = [np.rint(line).astype(np.int64)[:-1] - 1 for line in lines if isinstance(line, np.ndarray)]
    # Borders of holes run the other way round.
    outer = sorted((line for line in rounded if _area(line) >= 0), key=_area, reverse=True)
    thinned = [_thin(line, tolerance_px) for line in outer]
    return [[(int(x), int(y)) for x, y in line] for line in thinned if len(line) >= 3]


def clip_outline(points: list[Point], height: int, width: int) -> Polygon:
    """Clip a convex polygon to the image and round it; outside the image it becomes empty."""
    for axis, limit, sign in ((0, 0.0, 1), (0, width - 1.0, -1), (1, 0.0, 1), (1, height - 1.0, -1)):
        points = _clip_side(points, axis, limit, sign)
    rounded = [(round(x), round(y)) for x, y in points]
    distinct = [point for i, point in enumerate(rounded) if point != rounded[i - 1]]
    return distinct if len(distinct) >= 3 else []


def hull(points: Sequence[Point]) -> list[Point]:
    """Compute the convex hull of a few points."""
    ordered = sorted(points)
    halves: list[Point] = []
    for sequence in (ordered, ordered[::-1]):
        chain: list[Point] = []
        for p in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], p) <= 0:
                chain.pop()
            chain.append(p)
        halves += chain[:-1]
    return halves


def _turn(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _clip_side(points: list[Point], axis: int, limit: float, sign: int) -> list[Point]:
    kept: list[Point] = []
    for i, here in enumerate(points):
        before = points[i - 1]
        a, b = sign * (before[axis] - limit), sign * (here[axis] - limit)
        if (a < 0) != (b < 0):
            t = a / (a - b)
            kept.append((before[0] + t * (here[0] - before[0]), before[1] + t * (here[1] - before[1])))
        if b >= 0:
            kept.append(here)
    return kept


def _area(line_N2: NDArray[np.int64]) -> float:
    x, y = line_N2[:, 0], line_N2[:, 1]
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1]) / 2


def _thin(line_N2: NDArray[np.int64], tolerance_px: float) -> NDArray[np.int64]:
    """Drop corners whose triangle with both neighbours is thin, never two neighbours in one pass."""
    for first in (1, 2, 1, 2, 1, 2, 1, 2):
        if len(line_N2) <= 8:
            break
        x, y = line_N2[:, 0], line_N2[:, 1]
        # Every second corner, so that a dropped one's neighbours stay; the first corner always does.
        middle = slice(first, len(line_N2) - 1, 2)
        before, after = slice(first - 1, len(line_N2) - 2, 2), slice(first + 1, None, 2)
        base_x, base_y = x[after] - x[before], y[after] - y[before]
        twice_area = np.abs(base_x * (y[middle] - y[before]) - base_y * (x[middle] - x[before]))
        keep = np.ones(len(line_N2), dtype=bool)
        keep[middle] = twice_area >= tolerance_px * np.maximum(np.hypot(base_x, base_y), 1e-9)
        line_N2 = line_N2[keep]
    return line_N2
