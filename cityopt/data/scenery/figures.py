"""People, riders, motorcycles and bicycles as jointed cut-outs that stand upright in the scene.

A cut-out lives in a plane: s metres along it, y metres up. `Plane` turns the plane about the vertical, so that
a bicycle at an angle is foreshortened. Each builder returns sprites ordered from back to front.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cityopt.data.scenery.canvas import Part, Sprite, Stage
from cityopt.data.scenery.view import Color, Point, jittered, scaled

SKINS: tuple[Color, ...] = ((236, 196, 168), (222, 176, 142), (188, 138, 104), (128, 88, 62), (92, 62, 44))
HAIRS: tuple[Color, ...] = ((40, 30, 24), (84, 58, 36), (160, 124, 70), (120, 116, 112), (28, 24, 24))
TOPS: tuple[Color, ...] = (
    (186, 44, 48), (42, 74, 140), (232, 232, 226), (34, 36, 42), (72, 116, 76), (226, 172, 54),
    (120, 70, 130), (70, 140, 170), (212, 120, 60), (120, 110, 96),
)  # fmt: skip
TROUSERS: tuple[Color, ...] = ((44, 56, 86), (34, 34, 40), (96, 88, 78), (60, 70, 96), (150, 134, 108))
HELMETS: tuple[Color, ...] = ((238, 238, 236), (200, 40, 40), (40, 40, 44), (240, 190, 40), (60, 120, 190))
CYCLES: tuple[Color, ...] = ((40, 40, 44), (170, 40, 44), (40, 90, 150), (60, 130, 90), (220, 220, 216), (226, 150, 40))
TYRE: Color = (26, 26, 28)


@dataclass(frozen=True, slots=True)
class Plane:
    """An upright plane at (x, z); `cos` and `sin` say how its s axis runs to the right and away from the camera."""

    stage: Stage
    x: float
    z: float
    cos: float = 1.0
    sin: float = 0.0
    size: float = 1.0

    def shape(self, points: Sequence[Point], color: Color | None, solid: bool = True) -> Part:
        """Project a polygon of (s, y) corners and fade its colour with the distance."""
        size, camera = self.size, self.stage.camera
        right, away = size * self.cos, size * self.sin
        outline = camera.outline([(self.x + s * right, y * size, self.z + s * away) for s, y in points])
        return Part(outline, None if color is None else self.lit(color), solid)

    def lit(self, color: Color) -> Color:
        """Light a colour as on a surface that half faces the camera."""
        light = self.stage.light
        factor = light.ambient + light.sun_strength * (0.35 - 0.25 * light.sun[2])
        return (*light.hazed(scaled(color, factor), self.z), *color[3:])


def disc(s: float, y: float, radius: float, high: float | None = None, corners: int = 14) -> list[Point]:
    """Outline a disc, or an ellipse of half height `high`."""
    tall = radius if high is None else high
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(s + radius * math.cos(a), y + tall * math.sin(a)) for a in angles]


def limb(a: Point, b: Point, width_a: float, width_b: float) -> list[Point]:
    """Outline a tapered bar from a to b with these widths at its ends."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / length / 2, dx / length / 2
    return [
        (a[0] + nx * width_a, a[1] + ny * width_a), (b[0] + nx * width_b, b[1] + ny * width_b),
        (b[0] - nx * width_b, b[1] - ny * width_b), (a[0] - nx * width_a, a[1] - ny * width_a),
    ]  # fmt: skip


def ring(s: float, y: float, outer: float, inner: float) -> list[Point]:
    """Outline a ring as one polygon with a seam."""
    out, hole = disc(s, y, outer, corners=18), disc(s, y, inner, corners=18)
    return [*out, out[0], hole[0], *reversed(hole)]


