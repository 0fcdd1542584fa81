"""Cars, trucks, buses, trams, caravans and trailers as small three-dimensional models.

Each builder takes the stage and a pose and returns a sprite. Sizes are those of ordinary vehicles in metres.
A side profile runs clockwise from the front bottom: (z ahead, y up).
"""

from collections.abc import Callable, Sequence

from cityopt.data.scenery.canvas import Sprite, Stage
from cityopt.data.scenery.sculpting import Decal, Sculptor, on_quad
from cityopt.data.scenery.view import Color, Pose, Vec, jittered, mix, scaled

CAR_PAINTS: tuple[Color, ...] = (
    (226, 227, 229), (188, 191, 196), (120, 124, 130), (44, 46, 52), (30, 32, 38), (34, 62, 118),
    (150, 28, 32), (196, 44, 40), (38, 84, 74), (112, 98, 82), (58, 104, 160), (206, 170, 60),
)  # fmt: skip
TRUCK_PAINTS: tuple[Color, ...] = ((232, 232, 230), (186, 58, 44), (40, 84, 156), (222, 150, 40), (62, 120, 84))
BUS_PAINTS: tuple[Color, ...] = ((232, 178, 36), (206, 52, 44), (236, 234, 226), (40, 122, 176), (116, 166, 60))
TRAM_PAINTS: tuple[Color, ...] = ((204, 34, 44), (244, 206, 60), (56, 140, 96), (36, 92, 160), (238, 236, 230))

GLASS: Color = (34, 44, 56)
SKY_ON_GLASS: Color = (126, 150, 172)
TRIM: Color = (38, 39, 43)
HEADLIGHT: Color = (250, 248, 232)
TAILLIGHT: Color = (206, 24, 26)
PLATE: Color = (238, 238, 230)

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
    _wheels(sculptor, half, (end * 0.62, -end * 0.60), 0.33 if height < 1.7 else 0.37)
    body = [(end, 0.24), (end, 0.62), (end * 0.92, belt - 0.16), (length * cowl, belt), (length * rear, belt),
            (-end * 0.97, deck - 0.04), (-end, 0.60), (-end, 0.26)]  # fmt: skip
    sculptor.prism(body, [half] * 8, paint, _car_side(half, length, belt), _car_ends(paint))
    cabin = [(length * cowl, belt), (length * roof0, height), (length * roof1, height), (length * rear, belt)]
    roof = half * 0.78
    glass: Color = (*jittered(GLASS, rng),)
    window = [(0.06, 0.12, 0.94, 0.9, glass), (0.06, 0.62, 0.94, 0.9, mix(glass, SKY_ON_GLASS, 0.5))]
    strips: dict[int, tuple[Color | None, list[tuple[float, float, float, float, Color]]]] = {
        0: (None, window), 2: (None, _flipped(window)),
    }  # fmt: skip
    side_glass = _car_windows(half, roof, cabin, glass)
    sculptor.prism(cabin, [half * 0.97, roof, roof, half * 0.97], paint, side_glass, strips)
    sprite = Sprite("car", pose.z, sculptor.parts, (1.10, 0.84))
    if rng.random() < 0.35 and pose.z < 22:
        sprite.plates.append(_plate_outline(stage, pose, end))
    return sprite


def _wheels(sculptor: Sculptor, half: float, axles: Sequence[float], radius: float) -> None:
    """Put the far wheels first, so that the near ones cover them."""
    nearer = sculptor.pose.place([(half, 0.0, 0.0), (-half, 0.0, 0.0)])
    signs = (-1, 1) if nearer[0][2] <= nearer[1][2] else (1, -1)
    for sign in signs:
        for z in axles:
            sculptor.wheel(sign * half, z, radius)


