"""What closes the street off: rows of houses with windows, shops and roofs, gardens between them, a far skyline.

Each builder returns sprites for scene to sort by depth and add to the canvas.
"""

import random
from collections.abc import Sequence

from cityopt.data.scenery.canvas import Part, Sprite, Stage
from cityopt.data.scenery.furniture import build_bush, build_tree
from cityopt.data.scenery.sculpting import Decal, Sculptor, on_quad
from cityopt.data.scenery.street import Street
from cityopt.data.scenery.view import Color, Pose, Vec, jittered, mix, scaled

FACADES: tuple[Color, ...] = (
    (206, 188, 158), (222, 210, 190), (186, 150, 120), (160, 92, 74), (172, 168, 160), (214, 196, 140),
    (196, 206, 208), (150, 140, 134), (226, 222, 214), (182, 124, 96), (200, 176, 168), (128, 122, 118),
)  # fmt: skip
ROOFS: tuple[Color, ...] = ((142, 72, 54), (96, 84, 80), (74, 76, 84), (120, 66, 56))
AWNINGS: tuple[Color, ...] = ((170, 44, 44), (44, 96, 70), (50, 76, 130), (222, 196, 120), (70, 70, 76))
PANE: Color = (58, 68, 80)


def build_row(stage: Stage, street: Street, side: int) -> list[Sprite]:
    """Build the row of houses on one side (0 left, 1 right), with gaps at the side road and for greenery."""
    rng = stage.rng
    front, outward = street.fronts[side], (-1.0, 1.0)[side]
    sprites: list[Sprite] = []
    z = rng.uniform(4.0, 9.0)
    while z < street.end_m:
        length = rng.uniform(9.0, 20.0)
        if street.crossing and z < street.crossing[1] + 3 and z + length > street.crossing[0] - 3:
            if z + 6 > street.crossing[0] - 3:
                z = street.crossing[1] + rng.uniform(3.0, 4.0)
                continue
            length = street.crossing[0] - 3 - z
        if rng.random() < 0.22 * street.green + 0.04:
            sprites += build_garden(stage, front, outward, z, z + length)
        else:
            sprites.append(
                build_house(stage, front + outward * rng.choice((0.0, 0.0, 0.6, 1.5)), outward, z, z + length)
            )
        z += length + (rng.uniform(2.0, 5.0) if rng.random() < 0.2 else 0.0)
    return sprites


def build_house(stage: Stage, front: float, outward: float, z0: float, z1: float) -> Sprite:
    """Build one house between z0 and z1: the street front, the gable that faces the camera, and a roof."""
    rng = stage.rng
    wall, floors = jittered(rng.choice(FACADES), rng), rng.choice((2, 3, 3, 4, 4, 5, 6))
    storey, ground = rng.uniform(2.9, 3.4), rng.uniform(3.4, 4.2)
    top, depth = ground + storey * (floors - 1), rng.uniform(9.0, 13.0)
    back, middle = front + outward * depth, front + outward * depth / 2
    inside: Vec = (middle, top / 2, (z0 + z1) / 2)
    sculptor = Sculptor(stage, Pose(0.0, 0.0))
    roof = jittered(rng.choice(ROOFS), rng)
    ridge = top + rng.choice((0.0, 2.2, 3.4))
    if ridge > top:
        slope: list[Vec] = [
            (front - outward * 0.3, top, z0),
            (front - outward * 0.3, top, z1),
            (middle, ridge, z1),
            (middle, ridge, z0),
        ]
        gable: list[Vec] = [(front, top, z0), (back, top, z0), (middle, ridge, z0)]
        sculptor.face(gable, inside, wall)
        sculptor.face(slope, inside, roof, _roof_windows(slope, rng))
    end: list[Vec] = [(front, 0.0, z0), (back, 0.0, z0), (back, top, z0), (front, top, z0)]
    sculptor.face(end, inside, wall, _facade(stage, end, top, ground, floors, depth, 0.5) if rng.random() < 0.7 else [])
    near, far = (z0, z1) if outward > 0 else (z1, z0)
    face: list[Vec] = [(front, 0.0, far), (front, 0.0, near), (front, top, near), (front, top, far)]
    sculptor.face(face, inside, wall, _facade(stage, face, top, ground, floors, z1 - z0, 1.0))
    return Sprite("building", z1, sculptor.parts, (1.04, 0.92), convex=True)