def person_parts(plane: Plane) -> list[Part]:
    """Paint a walking or standing person of 1.75 m (before `plane.size`)."""
    rng = plane.stage.rng
    top, trousers = jittered(rng.choice(TOPS), rng), jittered(rng.choice(TROUSERS), rng)
    skin, hair = rng.choice(SKINS), rng.choice(HAIRS)
    stride, wide = rng.choice((0.04, 0.12, 0.22)), rng.uniform(0.9, 1.12)
    hip, shoulder = 0.88, 1.44
    parts = [
        _leg(plane, -0.07, -stride, hip, scaled(trousers, 0.8)),
        *_arm(plane, -0.2 * wide, -stride, scaled(top, 0.8), skin),
    ]
    parts += [_leg(plane, 0.07, stride, hip, trousers)]
    parts += [plane.shape(disc(s + 0.05, 0.05, 0.13, 0.055), (40, 34, 32)) for s in (-0.07 - stride, 0.07 + stride)]
    torso = [(-0.2 * wide, shoulder), (-0.1, 1.50), (0.1, 1.50), (0.2 * wide, shoulder), (0.17 * wide, 1.1)]
    hem = 0.62 if rng.random() < 0.3 else 0.84
    torso += [(0.19 * wide, hem), (-0.19 * wide, hem), (-0.17 * wide, 1.1)]
    parts.append(plane.shape(torso, top))
    parts.append(
        plane.shape(
            [(0.02, 1.49), (0.2 * wide, shoulder), (0.17 * wide, 1.1), (0.19 * wide, hem), (0.06, hem)],
            (*scaled(top, 0.6), 90),
            False,
        )
    )
    parts += _arm(plane, 0.2 * wide, stride * 0.8, top, skin)
    parts += _head(plane, 0.0, 1.62, skin, hair)
    if rng.random() < 0.35:
        side = rng.choice((-1, 1))
        bag = jittered(rng.choice(TOPS), rng)
        parts.append(
            plane.shape([(side * 0.18, 1.36), (side * 0.36, 1.30), (side * 0.36, 0.92), (side * 0.18, 0.94)], bag)
        )
    return parts


def _leg(plane: Plane, hip_s: float, swing: float, hip: float, color: Color) -> Part:
    return plane.shape(limb((hip_s, hip), (hip_s + swing, 0.05), 0.21, 0.12), color)


def _arm(plane: Plane, s: float, swing: float, color: Color, skin: Color) -> list[Part]:
    hand = (s * 1.25 + swing * 0.7, 0.88)
    return [
        plane.shape(limb((s * 0.95, 1.42), hand, 0.13, 0.09), scaled(color, 0.92)),
        plane.shape(disc(*hand, 0.055, corners=8), skin),
    ]


def _head(plane: Plane, s: float, y: float, skin: Color, hair: Color) -> list[Part]:
    crown = [
        (s - 0.115, y),
        (s - 0.10, y + 0.10),
        (s, y + 0.155),
        (s + 0.10, y + 0.10),
        (s + 0.115, y),
        (s + 0.04, y + 0.05),
        (s - 0.06, y + 0.04),
    ]
    neck = limb((s, y - 0.05), (s, y - 0.18), 0.11, 0.13)
    return [plane.shape(neck, scaled(skin, 0.8)), plane.shape(disc(s, y, 0.10, 0.135), skin), plane.shape(crown, hair)]


def build_person(stage: Stage, x: float, z: float, size: float = 1.0) -> Sprite:
    """Build one pedestrian; a `size` of 0.65 is a child."""
    return Sprite("person", z, person_parts(Plane(stage, x, z, stage.rng.choice((-1.0, 1.0)), 0.0, size)), (1.10, 0.86))