def _car_side(half: float, length: float, belt: float) -> list[Decal]:
    sill = [(half, 0.24, -length * 0.46), (half, 0.24, length * 0.46), (half, 0.36, length * 0.46),
            (half, 0.36, -length * 0.46)]  # fmt: skip
    decals: list[Decal] = [(sill, TRIM)]
    for z in (0.17 * length, -0.06 * length, -0.27 * length):
        decals.append((_side_bar(half, z, 0.4, belt - 0.02, 0.025), (24, 25, 28, 150)))
    decals.append((_side_bar(half, 0.0, belt - 0.30, belt - 0.27, length * 0.42), (255, 255, 255, 70)))
    for sign in (1, -1):
        decals.append((_arch(half, sign * length * 0.305, 0.41), (20, 20, 23)))
        decals.append((_arch(half, sign * length * 0.305, 0.33), (26, 26, 29)))
        decals.append((_arch(half, sign * length * 0.305, 0.20, 0.33), (156, 158, 162)))
    return decals


def _side_bar(half: float, z: float, low: float, high: float, reach: float) -> list[Vec]:
    return [(half, low, z - reach), (half, low, z + reach), (half, high, z + reach), (half, high, z - reach)]


_OCTAGON = ((1.0, 0.0), (0.8, 0.6), (0.31, 0.95), (-0.31, 0.95), (-0.8, 0.6), (-1.0, 0.0), (-0.8, -0.6),
            (-0.31, -0.95), (0.31, -0.95), (0.8, -0.6))  # fmt: skip


def _arch(half: float, z: float, radius: float, middle: float = 0.33) -> list[Vec]:
    return [(half, max(0.24, middle + radius * b), z + radius * a) for a, b in _OCTAGON]


