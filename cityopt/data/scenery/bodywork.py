"""Pieces that several vehicles share: glass, lamps, wheels, bars and window bands on a side.

Between sculpting and the vehicles (cars, lorries). Sides are given for x > 0; sculpting mirrors them.
"""

from collections.abc import Sequence

from cityopt.data.scenery.sculpting import Decal, Rectangle, Sculptor
from cityopt.data.scenery.view import Color, Vec, mix

GLASS: Color = (34, 44, 56)
SKY_ON_GLASS: Color = (126, 150, 172)
TRIM: Color = (38, 39, 43)
HEADLIGHT: Color = (250, 248, 232)
TAILLIGHT: Color = (206, 24, 26)
PLATE: Color = (238, 238, 230)
_OCTAGON = ((1.0, 0.0), (0.8, 0.6), (0.31, 0.95), (-0.31, 0.95), (-0.8, 0.6), (-1.0, 0.0), (-0.8, -0.6),
            (-0.31, -0.95), (0.31, -0.95), (0.8, -0.6))  # fmt: skip


def mount_wheels(sculptor: Sculptor, half: float, axles: Sequence[float], radius: float) -> None:
    """Put the far wheels first, so that the near ones cover them."""
    nearer = sculptor.pose.place([(half, 0.0, 0.0), (-half, 0.0, 0.0)])
    signs = (-1, 1) if nearer[0][2] <= nearer[1][2] else (1, -1)
    for sign in signs:
        for z in axles:
            sculptor.wheel(sign * half, z, radius)


def paint_wheels(sculptor: Sculptor, half: float, z: float) -> None:
    """Paint a wheel and its hub onto both sides, flush with a body that covers the mounted ones."""
    for sign in (1, -1):
        ring = [(sign * x, y, at) for x, y, at in side_disc(half, z, 0.48, 0.5)]
        hub = [(sign * x, y, at) for x, y, at in side_disc(half, z, 0.26, 0.5)]
        sculptor.face(ring, (0.0, 0.5, z), (28, 28, 31), [(hub, (150, 152, 156))])


def side_bar(half: float, z: float, low: float, high: float, reach: float) -> list[Vec]:
    """Outline a rectangle on the side: `reach` metres to both sides of z, from `low` to `high`."""
    return [(half, low, z - reach), (half, low, z + reach), (half, high, z + reach), (half, high, z - reach)]


def side_disc(half: float, z: float, radius: float, middle: float = 0.33) -> list[Vec]:
    """Outline a disc on the side at height `middle`, cut off at the sill."""
    return [(half, max(0.24, middle + radius * b), z + radius * a) for a, b in _OCTAGON]


def window_row(half: float, back: float, front: float, low: float, high: float, count: int) -> list[Decal]:
    """Lay a dark band with `count` panes along the side, brighter at their tops, where the sky is mirrored."""
    pitch = (front - back) / count
    band: Decal = (side_bar(half, (front + back) / 2, low - 0.06, high + 0.06, (front - back) / 2), (28, 30, 34))
    panes: list[Decal] = []
    for i in range(count):
        z = back + pitch * (i + 0.5)
        panes.append((side_bar(half, z, low, high, pitch * 0.44), mix(GLASS, SKY_ON_GLASS, 0.25)))
        panes.append((side_bar(half, z, high - 0.4, high, pitch * 0.44), mix(GLASS, SKY_ON_GLASS, 0.7)))
    return [band, *panes]


def flipped(
    rectangles: Sequence[Rectangle],
) -> list[Rectangle]:
    """Turn rectangles upside down: the faces behind run from top to bottom."""
    return [(left, 1 - top, right, 1 - bottom, color) for left, bottom, right, top, color in rectangles]