def build_bicycle(stage: Stage, x: float, z: float, turn: float, ridden: bool) -> list[Sprite]:
    """Build a bicycle seen from the side, turned by `turn` radians, with a rider as a second sprite if `ridden`."""
    plane = Plane(stage, x, z, math.cos(turn), math.sin(turn))
    frame = jittered(stage.rng.choice(CYCLES), stage.rng)
    parts: list[Part] = []
    for s in (-0.53, 0.53):
        parts.append(plane.shape(disc(s, 0.34, 0.35), (150, 152, 154, 90)))
        for c, d in ((0.3, 0.0), (0.15, 0.26), (-0.15, 0.26)):
            spoke = limb((s + c, 0.34 + d), (s - c, 0.34 - d), 0.014, 0.014)
            parts.append(plane.shape(spoke, (190, 192, 196), False))
        parts.append(plane.shape(ring(s, 0.34, 0.36, 0.295), TYRE))
    crank, seat, head, hub0, hub1 = (-0.05, 0.30), (-0.20, 0.84), (0.36, 0.86), (-0.53, 0.34), (0.53, 0.34)
    parts.append(plane.shape([seat, head, crank], None))
    for a, b in ((crank, seat), (seat, head), (head, crank), (crank, hub0), (hub0, (-0.17, 0.76)), (head, hub1)):
        parts.append(plane.shape(limb(a, b, 0.055, 0.055), frame))
    parts.append(plane.shape(limb(head, (0.33, 1.02), 0.05, 0.05), frame))
    parts.append(plane.shape(limb((0.22, 1.05), (0.46, 1.0), 0.055, 0.055), TYRE))
    parts.append(plane.shape(limb(seat, (-0.23, 0.96), 0.045, 0.045), TYRE))
    parts.append(plane.shape(limb((-0.38, 0.98), (-0.08, 0.96), 0.10, 0.05), TYRE))
    bike = Sprite("bicycle", z, parts, (1.05, 0.9))
    return (
        [bike, _rider(plane, (-0.22, 0.98), (0.34, 1.04), (-0.02, 0.18), stage.rng.random() < 0.5)]
        if ridden
        else [bike]
    )


def build_motorcycle(stage: Stage, x: float, z: float, turn: float, ridden: bool) -> list[Sprite]:
    """Build a motorcycle or scooter seen from the side: fat wheels, tank, engine, exhaust, fairing and seat."""
    plane = Plane(stage, x, z, math.cos(turn), math.sin(turn))
    paint = jittered(stage.rng.choice(CYCLES[1:]), stage.rng)
    parts: list[Part] = []
    for s in (-0.72, 0.74):
        parts.append(plane.shape(disc(s, 0.33, 0.34, corners=18), TYRE))
        parts.append(plane.shape(disc(s, 0.33, 0.19), (120, 122, 126), False))
        parts.append(plane.shape(disc(s, 0.33, 0.08), (54, 54, 58), False))
    engine = [(-0.42, 0.28), (0.34, 0.26), (0.42, 0.62), (-0.36, 0.66)]
    parts.append(plane.shape(engine, (66, 66, 72)))
    parts += [
        plane.shape(limb((0.0 + d, 0.32), (0.12 + d, 0.56), 0.05, 0.05), (148, 150, 154), False)
        for d in (-0.2, -0.05, 0.1)
    ]
    parts.append(plane.shape(limb((-0.1, 0.30), (-0.98, 0.40), 0.09, 0.13), (176, 178, 182)))
    parts.append(plane.shape(limb((0.74, 0.33), (0.44, 0.98), 0.09, 0.10), (130, 132, 136)))
    parts.append(plane.shape([(-1.0, 0.72), (-0.9, 0.92), (-0.3, 0.80), (0.1, 0.62), (-0.4, 0.55)], paint))
    parts.append(plane.shape([(-0.92, 0.90), (-0.25, 0.82), (-0.05, 0.84), (-0.3, 0.92), (-0.8, 0.98)], TYRE))
    parts.append(
        plane.shape([(-0.12, 0.66), (-0.10, 0.90), (0.14, 1.02), (0.40, 0.94), (0.50, 0.62), (0.2, 0.56)], paint)
    )
    parts.append(
        plane.shape([(0.40, 0.66), (0.42, 1.04), (0.58, 1.16), (0.72, 0.86), (0.6, 0.62)], scaled(paint, 0.85))
    )
    parts.append(plane.shape([(0.46, 1.06), (0.52, 1.32), (0.62, 1.14)], (150, 170, 186)))
    parts.append(plane.shape(disc(0.70, 0.92, 0.07, corners=10), (255, 250, 224)))
    parts.append(plane.shape(limb((0.28, 1.10), (0.50, 1.04), 0.06, 0.06), TYRE))
    parts.append(plane.shape(disc(-0.98, 0.80, 0.05, corners=8), (210, 30, 30)))
    machine = Sprite("motorcycle", z, parts, (1.06, 0.88))
    return [machine, _rider(plane, (-0.3, 0.94), (0.36, 1.08), (-0.05, 0.32), True)] if ridden else [machine]