def _car_ends(paint: Color) -> dict[int, tuple[Color | None, list[tuple[float, float, float, float, Color]]]]:
    """Lamps, grille, bumpers and plates of the faces at both ends (strip 0 and 1 ahead, 5 and 6 behind)."""
    dark = scaled(paint, 0.55)
    front: list[tuple[float, float, float, float, Color]] = [
        (0.0, 0.0, 1.0, 0.35, TRIM), (0.18, 0.45, 0.82, 0.95, TRIM), (0.38, 0.5, 0.62, 0.8, PLATE),
    ]  # fmt: skip
    lamps: list[tuple[float, float, float, float, Color]] = [
        (0.03, 0.05, 0.24, 0.8, HEADLIGHT), (0.76, 0.05, 0.97, 0.8, HEADLIGHT),
    ]  # fmt: skip
    back: list[tuple[float, float, float, float, Color]] = [
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
    _wheels(sculptor, half, (end - 1.2, -end + 1.3, -end + 2.5), 0.50)
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
    window = _side_bar(half, (end + start) / 2 + 0.15, 1.65, 2.45, 0.55)
    front: list[tuple[float, float, float, float, Color]] = [
        (0.04, 0.05, 0.22, 0.3, HEADLIGHT), (0.78, 0.05, 0.96, 0.3, HEADLIGHT), (0.2, 0.4, 0.8, 0.9, TRIM),
    ]  # fmt: skip
    screen: list[tuple[float, float, float, float, Color]] = [
        (0.05, 0.12, 0.95, 0.82, GLASS), (0.05, 0.6, 0.95, 0.82, mix(GLASS, SKY_ON_GLASS, 0.5)),
    ]  # fmt: skip
    arch = [(half, max(0.4, y + 0.16), z) for _, y, z in _arch(half, end - 1.2, 0.58, 0.5)]
    sculptor.prism(
        profile, [half] * 5, paint, [(window, GLASS), (arch, (22, 22, 25))], {0: (None, front), 1: (None, screen)}
    )
    _visible_wheels(sculptor, half, end - 1.2)


def _truck_box(sculptor: Sculptor, back: float, front: float, half: float, top: float, paint: Color) -> None:
    side: list[Decal] = [(_side_bar(half, (back + front) / 2, 0.98, 1.12, (front - back) / 2), scaled(paint, 0.6))]
    logo = jittered(sculptor.stage.rng.choice(TRUCK_PAINTS[1:]), sculptor.stage.rng)
    middle = (back + front) / 2
    side.append((_side_bar(half, middle, top - 1.5, top - 0.8, (front - back) * 0.32), logo))
    for i in range(1, 6):
        z = back + (front - back) * i / 6
        side.append((_side_bar(half, z, 1.1, top - 0.06, 0.03), (*scaled(paint, 0.7), 150)))
    doors: list[tuple[float, float, float, float, Color]] = [
        (0.49, 0.02, 0.51, 0.98, scaled(paint, 0.45)), (0.02, 0.90, 0.98, 0.94, scaled(paint, 0.7)),
        (0.30, 0.06, 0.33, 0.94, scaled(paint, 0.6)), (0.67, 0.06, 0.70, 0.94, scaled(paint, 0.6)),
        (0.0, 0.98, 1.0, 1.0, TAILLIGHT), (0.0, 0.0, 0.25, 0.05, TAILLIGHT), (0.75, 0.0, 1.0, 0.05, TAILLIGHT),
    ]  # fmt: skip
    profile = [(front, 0.95), (front, top), (back, top), (back, 0.95)]
    sculptor.prism(profile, [half] * 4, paint, side, {2: (None, _flipped(doors))})


def build_bus(stage: Stage, pose: Pose) -> Sprite:
    """Build a city bus: one long box with a band of windows, doors and a lit destination sign."""
    rng = stage.rng
    half, top, end = 1.26, rng.uniform(3.0, 3.3), rng.uniform(5.2, 6.2)
    paint = jittered(rng.choice(BUS_PAINTS), rng)
    skirt = jittered(rng.choice(BUS_PAINTS), rng)
    side: list[Decal] = [(_side_bar(half, 0.0, 0.36, 0.95, end), mix(paint, skirt, 0.7))]
    side += _window_row(half, -end + 0.3, end - 0.5, 1.35, 2.55, 7)
    side += [(_side_bar(half, z, 0.42, 2.5, 0.6), mix(GLASS, SKY_ON_GLASS, 0.25)) for z in (end - 1.1, -0.3)]
    side += [(_arch(half, z, 0.6, 0.5), (20, 20, 23)) for z in (end - 2.6, -end + 2.8)]
    front: list[tuple[float, float, float, float, Color]] = [
        (0.06, 0.30, 0.94, 0.82, GLASS), (0.06, 0.62, 0.94, 0.82, mix(GLASS, SKY_ON_GLASS, 0.5)),
        (0.14, 0.85, 0.86, 0.96, (22, 22, 24)), (0.22, 0.875, 0.78, 0.935, (255, 176, 40)),
        (0.05, 0.08, 0.22, 0.18, HEADLIGHT), (0.78, 0.08, 0.95, 0.18, HEADLIGHT), (0.4, 0.04, 0.6, 0.1, PLATE),
    ]  # fmt: skip
    back: list[tuple[float, float, float, float, Color]] = [
        (0.12, 0.56, 0.88, 0.88, GLASS), (0.04, 0.14, 0.12, 0.36, TAILLIGHT), (0.88, 0.14, 0.96, 0.36, TAILLIGHT),
        (0.2, 0.1, 0.8, 0.34, scaled(paint, 0.6)), (0.3, 0.9, 0.7, 0.97, (255, 176, 40)),
    ]  # fmt: skip
    sculptor = Sculptor(stage, pose)
    _wheels(sculptor, half, (end - 2.6, -end + 2.8), 0.48)
    profile = [(end, 0.34), (end - 0.08, top), (-end + 0.05, top), (-end, 0.34)]
    sculptor.prism(profile, [half] * 4, paint, side, {0: (None, front), 2: (None, _flipped(back))})
    for z in (end - 2.6, -end + 2.8):
        _visible_wheels(sculptor, half, z)
    return Sprite("bus", pose.z, sculptor.parts, (1.08, 0.86))


def _visible_wheels(sculptor: Sculptor, half: float, z: float) -> None:
    for sign in (1, -1):
        ring = [(sign * x, y, at) for x, y, at in _arch(half, z, 0.48, 0.5)]
        hub = [(sign * x, y, at) for x, y, at in _arch(half, z, 0.26, 0.5)]
        sculptor.face(ring, (0.0, 0.5, z), (28, 28, 31), [(hub, (150, 152, 156))])


def _window_row(half: float, back: float, front: float, low: float, high: float, count: int) -> list[Decal]:
    pitch = (front - back) / count
    band: Decal = (_side_bar(half, (front + back) / 2, low - 0.06, high + 0.06, (front - back) / 2), (28, 30, 34))
    panes: list[Decal] = []
    for i in range(count):
        z = back + pitch * (i + 0.5)
        panes.append((_side_bar(half, z, low, high, pitch * 0.44), mix(GLASS, SKY_ON_GLASS, 0.25)))
        panes.append((_side_bar(half, z, high - 0.4, high, pitch * 0.44), mix(GLASS, SKY_ON_GLASS, 0.7)))
    return [band, *panes]


def _flipped(
    rectangles: Sequence[tuple[float, float, float, float, Color]],
) -> list[tuple[float, float, float, float, Color]]:
    """Turn rectangles upside down: the faces behind run from top to bottom."""
    return [(left, 1 - top, right, 1 - bottom, color) for left, bottom, right, top, color in rectangles]


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
        (_side_bar(half, (back + front) / 2, 0.22, 0.42, (front - back) / 2), (44, 44, 48)),
    ]
    side += _window_row(half, back + slope_back + 0.2, front - slope_front - 0.2, 1.5, 2.6, 4)
    door = (back + front) / 2
    side += [
        (_side_bar(half, door, 0.45, 2.65, 0.62), scaled(paint, 0.8)),
        (_side_bar(half, door, 0.9, 2.5, 0.5), GLASS),
    ]
    lamps: list[tuple[float, float, float, float, Color]] = [
        (0.0, 0.0, 1.0, 0.2, (44, 44, 48)), (0.08, 0.5, 0.26, 0.75, HEADLIGHT), (0.74, 0.5, 0.92, 0.75, HEADLIGHT),
    ]  # fmt: skip
    screen: list[tuple[float, float, float, float, Color]] = [
        (0.06, 0.04, 0.94, 0.72, GLASS), (0.06, 0.45, 0.94, 0.72, mix(GLASS, SKY_ON_GLASS, 0.5)),
        (0.25, 0.80, 0.75, 0.94, (255, 176, 40)),
    ]  # fmt: skip
    strips: dict[int, tuple[Color | None, list[tuple[float, float, float, float, Color]]]] = {
        0: (paint, lamps if is_nose else []), 1: (paint, screen if is_nose else []),
        3: (paint, _flipped(screen) if is_tail else []), 4: (paint, _flipped(lamps) if is_tail else []),
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
    _wheels(sculptor, half, (0.0,), 0.34)
    rim = top * 0.25
    profile = [(end, 0.45), (end, top - rim), (end - rim, top), (-end + rim, top), (-end, top - rim), (-end, 0.45)]
    side: list[Decal] = [(_side_bar(half, 0.0, 0.8, 0.95, end * 0.98), (170, 60, 50))]
    back: list[tuple[float, float, float, float, Color]] = [
        (0.03, 0.05, 0.15, 0.25, TAILLIGHT),
        (0.85, 0.05, 0.97, 0.25, TAILLIGHT),
    ]
    if label == "caravan":
        side.append((_side_bar(half, 0.3, 1.3, 1.95, end * 0.5), GLASS))
        back.append((0.2, 0.5, 0.8, 0.95, GLASS))
    sculptor.prism(profile, [half] * 6, paint, side, {4: (None, _flipped(back)), 0: (None, [])})
    return Sprite(label, pose.z, sculptor.parts, (1.08, 0.86))
