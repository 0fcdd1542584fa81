"""Pictures of what a model found, beside what is there: a person must see at a glance if it works.

Validation draws a few per trial, `predict` and the report draw theirs. An image, a `Prediction` and perhaps the raw
instanceIds raster become one strip: detections left, ground truth right, in the Cityscapes palette. Small images
are enlarged until names and scores can be read. Pillow and NumPy only.

Shapes: images `(H, W, 3)` uint8, rasters and masks `(H, W)`; a panel is one of the strip's pictures, at its scale.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cityopt.labels import CLASS_OF_ID, THING_LABELS

if TYPE_CHECKING:
    from cityopt.models.masks import Prediction

PANEL_WIDTHS_PX = (768, 1280)
GAP_PX = 6
HEADER_PX = 26
OUTLINE_PX = 2
TEXT_PX = 13
FILL = 0.45
DARK = (24, 26, 30)
WHITE = (255, 255, 255)

Color = tuple[int, int, int]
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """One object to draw: its mask, its class 1 … 8, its caption, and whether it is a group."""

    mask: NDArray[np.bool_]
    class_index: int
    caption: str
    is_group: bool = False


def draw_overlay(
    image: NDArray[np.uint8],
    prediction: "Prediction",
    raster: NDArray[Any] | None,
    *,
    score: float = 0.5,
) -> Image.Image:
    """Draw the detections of at least `score` on an image `(H, W, 3)`, and beside them the raster's instances.

    Without a raster `(H, W)` the picture has one panel. Each panel is 768 to 1280 px wide, whatever the image.
    Nothing found is said in the panel's header, with the best score there was.

    Raises ValueError: image, prediction and raster of different sizes.
    """
    sizes = {image.shape[:2], tuple(prediction.size)} | (set() if raster is None else {raster.shape})
    if len(sizes) != 1:
        raise ValueError(f"image, prediction and raster must have one size (height, width), but got {sorted(sizes)}.")
    panels = [_draw_panel(image, list_detections(prediction, score), _title_detections(prediction, score))]
    if raster is not None:
        shapes = list_instances(raster)
        panels.append(_draw_panel(image, shapes, _title_instances(shapes)))
    strip = Image.new("RGB", (sum(p.width for p in panels) + GAP_PX * (len(panels) - 1), panels[0].height), DARK)
    for number, panel in enumerate(panels):
        strip.paste(panel, (number * (panel.width + GAP_PX), 0))
    return strip


def encode_picture(picture: Image.Image, format: Literal["png", "jpeg", "webp"] = "png") -> bytes:
    """Return a picture as the bytes of a file; JPEG and WebP with losses that the eye does not see."""
    stream = io.BytesIO()
    if format == "png":
        picture.save(stream, "PNG", optimize=False)
    else:
        picture.save(stream, format.upper(), quality=88)
    return stream.getvalue()


def list_detections(prediction: "Prediction", score: float) -> list[Shape]:
    """Return the detections of at least `score`, best first, with name and score as captions."""
    from hotcoco import mask as rle_mask

    return [
        Shape(rle_mask.decode(dict(rle)).astype(bool), class_index, f"{THING_LABELS[class_index - 1].name} {value:.2f}")
        for rle, class_index, value in zip(
            prediction.masks, prediction.classes.tolist(), prediction.scores.tolist(), strict=True
        )
        if value >= score
    ]


def list_instances(raster: NDArray[Any]) -> list[Shape]:
    """Return instances and groups of the eight classes in a raw instanceIds raster, large ones first."""
    shapes = []
    values, areas = np.unique(raster, return_counts=True)
    for value in values[np.argsort(-areas, kind="stable")].tolist():
        class_index = CLASS_OF_ID.get(value if value < 1000 else value // 1000)
        if class_index is not None:
            name = THING_LABELS[class_index - 1].name
            is_group = value < 1000
            shapes.append(Shape(raster == value, class_index, f"{name} group" if is_group else name, is_group))
    return shapes


def _draw_panel(image: NDArray[np.uint8], shapes: Sequence[Shape], title: str) -> Image.Image:
    """Draw shapes on an image, the first ones on top, under a header with the title."""
    height, width = image.shape[:2]
    scale = min(max(width, PANEL_WIDTHS_PX[0]), PANEL_WIDTHS_PX[1]) / width
    size = (round(width * scale), round(height * scale))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)).copy()
    windows = [_paint(pixels, shape) for shape in reversed(shapes)][::-1]
    panel = Image.new("RGB", (size[0], size[1] + HEADER_PX), DARK)
    panel.paste(Image.fromarray(pixels), (0, HEADER_PX))
    draw = ImageDraw.Draw(panel)
    font = ImageFont.load_default(TEXT_PX)
    draw.text((8, HEADER_PX / 2), title, WHITE, font, anchor="lm")
    _write_captions(draw, zip(shapes, windows, strict=True), panel.size, font)
    return panel


def _paint(pixels: NDArray[np.uint8], shape: Shape) -> Window | None:
    """Tint and outline a mask in place; return its bounds (x0, y0, x1, y1) in the panel, None where it vanishes."""
    height, width = pixels.shape[:2]
    large = Image.fromarray(shape.mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BILINEAR)
    mask = np.asarray(large) > 127
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    window = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    inside = mask[window[1] : window[3], window[0] : window[2]]
    target = pixels[window[1] : window[3], window[0] : window[2]]
    color = THING_LABELS[shape.class_index - 1].color
    if not shape.is_group:
        target[inside] = (target[inside] * (1 - FILL) + np.array(color) * FILL).astype(np.uint8)
    target[_find_outline(inside)] = (200, 200, 200) if shape.is_group else _brighten(color)
    return window


def _find_outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a mask within `OUTLINE_PX` of its border."""
    inner = mask
    for _ in range(OUTLINE_PX):
        wide = np.pad(inner, 1)
        inner = inner & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return mask & ~inner


