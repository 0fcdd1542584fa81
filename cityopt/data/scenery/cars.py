"""Cars, caravans and trailers as small three-dimensional models.

Each builder takes the stage and a pose and returns a sprite. Sizes are those of ordinary vehicles in metres.
A side profile runs from the front bottom over the roof to the rear bottom: (z ahead, y up).
"""

from collections.abc import Sequence

from cityopt.data.scenery.bodywork import (
    GLASS,
    HEADLIGHT,
    PLATE,
    SKY_ON_GLASS,
    TAILLIGHT,
    TRIM,
    flipped,
    mount_wheels,
    side_bar,
    side_disc,
)
from cityopt.data.scenery.canvas import Sprite, Stage
from cityopt.data.scenery.sculpting import Decal, Rectangle, Sculptor, Strips, on_quad
from cityopt.data.scenery.view import Color, Pose, Vec, jittered, mix, scaled

CAR_PAINTS: tuple[Color, ...] = (
    (226, 227, 229), (188, 191, 196), (120, 124, 130), (44, 46, 52), (30, 32, 38), (34, 62, 118),
    (150, 28, 32), (196, 44, 40), (38, 84, 74), (112, 98, 82), (58, 104, 160), (206, 170, 60),
)  # fmt: skip
# Per body: length, height, belt line, and the z shares of cowl, roof front, roof rear, rear belt; rear deck height.
CAR_BODIES: tuple[tuple[float, float, float, float, float, float, float, float], ...] = (
    (4.5, 1.45, 0.92, 0.22, 0.06, -0.22, -0.36, 0.94),  # saloon
    (4.0, 1.50, 0.95, 0.26, 0.10, -0.36, -0.46, 0.95),  # hatchback
    (4.7, 1.50, 0.94, 0.22, 0.06, -0.40, -0.48, 0.95),  # estate
    (4.6, 1.75, 1.08, 0.26, 0.12, -0.40, -0.48, 1.08),  # SUV
    (4.9, 1.95, 1.12, 0.38, 0.24, -0.45, -0.49, 1.12),  # van
)


def build_car(stage: Stage, pose: Pose) -> Sprite:
    """Build a car: bonnet, cabin with windows, lamps, wheels and now and then an annotated licence plate."""
    rng = stage.rng
    length, height, belt, cowl, roof0, roof1, rear, deck = rng.choice(CAR_BODIES)
    paint, half = jittered(rng.choice(CAR_PAINTS), rng, 0.08), rng.uniform(0.86, 0.94)
    end = length / 2
    sculptor = Sculptor(stage, pose)
    mount_wheels(sculptor, half, (end * 0.62, -end * 0.60), 0.33 if height < 1.7 else 0.37)
    body = [(end, 0.24), (end, 0.62), (end * 0.92, belt - 0.16), (length * cowl, belt), (length * rear, belt),
            (-end * 0.97, deck - 0.04), (-end, 0.60), (-end, 0.26)]  # fmt: skip
    sculptor.prism(body, [half] * 8, paint, _car_side(half, length, belt), _car_ends(paint))
    cabin = [(length * cowl, belt), (length * roof0, height), (length * roof1, height), (length * rear, belt)]
    roof = half * 0.78
    glass: Color = (*jittered(GLASS, rng),)
    window = [(0.06, 0.12, 0.94, 0.9, glass), (0.06, 0.62, 0.94, 0.9, mix(glass, SKY_ON_GLASS, 0.5))]
    strips: Strips = {
        0: (None, window), 2: (None, flipped(window)),
    }  # fmt: skip
    side_glass = _car_windows(half, roof, cabin, glass)
    sculptor.prism(cabin, [half * 0.97, roof, roof, half * 0.97], paint, side_glass, strips)
    sprite = Sprite("car", pose.z, sculptor.parts, (1.10, 0.84))
    if rng.random() < 0.35 and pose.z < 22:
        sprite.plates.append(_plate_outline(stage, pose, end))
    return sprite


def _car_side(half: float, length: float, belt: float) -> list[Decal]:
    sill = [(half, 0.24, -length * 0.46), (half, 0.24, length * 0.46), (half, 0.36, length * 0.46),
            (half, 0.36, -length * 0.46)]  # fmt: skip
    decals: list[Decal] = [(sill, TRIM)]
    for z in (0.17 * length, -0.06 * length, -0.27 * length):
        decals.append((side_bar(half, z, 0.4, belt - 0.02, 0.025), (24, 25, 28, 150)))
    decals.append((side_bar(half, 0.0, belt - 0.30, belt - 0.27, length * 0.42), (255, 255, 255, 70)))
    for sign in (1, -1):
        decals.append((side_disc(half, sign * length * 0.305, 0.41), (20, 20, 23)))
        decals.append((side_disc(half, sign * length * 0.305, 0.33), (26, 26, 29)))
        decals.append((side_disc(half, sign * length * 0.305, 0.20, 0.33), (156, 158, 162)))
    return decals


