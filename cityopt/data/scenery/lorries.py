"""Trucks, buses and trams (which Cityscapes calls trains) as small three-dimensional models.

Each builder takes the stage and a pose and returns a sprite. A side profile runs from the front bottom over the
roof to the rear bottom: (z ahead, y up), in metres.
"""

from collections.abc import Callable

from cityopt.data.scenery.bodywork import (
    GLASS,
    HEADLIGHT,
    PLATE,
    SKY_ON_GLASS,
    TAILLIGHT,
    TRIM,
    flipped,
    mount_wheels,
    paint_wheels,
    side_bar,
    side_disc,
    window_row,
)
from cityopt.data.scenery.canvas import Sprite, Stage
from cityopt.data.scenery.sculpting import Decal, Rectangle, Sculptor, Strips
from cityopt.data.scenery.view import Color, Pose, Vec, jittered, mix, scaled

TRUCK_PAINTS: tuple[Color, ...] = ((232, 232, 230), (186, 58, 44), (40, 84, 156), (222, 150, 40), (62, 120, 84))
BUS_PAINTS: tuple[Color, ...] = ((232, 178, 36), (206, 52, 44), (236, 234, 226), (40, 122, 176), (116, 166, 60))
TRAM_PAINTS: tuple[Color, ...] = ((204, 34, 44), (244, 206, 60), (56, 140, 96), (36, 92, 160), (238, 236, 230))


def build_truck(stage: Stage, pose: Pose) -> Sprite:
    """Build a lorry: a cab with a windscreen in front of a tall box or tarpaulin on a dark chassis."""
    rng = stage.rng
    length, half, top = rng.uniform(7.0, 9.5), 1.22, rng.uniform(3.2, 3.8)
    cab_paint, box_paint = (
        jittered(rng.choice(TRUCK_PAINTS), rng),
        jittered(rng.choice(TRUCK_PAINTS[:1] * 3 + TRUCK_PAINTS), rng),
    )
    end, cab_start = length / 2, length / 2 - 2.0
    sculptor = Sculptor(stage, pose)
    mount_wheels(sculptor, half, (end - 1.2, -end + 1.3, -end + 2.5), 0.50)
    sculptor.prism([(end, 0.45), (end, 0.95), (-end, 0.95), (-end, 0.45)], [half * 0.9] * 4, (48, 48, 52), (),
                   {2: (None, [(0.03, 0.1, 0.2, 0.7, TAILLIGHT), (0.8, 0.1, 0.97, 0.7, TAILLIGHT)])})  # fmt: skip
    builders: list[Callable[[], None]] = [
        lambda: _truck_cab(sculptor, end, cab_start, half, cab_paint),
        lambda: _truck_box(sculptor, -end, cab_start - 0.3, half, top, box_paint),
    ]
    cab, tail = pose.place([(0.0, 0.0, end), (0.0, 0.0, -end)])
    for build in builders if cab[2] > tail[2] else builders[::-1]:
        build()
    return Sprite("truck", pose.z, sculptor.parts, (1.08, 0.84))


def _truck_cab(sculptor: Sculptor, end: float, start: float, half: float, paint: Color) -> None:
    profile = [(end, 0.4), (end, 1.45), (end - 0.25, 2.75), (start, 2.8), (start, 0.4)]
    window = side_bar(half, (end + start) / 2 + 0.15, 1.65, 2.45, 0.55)
    front: list[Rectangle] = [
        (0.04, 0.05, 0.22, 0.3, HEADLIGHT), (0.78, 0.05, 0.96, 0.3, HEADLIGHT), (0.2, 0.4, 0.8, 0.9, TRIM),
    ]  # fmt: skip
    screen: list[Rectangle] = [
        (0.05, 0.12, 0.95, 0.82, GLASS), (0.05, 0.6, 0.95, 0.82, mix(GLASS, SKY_ON_GLASS, 0.5)),
    ]  # fmt: skip
    arch = [(half, max(0.4, y + 0.16), z) for _, y, z in side_disc(half, end - 1.2, 0.58, 0.5)]
    sculptor.prism(
        profile, [half] * 5, paint, [(window, GLASS), (arch, (22, 22, 25))], {0: (None, front), 1: (None, screen)}
    )
    paint_wheels(sculptor, half, end - 1.2)


