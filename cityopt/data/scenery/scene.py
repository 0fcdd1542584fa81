"""Compose one street scene: choose who is in it, find places, cast shadows, paint from far to near.

The last step before synthetic writes files. `paint_scene` is a pure function of its arguments.
"""

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.data.scenery.buildings import build_backdrop, build_row
from cityopt.data.scenery.canvas import SCALE, UNIT_SHADE, Canvas, Sprite, Stage
from cityopt.data.scenery.casting import Casting, Footprint, cast_things
from cityopt.data.scenery.furniture import build_bush, build_lamp, build_sign, build_signal, build_tree
from cityopt.data.scenery.outlines import hull
from cityopt.data.scenery.rasters import Annotated, labels_of, rasterise_instances, without_hidden
from cityopt.data.scenery.street import Street, draw_street, paint_ground, paint_sky, strip
from cityopt.data.scenery.view import Light, draw_camera, draw_light, jittered, scaled
from cityopt.labels import BY_NAME

# How rough surfaces look: standard deviation of the brightness per pixel, and of broad stains.
GRAIN: dict[str, tuple[float, float]] = {
    "road": (0.030, 0.06), "sidewalk": (0.032, 0.06), "terrain": (0.08, 0.12), "vegetation": (0.07, 0.08),
    "building": (0.022, 0.06), "wall": (0.04, 0.08), "rail track": (0.05, 0.06), "sky": (0.006, 0.0),
}  # fmt: skip
OTHER_GRAIN = (0.018, 0.02)


@dataclass(frozen=True, slots=True)
class Scene:
    """A finished scene: the picture, (H, W, 3) uint8 RGB, its polygons in painting order, and their raster."""

    image_HW3: NDArray[np.uint8]
    objects: list[Annotated]
    instances_HW: NDArray[np.uint16]