def _car_ends(paint: Color) -> Strips:
    """Lamps, grille, bumpers and plates of the faces at both ends (strip 0 and 1 ahead, 5 and 6 behind)."""
    dark = scaled(paint, 0.55)
    front: list[Rectangle] = [
        (0.0, 0.0, 1.0, 0.35, TRIM), (0.18, 0.45, 0.82, 0.95, TRIM), (0.38, 0.5, 0.62, 0.8, PLATE),
    ]  # fmt: skip
    lamps: list[Rectangle] = [
        (0.03, 0.05, 0.24, 0.8, HEADLIGHT), (0.76, 0.05, 0.97, 0.8, HEADLIGHT),
    ]  # fmt: skip
    back: list[Rectangle] = [
        (0.02, 0.2, 0.2, 0.95, TAILLIGHT), (0.80, 0.2, 0.98, 0.95, TAILLIGHT), (0.35, 0.2, 0.65, 0.6, PLATE),
    ]  # fmt: skip
    return {0: (None, front), 1: (None, lamps), 5: (None, back), 6: (dark, [(0.0, 0.45, 1.0, 1.0, TRIM)])}


def _car_windows(half: float, roof: float, cabin: Sequence[tuple[float, float]], glass: Color) -> list[Decal]:
    (z0, y0), (z1, y1), (z2, _), (z3, _) = cabin
    side: list[Vec] = [(half * 0.97, y0, z3), (half * 0.97, y0, z0), (roof, y1, z1), (roof, y1, z2)]
    bright = mix(glass, SKY_ON_GLASS, 0.45)
    return [
        (on_quad(side, 0.06, 0.06, 0.50, 0.88), glass),
        (on_quad(side, 0.54, 0.06, 0.93, 0.88), glass),
        (on_quad(side, 0.06, 0.60, 0.50, 0.88), bright),
        (on_quad(side, 0.54, 0.60, 0.93, 0.88), bright),
    ]


def _plate_outline(stage: Stage, pose: Pose, end: float) -> list[tuple[float, float]]:
    near_end = min((end, -end), key=lambda z: pose.place([(0.0, 0.0, z)])[0][2])
    corners = [(-0.26, 0.42, near_end), (0.26, 0.42, near_end), (0.26, 0.54, near_end), (-0.26, 0.54, near_end)]
    return stage.camera.outline(pose.place(corners))


def build_caravan(stage: Stage, pose: Pose) -> Sprite:
    """Build a caravan: a pale rounded box with one window and two wheels."""
    return _towed(stage, pose, "caravan", 2.5, 5.0, (236, 234, 226))


def build_trailer(stage: Stage, pose: Pose) -> Sprite:
    """Build a small open trailer."""
    return _towed(stage, pose, "trailer", 1.15, 2.6, (128, 130, 134))


def _towed(stage: Stage, pose: Pose, label: str, top: float, length: float, paint: Color) -> Sprite:
    half, end = 1.0, length / 2
    paint = jittered(paint, stage.rng)
    sculptor = Sculptor(stage, pose)
    mount_wheels(sculptor, half, (0.0,), 0.34)
    rim = top * 0.25
    profile = [(end, 0.45), (end, top - rim), (end - rim, top), (-end + rim, top), (-end, top - rim), (-end, 0.45)]
    side: list[Decal] = [(side_bar(half, 0.0, 0.8, 0.95, end * 0.98), (170, 60, 50))]
    back: list[Rectangle] = [
        (0.03, 0.05, 0.15, 0.25, TAILLIGHT),
        (0.85, 0.05, 0.97, 0.25, TAILLIGHT),
    ]
    if label == "caravan":
        side.append((side_bar(half, 0.3, 1.3, 1.95, end * 0.5), GLASS))
        back.append((0.2, 0.5, 0.8, 0.95, GLASS))
    sculptor.prism(profile, [half] * 6, paint, side, {4: (None, flipped(back)), 0: (None, [])})
    return Sprite(label, pose.z, sculptor.parts, (1.08, 0.86))
