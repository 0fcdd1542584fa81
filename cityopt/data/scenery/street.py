"""The ground of a street scene and what lies flat on it or far behind: sky, road, pavements, markings, rails.

A `Street` holds the cross section that all placements refer to: x of both kerbs and both building lines, in
metres, with the camera's own lane around x = 0. Painted first, before anything stands.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cityopt.data.scenery.canvas import SCALE, Canvas, Stage
from cityopt.data.scenery.view import Color, Point, jittered, mix, scaled

FAR_M = 260.0
CROSS_REACH_M = 90.0


@dataclass(frozen=True, slots=True)
class Street:
    """The cross section and the look of one street; `crossing` is the near and far z of a side road, if any."""

    kerbs: tuple[float, float]
    fronts: tuple[float, float]
    crossing: tuple[float, float] | None
    rails: bool
    green: float
    road: Color
    paving: Color
    end_m: float

    @property
    def centre(self) -> float:
        """The x of the middle line between own and oncoming traffic."""
        return -1.75 if self.kerbs[0] > -8 else -2.0


def draw_street(rng: random.Random, rails: bool, crossing: bool) -> Street:
    """Choose a street: width, pavements, greenery and, when asked for, tram rails or a side road."""
    left = rng.uniform(-9.5, -7.6) if rails else rng.uniform(-8.2, -5.4)
    right = rng.uniform(2.4, 4.6)
    walk_left, walk_right = rng.uniform(2.6, 4.8), rng.uniform(2.6, 4.4)
    near = rng.uniform(16.0, 26.0)
    grey = rng.uniform(0.85, 1.12)
    return Street(
        kerbs=(left, right),
        fronts=(left - walk_left, right + walk_right),
        crossing=(near, near + rng.uniform(7.0, 10.0)) if crossing else None,
        rails=rails,
        green=rng.uniform(0.0, 1.0),
        road=jittered(scaled((98, 98, 102), grey), rng, 0.05),
        paving=jittered(scaled((158, 152, 146), grey), rng, 0.06),
        end_m=rng.uniform(90.0, 150.0),
    )


def paint_sky(canvas: Canvas, stage: Stage, noise: np.random.Generator) -> None:
    """Fill the sky: zenith to haze, with soft clouds; annotate it down to the horizon."""
    camera, light = stage.camera, stage.light
    width, bottom = canvas.image.width, int(camera.horizon) + 2
    rows, columns = bottom // SCALE + 1, width // SCALE
    height_share = np.linspace(1.0, 0.0, rows)[:, None, None]
    zenith, haze = np.array(light.zenith), np.array(light.haze)
    sky = haze + (zenith - haze) * height_share**0.8
    cover = np.clip(_cloud_cover(noise, rows, columns) * 2.4 - 2.2 + 1.6 * light.clouds, 0, 1)[..., None]
    bright = np.array(mix(light.haze, (255, 255, 255), 0.65)) - 26 * light.clouds * (1 - height_share)
    sky = sky + (bright - sky) * cover * 0.8
    picture = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    canvas.image.paste(picture.resize((width, rows * SCALE), Image.Resampling.BILINEAR), (0, 0))
    canvas.annotate("sky", [(0, 0), (width, 0), (width, bottom), (0, bottom)])


def _cloud_cover(
    noise: np.random.Generator, rows: int, columns: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    cover = np.zeros((rows, columns), dtype=np.float32)
    for octave, weight in ((3, 0.5), (7, 0.3), (16, 0.2)):
        grid = Image.fromarray(noise.random((octave, octave + 2), dtype=np.float32))
        cover += weight * np.asarray(grid.resize((columns, rows), Image.Resampling.BICUBIC))
    return cover


def strip(stage: Stage, x0: float, x1: float, z0: float, z1: float) -> list[Point]:
    """Project a rectangle that lies on the ground."""
    return stage.camera.outline([(x0, 0.0, z0), (x1, 0.0, z0), (x1, 0.0, z1), (x0, 0.0, z1)])


def paint_ground(canvas: Canvas, stage: Stage, street: Street) -> None:
    """Paint and annotate terrain, pavements, kerbs, the road, its side road, markings and rails."""
    light, rng = stage.light, stage.rng
    up = (0.0, 1.0, 0.0)
    bottom, width, horizon = canvas.image.height, canvas.image.width, stage.camera.horizon
    grass = light.shade(jittered((92, 116, 62), rng), up, 20)
    canvas.fill("terrain", [(0, horizon), (width, horizon), (width, bottom), (0, bottom)], grass)
    paving, road = light.shade(street.paving, up, 12), light.shade(street.road, up, 12)
    lo, hi = street.fronts
    canvas.fill("sidewalk", strip(stage, lo - 3, hi + 3, 3.0, FAR_M), paving)
    _paint_slabs(canvas, stage, street, paving)
    left, right = street.kerbs
    kerb = light.shade(scaled(street.paving, 1.16), up, 12)
    canvas.paint(strip(stage, left - 0.28, right + 0.28, 3.0, FAR_M), kerb)
    canvas.fill("road", strip(stage, left, right, 3.0, FAR_M), road)
    if street.crossing:
        near, far = street.crossing
        canvas.paint(strip(stage, -CROSS_REACH_M, CROSS_REACH_M, near - 0.25, far + 0.4), kerb)
        canvas.fill("road", strip(stage, -CROSS_REACH_M, CROSS_REACH_M, near, far), road)
        canvas.paint(strip(stage, left, right, near - 0.5, far + 0.7), road)
    far_road = mix(road, light.haze, 0.5)
    for z0, z1 in ((34, 55), (55, 90), (90, FAR_M)):
        canvas.paint(strip(stage, left, right, z0, z1), (*far_road, 70))
    _paint_patches(canvas, stage, street, road)
    if street.rails:
        _paint_rails(canvas, stage, street)
    _paint_markings(canvas, stage, street)


def _paint_slabs(canvas: Canvas, stage: Stage, street: Street, paving: Color) -> None:
    joint = (*scaled(paving, 0.82), 150)
    for side, (kerb, front) in enumerate(zip(street.kerbs, street.fronts, strict=True)):
        x0, x1 = (front, kerb) if side == 0 else (kerb, front)
        for i in range(14):
            z = 7.0 + 1.6 * i
            canvas.paint(strip(stage, x0, x1, z, z + 0.06), joint)
        canvas.paint(strip(stage, (x0 + x1) / 2, (x0 + x1) / 2 + 0.05, 5.0, 60.0), joint)


def _paint_patches(canvas: Canvas, stage: Stage, street: Street, road: Color) -> None:
    """Repair patches, cracks, tyre tracks and manhole covers, so that the asphalt is not one flat grey."""
    rng = stage.rng
    left, right = street.kerbs
    for x in (-0.85, 0.75, -3.9, -2.7):
        canvas.paint(strip(stage, x - 0.22, x + 0.22, 4.0, 70.0), (*scaled(road, 0.88), 70))
    for _ in range(rng.randint(2, 5)):
        x, z = rng.uniform(left + 0.5, right - 1.5), rng.uniform(7, 26)
        canvas.paint(
            strip(stage, x, x + rng.uniform(0.6, 1.8), z, z + rng.uniform(1, 5)),
            (*scaled(road, rng.choice((0.82, 1.12))), 130),
        )
    for _ in range(rng.randint(1, 3)):
        x, z = rng.uniform(left + 1, right - 1), rng.uniform(7, 22)
        cover = [(x + 0.32 * math.cos(i * 0.524), 0.0, z + 0.32 * math.sin(i * 0.524)) for i in range(12)]
        canvas.paint(stage.camera.outline(cover), (*scaled(road, 0.6), 190))


def _paint_rails(canvas: Canvas, stage: Stage, street: Street) -> None:
    bed = mix(street.road, (122, 112, 100), 0.6)
    up, light = (0.0, 1.0, 0.0), stage.light
    for x in tram_lanes(street):
        canvas.fill("rail track", strip(stage, x - 1.2, x + 1.2, 3.0, FAR_M), light.shade(bed, up, 14))
        for rail in (x - 0.72, x + 0.72):
            canvas.paint(strip(stage, rail - 0.09, rail + 0.09, 3.0, FAR_M), (52, 50, 50))
            canvas.paint(strip(stage, rail - 0.03, rail + 0.03, 3.0, FAR_M), (176, 176, 180))


def tram_lanes(street: Street) -> tuple[float, ...]:
    """Say where trams run: on the far left of a wide street."""
    return (street.kerbs[0] + 1.6,)


def _paint_markings(canvas: Canvas, stage: Stage, street: Street) -> None:
    rng = stage.rng
    white = (*stage.light.shade((226, 226, 222), (0.0, 1.0, 0.0), 12), 225)
    style, stop = rng.choice(("dashed", "dashed", "solid", "none")), street.crossing[0] if street.crossing else 1e9
    spans: list[tuple[float, float]] = []
    if style != "none":
        spans = [(z, z + 3.0) for z in range(5, 110, 7)] if style == "dashed" else [(4.0, 120.0)]
    for z0, z1 in spans:
        if not street.crossing or z1 < stop - 3 or z0 > street.crossing[1]:
            canvas.paint(strip(stage, street.centre - 0.07, street.centre + 0.07, z0, z1), white)
        elif style == "solid":
            canvas.paint(strip(stage, street.centre - 0.07, street.centre + 0.07, z0, stop - 3), white)
    if rng.random() < 0.5:
        canvas.paint(strip(stage, street.kerbs[1] - 0.35, street.kerbs[1] - 0.25, 4.0, min(stop - 1, 120.0)), white)
    if street.crossing and rng.random() < 0.7:
        x = street.kerbs[0] + 0.3
        while x < street.kerbs[1] - 0.4:
            canvas.paint(strip(stage, x, x + 0.5, stop - 3.6, stop - 1.0), white)
            x += 1.0