def _roof_windows(slope: Sequence[Vec], rng: random.Random) -> list[Decal]:
    count = rng.randint(0, 4)
    tiles: list[Decal] = [(on_quad(slope, 0.0, v, 1.0, v + 0.03), (0, 0, 0, 34)) for v in (0.2, 0.4, 0.6, 0.8)]
    return tiles + [(on_quad(slope, (i + 0.4) / count, 0.35, (i + 0.6) / count, 0.7), PANE) for i in range(count)]


def _facade(
    stage: Stage, quad: Sequence[Vec], top: float, ground: float, floors: int, length: float, fancy: float
) -> list[Decal]:
    """Cover a wall with rows of windows above a ground floor of shops or doors; far walls get bands instead."""
    rng = stage.rng
    wall = rng.choice(FACADES)
    decals: list[Decal] = [(on_quad(quad, 0.0, 0.0, 1.0, 0.5 / top), (*scaled(wall, 0.45), 150))]
    columns = max(2, round(length / rng.uniform(2.4, 3.4)))
    nearest = max(10.0, min(z for _, _, z in quad))
    seen_px = stage.camera.focal * 1.2 / nearest * (0.35 if fancy == 1.0 else 1.0)
    trim, tall = mix(wall, (240, 238, 230), 0.7), rng.uniform(0.46, 0.6)
    for floor in range(1, floors):
        v0 = (ground + (top - ground) * (floor - 1 + 0.22) / (floors - 1)) / top
        v1 = v0 + (top - ground) / (floors - 1) * tall / top
        if seen_px < 4:
            decals.append((on_quad(quad, 0.03, v0, 0.97, v1), (*PANE, 130)))
            continue
        decals += _window_line(quad, columns, v0, v1, trim, seen_px > 9, rng)
    decals.append((on_quad(quad, 0.0, 1 - 0.35 / top, 1.0, 1.0), (*scaled(trim, 0.95), 170)))
    decals.append((on_quad(quad, 0.0, (ground - 0.25) / top, 1.0, ground / top), (*scaled(trim, 0.8), 170)))
    if fancy == 1.0:
        decals += _ground_floor(quad, columns, ground / top, rng)
    return decals


def _window_line(
    quad: Sequence[Vec], columns: int, v0: float, v1: float, trim: Color, detailed: bool, rng: random.Random
) -> list[Decal]:
    decals: list[Decal] = []
    for i in range(columns):
        u0, u1 = (i + 0.28) / columns, (i + 0.72) / columns
        pane = mix(PANE, (156, 176, 192), rng.choice((0.0, 0.1, 0.25, 0.6)))
        if detailed:
            pad_u, pad_v = (u1 - u0) * 0.12, (v1 - v0) * 0.08
            decals.append((on_quad(quad, u0 - pad_u, v0 - pad_v * 1.6, u1 + pad_u, v1 + pad_v), trim))
        decals.append((on_quad(quad, u0, v0, u1, v1), pane))
        if detailed:
            middle = (u0 + u1) / 2
            decals.append((on_quad(quad, middle - (u1 - u0) * 0.05, v0, middle + (u1 - u0) * 0.05, v1), trim))
    return decals


def _ground_floor(quad: Sequence[Vec], columns: int, top: float, rng: random.Random) -> list[Decal]:
    decals: list[Decal] = []
    shops = rng.random() < 0.55
    for i in range(0, columns, 2 if shops else 1):
        u0, u1 = (i + 0.12) / columns, (i + (1.85 if shops else 0.6)) / columns
        if shops:
            decals.append(
                (
                    on_quad(quad, u0, top * 0.08, min(u1, 1.0), top * 0.68),
                    mix(PANE, (210, 190, 140), rng.uniform(0, 0.35)),
                )
            )
            decals.append((on_quad(quad, u0, top * 0.68, min(u1, 1.0), top * 0.84), jittered(rng.choice(AWNINGS), rng)))
        elif rng.random() < 0.3:
            decals.append((on_quad(quad, u0, 0.0, u1, top * 0.72), jittered((92, 64, 44), rng)))
        else:
            decals.append((on_quad(quad, u0, top * 0.3, u1, top * 0.75), PANE))
    return decals