def _truck_box(sculptor: Sculptor, back: float, front: float, half: float, top: float, paint: Color) -> None:
    side: list[Decal] = [(side_bar(half, (back + front) / 2, 0.98, 1.12, (front - back) / 2), scaled(paint, 0.6))]
    logo = jittered(sculptor.stage.rng.choice(TRUCK_PAINTS[1:]), sculptor.stage.rng)
    middle = (back + front) / 2
    side.append((side_bar(half, middle, top - 1.5, top - 0.8, (front - back) * 0.32), logo))
    for i in range(1, 6):
        z = back + (front - back) * i / 6
        side.append((side_bar(half, z, 1.1, top - 0.06, 0.03), (*scaled(paint, 0.7), 150)))
    doors: list[Rectangle] = [
        (0.49, 0.02, 0.51, 0.98, scaled(paint, 0.45)), (0.02, 0.90, 0.98, 0.94, scaled(paint, 0.7)),
        (0.30, 0.06, 0.33, 0.94, scaled(paint, 0.6)), (0.67, 0.06, 0.70, 0.94, scaled(paint, 0.6)),
        (0.0, 0.98, 1.0, 1.0, TAILLIGHT), (0.0, 0.0, 0.25, 0.05, TAILLIGHT), (0.75, 0.0, 1.0, 0.05, TAILLIGHT),
    ]  # fmt: skip
    profile = [(front, 0.95), (front, top), (back, top), (back, 0.95)]
    sculptor.prism(profile, [half] * 4, paint, side, {2: (None, flipped(doors))})


def build_bus(stage: Stage, pose: Pose) -> Sprite:
    """Build a city bus: one long box with a band of windows, doors and a lit destination sign."""
    rng = stage.rng
    half, top, end = 1.26, rng.uniform(3.0, 3.3), rng.uniform(5.2, 6.2)
    paint = jittered(rng.choice(BUS_PAINTS), rng)
    skirt = jittered(rng.choice(BUS_PAINTS), rng)
    side: list[Decal] = [(side_bar(half, 0.0, 0.36, 0.95, end), mix(paint, skirt, 0.7))]
    side += window_row(half, -end + 0.3, end - 0.5, 1.35, 2.55, 7)
    side += [(side_bar(half, z, 0.42, 2.5, 0.6), mix(GLASS, SKY_ON_GLASS, 0.25)) for z in (end - 1.1, -0.3)]
    side += [(side_disc(half, z, 0.6, 0.5), (20, 20, 23)) for z in (end - 2.6, -end + 2.8)]
    front: list[Rectangle] = [
        (0.06, 0.30, 0.94, 0.82, GLASS), (0.06, 0.62, 0.94, 0.82, mix(GLASS, SKY_ON_GLASS, 0.5)),
        (0.14, 0.85, 0.86, 0.96, (22, 22, 24)), (0.22, 0.875, 0.78, 0.935, (255, 176, 40)),
        (0.05, 0.08, 0.22, 0.18, HEADLIGHT), (0.78, 0.08, 0.95, 0.18, HEADLIGHT), (0.4, 0.04, 0.6, 0.1, PLATE),
    ]  # fmt: skip
    back: list[Rectangle] = [
        (0.12, 0.56, 0.88, 0.88, GLASS), (0.04, 0.14, 0.12, 0.36, TAILLIGHT), (0.88, 0.14, 0.96, 0.36, TAILLIGHT),
        (0.2, 0.1, 0.8, 0.34, scaled(paint, 0.6)), (0.3, 0.9, 0.7, 0.97, (255, 176, 40)),
    ]  # fmt: skip
    sculptor = Sculptor(stage, pose)
    mount_wheels(sculptor, half, (end - 2.6, -end + 2.8), 0.48)
    profile = [(end, 0.34), (end - 0.08, top), (-end + 0.05, top), (-end, 0.34)]
    sculptor.prism(profile, [half] * 4, paint, side, {0: (None, front), 2: (None, flipped(back))})
    for z in (end - 2.6, -end + 2.8):
        paint_wheels(sculptor, half, z)
    return Sprite("bus", pose.z, sculptor.parts, (1.08, 0.86))


