"""The canvas of one scene: shapes are painted from far to near, and each labelled one leaves its polygon behind.

Pictures are painted twice as large as asked and reduced, which smooths all edges. A second, small raster of
shading factors carries shadows and each object's gradient; `develop` multiplies it in.
"""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from cityopt.data.scenery.outlines import Polygon, clip_outline, hull, trace_outline
from cityopt.data.scenery.view import Camera, Color, Light, Point

SCALE = 2
UNIT_SHADE = 128


class Part(NamedTuple):
    """One polygon of a sprite, in canvas pixels; `color` may be RGBA, or None for what only belongs to the outline."""

    points: list[Point]
    color: Color | None
    solid: bool = True


@dataclass(slots=True)
class Sprite:
    """Something that stands in the scene: its parts in painting order and its Cityscapes label (groups too).

    A `convex` one is outlined by the hull of its parts, which is much quicker than tracing; see `Canvas.add`.
    """

    label: str
    depth_m: float
    parts: list[Part]
    gradient: tuple[float, float] = (1.06, 0.90)
    plates: list[list[Point]] = field(default_factory=list)
    convex: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """What every builder of sprites needs to know."""

    camera: Camera
    light: Light
    rng: random.Random


class Canvas:
    """Paint sprites onto a picture of `height` x `width` pixels and collect (label, polygon) in painting order."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.image = Image.new("RGB", (width * SCALE, height * SCALE))
        self.shade = Image.new("L", (width, height), UNIT_SHADE)
        self.objects: list[tuple[str, Polygon]] = []
        self._solid = ImageDraw.Draw(self.image)
        self._glass = ImageDraw.Draw(self.image, "RGBA")
        self._mask = Image.new("L", self.image.size, 0)
        self._stencil = ImageDraw.Draw(self._mask)

    def paint(self, points: list[Point], color: Color) -> None:
        """Fill a polygon given in canvas pixels; a colour of four channels is blended."""
        (self._glass if len(color) == 4 else self._solid).polygon(points, fill=color)

    def annotate(self, label: str, points: list[Point]) -> None:
        """Record a convex polygon given in canvas pixels."""
        polygon = clip_outline([(x / SCALE, y / SCALE) for x, y in points], self.height, self.width)
        if polygon:
            self.objects.append((label, polygon))

    def fill(self, label: str, points: list[Point], color: Color) -> None:
        """Paint and record a convex polygon."""
        self.paint(points, color)
        self.annotate(label, points)

    def add(self, sprite: Sprite) -> None:
        """Paint a sprite, shade it from top to bottom, and record its outline; outside the picture it leaves none."""
        box = self._box(sprite)
        if box is None:
            return
        for part in sprite.parts:
            if part.color is not None:
                self.paint(part.points, part.color)
        mask = self._silhouette(sprite, box)
        self._apply_gradient(mask, box, sprite.gradient)
        if sprite.convex:
            self.annotate(sprite.label, hull([point for part in sprite.parts if part.solid for point in part.points]))
            return
        polygon = trace_outline(np.asarray(mask) >= 128)
        if polygon:
            self.objects.append((sprite.label, [(x + box[0], y + box[1]) for x, y in polygon]))
            for plate in sprite.plates:
                self.annotate("license plate", plate)

    def cast_shadows(self, shadows: list[list[Point]], strength: float, blur_px: float) -> None:
        """Darken the ground below and beside objects, with soft edges; call before anything stands on it."""
        dark = Image.new("L", self.shade.size, 0)
        draw = ImageDraw.Draw(dark)
        for shadow in shadows:
            draw.polygon([(x / SCALE, y / SCALE) for x, y in shadow], fill=255)
        soft = dark.filter(ImageFilter.GaussianBlur(blur_px))
        self.shade = Image.composite(Image.new("L", soft.size, round(UNIT_SHADE * (1 - strength))), self.shade, soft)

    def _box(self, sprite: Sprite) -> tuple[int, int, int, int] | None:
        solid = [part.points for part in sprite.parts if part.solid]
        xs = [x for points in solid for x, _ in points]
        ys = [y for points in solid for _, y in points]
        left, top = max(0, int(min(xs)) // SCALE), max(0, int(min(ys)) // SCALE)
        right = min(self.width, int(max(xs)) // SCALE + 1)
        bottom = min(self.height, int(max(ys)) // SCALE + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def _silhouette(self, sprite: Sprite, box: tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = (SCALE * side for side in box)
        for part in sprite.parts:
            if part.solid:
                self._stencil.polygon(part.points, fill=255)
        mask = self._mask.crop((left, top, right, bottom)).reduce(SCALE)
        self._mask.paste(0, (left, top, right, bottom))
        return mask

    def _apply_gradient(self, mask: Image.Image, box: tuple[int, int, int, int], gradient: tuple[float, float]) -> None:
        top, bottom = (UNIT_SHADE * factor for factor in gradient)
        column = np.linspace(top, bottom, mask.height).astype(np.uint8)
        self.shade.paste(Image.fromarray(np.repeat(column[:, None], mask.width, axis=1)), box, mask)
