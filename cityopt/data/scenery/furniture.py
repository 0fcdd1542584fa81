"""What lines the kerbs: trees, bushes, street lamps, traffic signs and traffic lights.

Upright cut-outs, as in figures. Each builder returns a sprite, or a pole and what hangs on it.
"""

import math
import random
from collections.abc import Sequence

from cityopt.data.scenery.canvas import Part, Sprite, Stage
from cityopt.data.scenery.figures import Plane, disc, limb
from cityopt.data.scenery.view import Color, Point, jittered, scaled

LEAVES: tuple[Color, ...] = ((66, 96, 40), (84, 112, 48), (56, 88, 50), (104, 118, 52), (128, 112, 46))


def build_tree(stage: Stage, x: float, z: float, size: float = 1.0) -> Sprite:
    """Build a tree: a trunk and a crown of leafy blobs, lit from the sun's side."""
    rng = stage.rng
    plane, leaf = Plane(stage, x, z), jittered(rng.choice(LEAVES), rng)
    crown, reach = rng.uniform(4.2, 6.0) * size, rng.uniform(1.7, 2.6) * size
    parts = [
        plane.shape(
            limb((0.0, 0.0), (rng.uniform(-0.2, 0.2), crown - reach * 0.4), 0.42 * size, 0.22 * size), (74, 60, 48)
        )
    ]
    lobes = [
        (reach * 0.55 * math.cos(a), crown + reach * 0.6 * math.sin(a), reach * rng.uniform(0.5, 0.72))
        for a in (0.2, 1.2, 2.1, 3.0, 4.1, 5.3)
    ]
    return Sprite("vegetation", z, parts + _foliage(plane, lobes, leaf, 34), (1.16, 0.80))


def build_bush(stage: Stage, x: float, z: float, size: float) -> Sprite:
    """Build a bush of about `size` metres in height."""
    rng = stage.rng
    plane, leaf = Plane(stage, x, z), jittered(rng.choice(LEAVES), rng)
    lobes = [
        (rng.uniform(-0.5, 0.5) * size, size * rng.uniform(0.35, 0.6), size * rng.uniform(0.4, 0.55)) for _ in range(4)
    ]
    return Sprite("vegetation", z, _foliage(plane, lobes, leaf, 12), (1.12, 0.78))


def _foliage(plane: Plane, lobes: Sequence[tuple[float, float, float]], leaf: Color, num_tufts: int) -> list[Part]:
    rng = plane.stage.rng
    seen_px = plane.stage.camera.focal * lobes[0][2] / plane.z
    num_tufts = round(num_tufts * min(1.0, seen_px / 60))
    toward = 0.35 if plane.stage.light.sun[0] > 0 else -0.35
    parts = [plane.shape(_blob(s, y, r, rng), scaled(leaf, 0.72)) for s, y, r in lobes]
    parts += [plane.shape(_blob(s + toward * r * 0.5, y + 0.22 * r, r * 0.72, rng), leaf, False) for s, y, r in lobes]
    for _ in range(num_tufts):
        s, y, r = rng.choice(lobes)
        angle, away = rng.uniform(0, 6.28), r * rng.uniform(0.1, 0.85)
        at = (s + away * math.cos(angle), y + away * math.sin(angle))
        bright = 1.0 + 0.34 * math.sin(angle) + rng.uniform(-0.14, 0.14)
        parts.append(plane.shape(_blob(*at, r * rng.uniform(0.12, 0.26), rng, False), scaled(leaf, bright), False))
    return parts


def _blob(s: float, y: float, radius: float, rng: random.Random, ragged: bool = True) -> list[Point]:
    points = []
    for a, b in _CIRCLE if ragged else _TUFT:
        r = radius * (0.82 + 0.30 * rng.random())
        points.append((s + r * a, y + r * b))
    return points


_CIRCLE = disc(0.0, 0.0, 1.0, corners=13)
_TUFT = disc(0.0, 0.0, 1.0, corners=7)


def build_lamp(stage: Stage, x: float, z: float) -> list[Sprite]:
    """Build a street lamp whose arm reaches over the road."""
    plane, toward = Plane(stage, x, z), (-1.0 if x > 0 else 1.0)
    height = stage.rng.uniform(5.5, 7.5)
    metal = jittered((104, 108, 110), stage.rng)
    parts = [
        plane.shape(limb((0.0, 0.0), (0.0, height), 0.20, 0.11), metal),
        plane.shape(limb((0.0, height - 0.05), (toward * 1.5, height + 0.15), 0.09, 0.09), metal),
        plane.shape(limb((toward * 1.3, height + 0.1), (toward * 1.9, height + 0.12), 0.2, 0.14), scaled(metal, 1.4)),
    ]
    return [Sprite("pole", z, parts)]


def build_sign(stage: Stage, x: float, z: float) -> list[Sprite]:
    """Build a traffic sign on its pole: a ring, a triangle, a blue disc, a yellow diamond or a board."""
    plane, rng = Plane(stage, x, z), stage.rng
    pole = Sprite("pole", z, [plane.shape(limb((0.0, 0.0), (0.0, 2.6), 0.10, 0.08), (150, 152, 154))])
    red, white, blue = (196, 32, 36), (238, 238, 236), (34, 84, 168)
    triangle = [(-0.45, 2.1), (0.45, 2.1), (0.0, 2.88)]
    inner = [(-0.27, 2.2), (0.27, 2.2), (0.0, 2.66)]
    diamond = [(-0.45, 2.45), (0.0, 2.0), (0.45, 2.45), (0.0, 2.9)]
    faces: tuple[list[tuple[list[Point], Color]], ...] = (
        [(disc(0.0, 2.45, 0.40), red), (disc(0.0, 2.45, 0.27), white)],
        [(triangle, red), (inner, white)],
        [(disc(0.0, 2.45, 0.40), blue), (limb((-0.16, 2.42), (0.18, 2.5), 0.12, 0.12), white)],
        [(diamond, white), ([(s * 0.72, 2.45 + (y - 2.45) * 0.72) for s, y in diamond], (240, 190, 40))],
        [
            ([(-0.5, 2.0), (0.5, 2.0), (0.5, 2.8), (-0.5, 2.8)], blue),
            ([(-0.36, 2.3), (0.36, 2.3), (0.36, 2.46), (-0.36, 2.46)], white),
        ],
    )
    chosen = rng.choice(faces)
    return [pole, Sprite("traffic sign", z, [plane.shape(points, color) for points, color in chosen], convex=True)]


def build_signal(stage: Stage, x: float, z: float) -> list[Sprite]:
    """Build a traffic light with one lamp lit."""
    plane, lit = Plane(stage, x, z), stage.rng.randrange(3)
    pole = Sprite("pole", z, [plane.shape(limb((0.0, 0.0), (0.0, 3.3), 0.14, 0.12), (96, 98, 100))])
    case = [(-0.2, 2.5), (0.2, 2.5), (0.2, 3.5), (-0.2, 3.5)]
    parts = [plane.shape(case, (28, 30, 30))]
    for i, color in enumerate(((235, 48, 40), (250, 184, 40), (60, 220, 120))):
        parts.append(plane.shape(disc(0.0, 3.33 - 0.33 * i, 0.125), color if i == lit else (58, 58, 58)))
    return [pole, Sprite("traffic light", z, parts, convex=True)]