def build_garden(stage: Stage, front: float, outward: float, z0: float, z1: float) -> list[Sprite]:
    """Fill a gap between houses: a wall, fence or hedge along the pavement, and trees behind it."""
    rng = stage.rng
    label, height, color = rng.choice(
        (("wall", 1.7, (168, 152, 136)), ("fence", 1.4, (108, 98, 86)), ("vegetation", 1.5, (58, 86, 40)))
    )
    camera = stage.camera
    if label == "vegetation":
        places = [(front + outward * 0.6, z0 + 1.7 * i) for i in range(int((z1 - z0) / 1.7) + 1)]
        sprites = [build_bush(stage, x, z, 1.3) for x, z in places if camera.frames(x, z, 1.3)]
    else:
        quad: list[Vec] = [(front, 0.0, z0), (front, 0.0, z1), (front, height, z1), (front, height, z0)]
        sculptor = Sculptor(stage, Pose(0.0, 0.0))
        bars = [(on_quad(quad, i / 24, 0.05, i / 24 + 0.016, 0.97), scaled(color, 0.6)) for i in range(24)]
        courses = [(on_quad(quad, 0.0, i / 5, 1.0, i / 5 + 0.03), scaled(color, 0.8)) for i in range(5)]
        sculptor.face(
            quad, (front + outward, height / 2, z0), jittered(color, rng), bars if label == "fence" else courses
        )
        sprites = [Sprite(label, z1, sculptor.parts, convex=True)] if sculptor.parts else []
    places = [(front + outward * rng.uniform(3, 6), rng.uniform(z0 + 1, z1 - 1)) for _ in range(2)]
    trees = [build_tree(stage, x, z) for x, z in places if camera.frames(x, z, 3.0)]
    for tree in trees:
        tree.depth_m = z1 + 0.1  # behind the wall that they look over
    return sprites + trees


def build_backdrop(stage: Stage, street: Street) -> list[Sprite]:
    """Close the view at the far end: a skyline of houses and trees in the haze."""
    rng, sprites = stage.rng, []
    x = -street.end_m * 0.38
    while x < street.end_m * 0.38:
        wide, z = rng.uniform(10, 22), street.end_m + rng.uniform(2, 14)
        if rng.random() < 0.35 + 0.4 * street.green:
            sprites += [build_tree(stage, x + rng.uniform(0, wide), z, rng.uniform(1.4, 2.0))]
        else:
            sprites.append(build_house_front(stage, x, x + wide, z))
        x += wide
    return sprites


def build_house_front(stage: Stage, x0: float, x1: float, z: float) -> Sprite:
    """Build a house that faces the camera, for the end of the street and for side roads."""
    rng = stage.rng
    floors, ground = rng.randint(2, 5), 3.6
    top = ground + 3.1 * (floors - 1)
    quad: list[Vec] = [(x0, 0.0, z), (x1, 0.0, z), (x1, top, z), (x0, top, z)]
    inside: Vec = ((x0 + x1) / 2, top / 2, z + 5)
    sculptor = Sculptor(stage, Pose(0.0, 0.0))
    roof: list[Vec] = [(x0, top, z), (x1, top, z), (x1 - 1.5, top + 2.6, z + 5), (x0 + 1.5, top + 2.6, z + 5)]
    sculptor.face(
        quad, inside, jittered(rng.choice(FACADES), rng), _facade(stage, quad, top, ground, floors, x1 - x0, 1.0)
    )
    shaded = stage.light.shade(jittered(rng.choice(ROOFS), rng), (0.0, 0.6, -0.8), z)
    sculptor.parts.append(Part(stage.camera.outline(roof), shaded))
    return Sprite("building", z, sculptor.parts, (1.04, 0.95), convex=True)