def paint_scene(height: int, width: int, seed: int, casting: Casting) -> Scene:
    """Paint the scene of this seed, with the rare guests that `casting` names."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    canvas = Canvas(height, width)
    stage = Stage(draw_camera(height * SCALE, width * SCALE, rng), draw_light(rng), rng)
    crossing = rng.random() < 0.45 or (casting.wants("train") and not casting.along)
    street = draw_street(rng, casting.wants("train"), crossing)
    paint_sky(canvas, stage, noise)
    paint_ground(canvas, stage, street)
    things = cast_things(stage, street, casting, (height * SCALE, width * SCALE))
    _cast_all_shadows(canvas, stage, street, things.footprints)
    sprites = build_backdrop(stage, street) + build_row(stage, street, 0) + build_row(stage, street, 1)
    sprites += _furnish(stage, street) + things.sprites
    for sprite in sorted(sprites, key=lambda sprite: -sprite.depth_m):
        canvas.add(sprite)
    _mount_camera_on_car(canvas, rng)
    instances = rasterise_instances(canvas.objects, height, width)
    objects = without_hidden(canvas.objects, instances)
    if len(objects) < len(canvas.objects):
        instances = rasterise_instances(objects, height, width)
    return Scene(_develop(canvas, stage.light, labels_of(instances), noise), objects, instances)


def _furnish(stage: Stage, street: Street) -> list[Sprite]:
    """Line both kerbs with trees, lamps, signs and, before a side road, traffic lights."""
    rng = stage.rng
    sprites: list[Sprite] = []
    trees = street.green > 0.45
    for side, outward in enumerate((-1.0, 1.0)):
        x = street.kerbs[side] + outward * 0.6
        z = rng.uniform(9.0, 16.0)
        while z < 85.0:
            if not _in_crossing(street, z) and stage.camera.frames(x, z, 3.0):
                sprites += _kerb_item(stage, x, z, outward, trees)
            z += rng.uniform(6.0, 14.0)
        if street.crossing and rng.random() < 0.7:
            sprites += build_signal(stage, x, street.crossing[0] - 1.2)
    return sprites


def _kerb_item(stage: Stage, x: float, z: float, outward: float, trees: bool) -> list[Sprite]:
    kind = stage.rng.choices(("tree", "lamp", "sign", "bush", "none"), (6 if trees else 1, 2, 2, 1, 2))[0]
    if kind == "tree":
        return [build_tree(stage, x + outward * 0.5, z, stage.rng.uniform(0.75, 1.0))]
    if kind == "bush":
        return [build_bush(stage, x + outward * 1.8, z, 0.9)]
    return build_lamp(stage, x, z) if kind == "lamp" else build_sign(stage, x, z) if kind == "sign" else []


def _in_crossing(street: Street, z: float) -> bool:
    return street.crossing is not None and street.crossing[0] - 2 < z < street.crossing[1] + 2


def _cast_all_shadows(canvas: Canvas, stage: Stage, street: Street, footprints: list[Footprint]) -> None:
    """Cast sun shadows of houses and things, then the dark contact line below each thing."""
    light, camera = stage.light, stage.camera
    reach = (-light.sun[0] / light.sun[1], -light.sun[2] / light.sun[1])
    shadows = []
    for side, outward in enumerate((-1.0, 1.0)):
        if reach[0] * outward < 0:
            front = street.fronts[side]
            shadows.append(strip(stage, front, front + reach[0] * 8.0, 3.0, street.end_m))
    for corners, height in footprints:
        shift = (reach[0] * height, reach[1] * height)
        moved = [(x + shift[0], 0.0, max(z + shift[1], 4.0)) for x, z in corners]
        shadows.append(hull(camera.outline([*((x, 0.0, z) for x, z in corners), *moved])))
    canvas.cast_shadows(shadows, 0.62 * light.sun_strength, canvas.height / 200)
    contact = [camera.outline([(x, 0.0, z) for x, z in corners]) for corners, _ in footprints]
    canvas.cast_shadows(contact, 0.60, canvas.height / 130)


def _mount_camera_on_car(canvas: Canvas, rng: random.Random) -> None:
    """Draw the bonnet of the recording car and the black rim that rectification leaves: void in Cityscapes."""
    width, height = canvas.image.size
    rise, paint = rng.uniform(0.075, 0.10), jittered((50, 53, 58), rng, 0.3)
    arc = [(width * i / 16, height * (1 - rise * (1 - 0.55 * (i / 8 - 1) ** 2))) for i in range(17)]
    canvas.fill("ego vehicle", [*arc, (width, height), (0, height)], paint)
    for depth, shine in ((0.12, 1.6), (0.3, 1.25), (0.7, 0.8)):
        canvas.paint(
            [*((x, y + (height - y) * depth) for x, y in arc), (width, height), (0, height)], scaled(paint, shine)
        )
    rim = width * rng.uniform(0.003, 0.007)
    for left, right in ((0.0, rim), (width - rim, float(width))):
        canvas.fill("rectification border", [(left, 0), (right, 0), (right, height), (left, height)], (0, 0, 0))
    canvas.fill(
        "out of roi", [(0, height - rim * 0.7), (width, height - rim * 0.7), (width, height), (0, height)], (0, 0, 0)
    )


def _develop(
    canvas: Canvas, light: Light, labels_HW: NDArray[np.uint8], noise: np.random.Generator
) -> NDArray[np.uint8]:
    """Reduce the canvas and apply shading, the light's tint, surface grain, stains and a vignette."""
    height, width = canvas.height, canvas.width
    picture = np.asarray(canvas.image.reduce(SCALE)).astype(np.float32)
    grain, stains = _GRAIN_TABLE[labels_HW], _STAIN_TABLE[labels_HW]
    coarse = Image.fromarray(noise.standard_normal((height // 8 + 2, width // 24 + 2), dtype=np.float32))
    broad = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    factor = np.asarray(canvas.shade).astype(np.float32) / UNIT_SHADE
    factor *= 1 + grain * noise.standard_normal((height, width), dtype=np.float32) + stains * broad
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None]
    factor *= 1.03 - 0.10 * (x * x + y * y)
    picture *= factor[..., None] * np.array(light.tint, dtype=np.float32)
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _table(column: int) -> NDArray[np.float32]:
    table = np.full(256, OTHER_GRAIN[column], dtype=np.float32)
    for name, values in GRAIN.items():
        table[BY_NAME[name].id] = values[column]
    return table


_GRAIN_TABLE, _STAIN_TABLE = _table(0), _table(1)