def build_train(stage: Stage, pose: Pose) -> Sprite:
    """Build a tram, which Cityscapes calls train: long joined modules, slanted noses, a stripe and a pantograph."""
    rng = stage.rng
    paint, white = jittered(rng.choice(TRAM_PAINTS), rng), jittered((238, 238, 234), rng, 0.04)
    num_modules, module = rng.choice((2, 3, 3)), rng.uniform(7.0, 8.5)
    start = -num_modules * module / 2
    sculptor = Sculptor(stage, pose)
    cells = [(start + i * module, i == 0, i == num_modules - 1) for i in range(num_modules)]
    tail, nose = sculptor.pose.place([(0.0, 0.0, start), (0.0, 0.0, -start)])
    for back, is_tail, is_nose in cells if tail[2] > nose[2] else cells[::-1]:
        _tram_module(sculptor, back, back + module, (is_tail, is_nose), paint, white)
    _pantograph(sculptor, start + module * 0.6)
    return Sprite("train", pose.z, sculptor.parts, (1.06, 0.88))


def _tram_module(
    sculptor: Sculptor, back: float, front: float, ends: tuple[bool, bool], paint: Color, white: Color
) -> None:
    half, top = 1.30, 3.45
    is_tail, is_nose = ends
    back, front = back + (0.0 if is_tail else 0.3), front - (0.0 if is_nose else 0.3)
    if not is_nose:
        bellows = [(front + 0.6, 0.5), (front + 0.6, top - 0.2), (front, top - 0.2), (front, 0.5)]
        sculptor.prism(bellows, [half * 0.9] * 4, (52, 52, 56))
    slope_front, slope_back = (0.7 if is_nose else 0.0), (0.7 if is_tail else 0.0)
    profile = [
        (front, 0.22),
        (front, 1.3),
        (front - slope_front, top),
        (back + slope_back, top),
        (back, 1.3),
        (back, 0.22),
    ]
    low: list[Vec] = [(half, 0.22, back), (half, 0.22, front), (half, 1.15, front), (half, 1.15, back)]
    side: list[Decal] = [
        (low, paint),
        (side_bar(half, (back + front) / 2, 0.22, 0.42, (front - back) / 2), (44, 44, 48)),
    ]
    side += window_row(half, back + slope_back + 0.2, front - slope_front - 0.2, 1.5, 2.6, 4)
    door = (back + front) / 2
    side += [
        (side_bar(half, door, 0.45, 2.65, 0.62), scaled(paint, 0.8)),
        (side_bar(half, door, 0.9, 2.5, 0.5), GLASS),
    ]
    lamps: list[Rectangle] = [
        (0.0, 0.0, 1.0, 0.2, (44, 44, 48)), (0.08, 0.5, 0.26, 0.75, HEADLIGHT), (0.74, 0.5, 0.92, 0.75, HEADLIGHT),
    ]  # fmt: skip
    screen: list[Rectangle] = [
        (0.06, 0.04, 0.94, 0.72, GLASS), (0.06, 0.45, 0.94, 0.72, mix(GLASS, SKY_ON_GLASS, 0.5)),
        (0.25, 0.80, 0.75, 0.94, (255, 176, 40)),
    ]  # fmt: skip
    strips: Strips = {
        0: (paint, lamps if is_nose else []), 1: (paint, screen if is_nose else []),
        3: (paint, flipped(screen) if is_tail else []), 4: (paint, flipped(lamps) if is_tail else []),
    }  # fmt: skip
    sculptor.prism(profile, [half, half, half * 0.94, half * 0.94, half, half], white, side, strips)


def _pantograph(sculptor: Sculptor, z: float) -> None:
    for x0, y0, x1, y1 in (
        (-0.5, 3.45, -0.1, 4.1),
        (-0.1, 4.1, -0.5, 4.7),
        (0.5, 3.45, 0.1, 4.1),
        (0.1, 4.1, 0.5, 4.7),
    ):
        rod = [(x0 - 0.05, y0, z), (x0 + 0.05, y0, z), (x1 + 0.05, y1, z), (x1 - 0.05, y1, z)]
        for inside in (z - 1, z + 1):
            sculptor.face(rod, (0.0, 4.0, inside), (50, 50, 54))
    bar = [(-0.9, 4.68, z), (0.9, 4.68, z), (0.9, 4.78, z), (-0.9, 4.78, z)]
    for inside in (z - 1, z + 1):
        sculptor.face(bar, (0.0, 4.0, inside), (40, 40, 44))