def _brighten(color: Color) -> Color:
    """Return a light tone of a palette colour: the vehicles' blues are too dark for an outline at night."""
    peak = max(color)
    red, green, blue = (round(110 + 145 * value / peak) for value in color)
    return red, green, blue


def _write_captions(
    draw: ImageDraw.ImageDraw,
    shapes: Iterable[tuple[Shape, Window | None]],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write captions where they hide no other one: above the object, below it or in it, else not at all."""
    taken: list[Window] = []
    for shape, window in shapes:
        if window is None:
            continue
        text_width, text_height = round(draw.textlength(shape.caption, font)) + 6, TEXT_PX + 4
        x = min(window[0], size[0] - text_width)
        top, bottom = window[1] + HEADER_PX, window[3] + HEADER_PX
        for y in (top - text_height, bottom, top):
            tag = (x, y, x + text_width, y + text_height)
            if y >= HEADER_PX and tag[3] <= size[1] and not any(_overlap(tag, other) for other in taken):
                taken.append(tag)
                draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), _darken(shape))
                draw.text((x + 3, y + text_height / 2), shape.caption, WHITE, font, anchor="lm")
                break


def _darken(shape: Shape) -> Color:
    """Return the ground for white letters."""
    if shape.is_group:
        return (90, 90, 90)
    red, green, blue = (round(0.75 * value) for value in THING_LABELS[shape.class_index - 1].color)
    return red, green, blue


def _overlap(a: Window, b: Window) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _title_detections(prediction: "Prediction", score: float) -> str:
    scores = prediction.scores
    count = int((scores >= score).sum())
    best = f" (best score {scores.max():.2f})" if scores.size and not count else ""
    return f"detections of score {score:.2f} or more: {count or 'none'}{best}"


def _title_instances(shapes: Sequence[Shape]) -> str:
    num_groups = sum(shape.is_group for shape in shapes)
    groups = f", {num_groups} group{'s' * (num_groups != 1)} (grey)" if num_groups else ""
    return f"ground truth: {len(shapes) - num_groups or 'none'}{groups}"