def _rider(plane: Plane, seat: Point, grip: Point, pedal: Point, helmet: bool) -> Sprite:
    """Seat a rider: bent legs, leaning torso, arms to the bar."""
    rng = plane.stage.rng
    top, trousers, skin = jittered(rng.choice(TOPS), rng), jittered(rng.choice(TROUSERS), rng), rng.choice(SKINS)
    lean = rng.uniform(0.16, 0.36)
    neck = (seat[0] + lean, seat[1] + 0.56)
    parts: list[Part] = []
    for reach, shade in ((-0.10, 0.75), (0.10, 1.0)):
        knee = (seat[0] + 0.42 + reach * 0.5, seat[1] - 0.24 + reach)
        foot = (pedal[0] + reach, pedal[1] + reach * 0.9)
        parts.append(plane.shape(limb(seat, knee, 0.20, 0.15), scaled(trousers, shade)))
        parts.append(plane.shape(limb(knee, foot, 0.14, 0.10), scaled(trousers, shade * 0.95)))
        parts.append(
            plane.shape(limb((foot[0] - 0.07, foot[1]), (foot[0] + 0.16, foot[1] - 0.02), 0.09, 0.07), (36, 32, 32))
        )
    parts.append(plane.shape(limb((seat[0], seat[1] - 0.06), neck, 0.30, 0.32), top))
    parts.append(plane.shape(disc(neck[0], neck[1] - 0.02, 0.16, 0.10), top))
    elbow = ((neck[0] + grip[0]) / 2 + 0.02, (neck[1] + grip[1]) / 2 - 0.14)
    parts.append(plane.shape(limb((neck[0], neck[1] - 0.05), elbow, 0.14, 0.11), scaled(top, 0.85)))
    parts.append(plane.shape(limb(elbow, grip, 0.11, 0.08), scaled(top, 0.9)))
    parts.append(plane.shape(disc(*grip, 0.055, corners=8), skin))
    parts += _head(plane, neck[0] + 0.07, neck[1] + 0.2, skin, rng.choice(HELMETS if helmet else HAIRS))
    if helmet:
        parts.append(plane.shape(disc(neck[0] + 0.06, neck[1] + 0.26, 0.135, 0.11), rng.choice(HELMETS)))
    return Sprite("rider", plane.z, parts, (1.10, 0.90))


def build_person_group(stage: Stage, x: float, z: float) -> Sprite:
    """Build a crowd that nobody could tell apart, as one group region."""
    rng = stage.rng
    places = sorted(
        ((x + rng.uniform(-1.6, 1.6), z + rng.uniform(-1.5, 1.5)) for _ in range(rng.randint(6, 9))),
        key=lambda p: -p[1],
    )
    parts = [
        part for px, pz in places for part in person_parts(Plane(stage, px, pz, 1.0, 0.0, rng.uniform(0.88, 1.06)))
    ]
    return Sprite("persongroup", z, parts)


def build_bicycle_group(stage: Stage, x: float, z: float) -> Sprite:
    """Build a rack of parked bicycles as one group region."""
    turn = stage.rng.uniform(-0.5, 0.5)
    bikes = [build_bicycle(stage, x + 0.45 * i, z - 0.25 * i, turn, False)[0] for i in range(stage.rng.randint(4, 6))]
    return Sprite("bicyclegroup", z - 0.8, [part for bike in bikes for part in bike.parts], (1.05, 0.9))
