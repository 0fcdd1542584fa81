"""Draw masks, boxes and captions on a picture, to be told apart on dark and on bright streets alike.

Overlays are put together from the panels that this makes. Masks are tinted in the Cityscapes palette, whose vehicles
are almost black: so each outline is a light line on a dark one, which shows on any ground. What came of an object is
told twice, by colour (apart for the colour-blind too) and by dashes.

Shapes: images `(H, W, 3)` uint8; a panel is the image at `choose_panel_size` under a header; windows are
(x0, y0, x1, y1) in the panel's pixels without its header.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cityopt.labels import THING_LABELS

if TYPE_CHECKING:
    from cityopt.models.masks import Rle

PANEL_WIDTHS_PX = (768, 1280)
PANEL_HEIGHTS_PX = (1024, 1600)
HEADER_PX = 26
TEXT_PX = 13
LINE_PX = 7 / 3
CASING_PX = 13 / 3
DASH_PX = (9.0, 7.0)
FILL = 0.45
BOX_OPACITY = 0.8
DARK = (24, 26, 30)
WHITE = (255, 255, 255)
_FINE = 3
"""Lines are drawn so many times larger, then shrunk: that smooths them. Widths of odd numbers of these lie centred."""

Color = tuple[int, int, int]
Window = tuple[int, int, int, int]
Line = NDArray[np.float64]
Fate = Literal["plain", "found", "false", "missed", "group", "excused"]
"""What is known of an object: nothing, or what matching said."""
FATE_COLORS: dict[Fate, Color] = {
    "found": (60, 230, 150),
    "false": (255, 176, 0),
    "missed": (255, 105, 220),
    "group": (200, 200, 200),
    "excused": (200, 200, 200),
}
DASHED: set[Fate] = {"false", "missed", "excused"}


@dataclass(frozen=True)
class Shape:
    """One object to draw: its mask, its class 1 … 8, its caption, what came of it, and its box in the image's px."""

    mask: "Rle"
    class_index: int
    caption: str
    fate: Fate = "plain"
    box_xyxy: tuple[float, ...] | None = None

    @property
    def color(self) -> Color:
        """Color of the outline."""
        return FATE_COLORS.get(self.fate) or _brighten(THING_LABELS[self.class_index - 1].color)


@dataclass(frozen=True)
class Note:
    """A piece of a header: a text, and perhaps a sample of a fate's line before it."""

    text: str
    fate: Fate | None = None


def draw_panel(image: NDArray[np.uint8], shapes: Sequence[Shape], notes: Sequence[Note]) -> Image.Image:
    """Draw shapes on an image `(H, W, 3)`, the first ones on top, under a header with the notes."""
    size = choose_panel_size(image.shape[0], image.shape[1])
    scale = (size[0] / image.shape[1], size[1] / image.shape[0])
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).copy()
    masks = [_scale_mask(shape.mask, size, scale) for shape in shapes]
    is_free = np.ones(pixels.shape[:2], dtype=bool)
    for shape, scaled in zip(shapes, masks, strict=True):
        if scaled is not None and shape.fate != "group":
            _fill(pixels, is_free, shape, *scaled)
    windows = []
    for shape, scaled in reversed(list(zip(shapes, masks, strict=True))):
        windows.append(_outline(pixels, shape, scale, scaled))
    panel = Image.new("RGB", (max(size[0], PANEL_WIDTHS_PX[0]), size[1] + HEADER_PX), DARK)
    panel.paste(Image.fromarray(pixels), (0, HEADER_PX))
    font = ImageFont.load_default(TEXT_PX)
    _write_header(panel, notes, font)
    _write_captions(ImageDraw.Draw(panel), zip(shapes, windows[::-1], strict=True), size, font)
    return panel


def choose_panel_size(height: int, width: int) -> tuple[int, int]:
    """Return the (width, height) at which an image is shown: 768 to 1280 px wide.

    Tall ones are narrower: none is enlarged above 1024 px of height, or shown above 1600.
    """
    scale = min(max(width, PANEL_WIDTHS_PX[0]), PANEL_WIDTHS_PX[1]) / width
    scale = min(scale, max(1.0, PANEL_HEIGHTS_PX[0] / height), PANEL_HEIGHTS_PX[1] / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _scale_mask(
    code: "Rle", size: tuple[int, int], scale: tuple[float, float]
) -> tuple[NDArray[np.uint8], Window] | None:
    """Return a mask as `(h, w)` in 0 … 255, smooth at its border, and its window; None where it is empty."""
    from hotcoco import mask

    x, y, width, height = (float(value) for value in mask.to_bbox(dict(code)))
    if not width or not height:
        return None
    window = (
        max(0, int(x * scale[0]) - 2),
        max(0, int(y * scale[1]) - 2),
        min(size[0], int((x + width) * scale[0]) + 3),
        min(size[1], int((y + height) * scale[1]) + 3),
    )
    whole = Image.fromarray(mask.decode(dict(code)) * np.uint8(255))
    x0, y0, x1, y1 = (min(edge / scale[i % 2], whole.size[i % 2]) for i, edge in enumerate(window))
    shown = (window[2] - window[0], window[3] - window[1])
    return np.asarray(whole.resize(shown, Image.Resampling.BILINEAR, box=(x0, y0, x1, y1))), window


def _fill(
    pixels: NDArray[np.uint8], is_free: NDArray[np.bool_], shape: Shape, soft: NDArray[np.uint8], window: Window
) -> None:
    """Tint a mask in place with the palette's colour, each pixel once: tint on tint would hide the picture."""
    area = np.s_[window[1] : window[3], window[0] : window[2]]
    inside = (soft > 127) & is_free[area]
    is_free[area] &= ~inside
    target = pixels[area]
    color = np.array(THING_LABELS[shape.class_index - 1].color)
    target[inside] = (target[inside] * (1 - FILL) + color * FILL).astype(np.uint8)


def _outline(
    pixels: NDArray[np.uint8],
    shape: Shape,
    scale: tuple[float, float],
    scaled: tuple[NDArray[np.uint8], Window] | None,
) -> Window | None:
    """Draw box and outline of a shape in place; return the window that its caption belongs to, None without any."""
    window = None if scaled is None else scaled[1]
    if shape.box_xyxy is not None and shape.box_xyxy[2] > shape.box_xyxy[0] and shape.box_xyxy[3] > shape.box_xyxy[1]:
        x0, y0, x1, y1 = (edge * scale[i % 2] for i, edge in enumerate(shape.box_xyxy))
        window = (int(x0), int(y0), int(np.ceil(x1)), int(np.ceil(y1)))
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)])
        height, width = pixels.shape[:2]
        corners = np.clip(corners, 0.5, (width - 0.5, height - 0.5))
        _stroke(pixels, [corners], 1.0, _brighten(THING_LABELS[shape.class_index - 1].color), BOX_OPACITY)
    if scaled is not None:
        soft, (left, top, _, _) = scaled
        # A frame of zeros around: a mask that touches the picture's edge has an outline there too.
        corner = np.array((left - 0.5, top - 0.5))
        lines = contour_generator(z=np.pad(soft.astype(np.float64), 1)).lines(127.5)
        draw_line(pixels, [np.asarray(line) + corner for line in lines], shape.color, shape.fate)
    return window


def draw_line(pixels: NDArray[np.uint8], lines: Sequence[Line], color: Color, fate: Fate) -> None:
    """Draw lines `(P, 2)` of (x, y) in place, light on dark, dashed where the fate is."""
    dashes = [dash for line in lines for dash in _cut_dashes(line)] if fate in DASHED else lines
    _stroke(pixels, lines, CASING_PX, DARK, 0.75)
    _stroke(pixels, dashes, LINE_PX, color, 1.0)


def _cut_dashes(line: Line) -> Iterable[Line]:
    """Yield the pieces of a line that are drawn, by the length along it; the dashes fit a whole number of times."""
    along = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))))
    count = max(1, round(along[-1] / sum(DASH_PX)))
    period = along[-1] / count
    for start in np.arange(count) * period:
        end = start + period * DASH_PX[0] / sum(DASH_PX)
        inner = line[(along > start) & (along < end)]
        first, last = ([[np.interp(place, along, line[:, axis]) for axis in (0, 1)]] for place in (start, end))
        yield np.concatenate((first, inner, last))


def _stroke(pixels: NDArray[np.uint8], lines: Sequence[Line], width: float, color: Color, opacity: float) -> None:
    """Draw smooth lines of a width in place."""
    if not lines:
        return
    height, total = pixels.shape[:2]
    every = np.concatenate(lines)
    x0, y0 = (max(0, int(value - width) - 1) for value in every.min(axis=0))
    x1, y1 = (min(int(v + width) + 2, limit) for v, limit in zip(every.max(axis=0), (total, height), strict=True))
    if x1 <= x0 or y1 <= y0:
        return
    fine = Image.new("L", ((x1 - x0) * _FINE, (y1 - y0) * _FINE))
    draw = ImageDraw.Draw(fine)
    for line in lines:
        points = ((line - (x0, y0)) * _FINE - 0.5).ravel().tolist()
        draw.line(points, fill=255, width=round(width * _FINE), joint="curve" if len(line) < 100 else None)
    share = np.asarray(fine.reduce(_FINE), dtype=np.float32)[..., None] / 255 * opacity
    target = pixels[y0:y1, x0:x1]
    target[:] = np.rint(target * (1 - share) + np.array(color, dtype=np.float32) * share)


def _write_header(
    panel: Image.Image, notes: Sequence[Note], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> None:
    """Write the notes in a row; a sample of the line stands before what it means."""
    x = 8.0
    for note in notes:
        if note.fate is not None:
            strip = np.asarray(panel.crop((0, 0, panel.width, HEADER_PX))).copy()
            sample = np.array([(x, HEADER_PX / 2), (x + 25, HEADER_PX / 2)])
            draw_line(strip, [sample], FATE_COLORS[note.fate], note.fate)
            panel.paste(Image.fromarray(strip), (0, 0))
            x += 31
        draw = ImageDraw.Draw(panel)
        draw.text((x, HEADER_PX / 2), note.text, WHITE, font, anchor="lm")
        x += draw.textlength(note.text, font) + 16


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
        stripe = 4 if shape.fate in FATE_COLORS else 0
        width, height = round(draw.textlength(shape.caption, font)) + 6 + stripe, TEXT_PX + 4
        x = max(0, min(window[0], size[0] - width))
        top, bottom = window[1] + HEADER_PX, window[3] + HEADER_PX
        for y in (top - height, bottom, top):
            tag = (x, y, x + width, y + height)
            if y >= HEADER_PX and tag[3] <= size[1] + HEADER_PX and not any(_overlap(tag, other) for other in taken):
                taken.append(tag)
                draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), _darken(shape))
                if stripe:
                    draw.rectangle((tag[0], tag[1], tag[0] + stripe - 1, tag[3] - 1), shape.color)
                draw.text((x + stripe + 3, y + height / 2), shape.caption, WHITE, font, anchor="lm")
                break


def _brighten(color: Color) -> Color:
    """Return a light tone of a palette colour: the vehicles' blues are too dark for an outline at night."""
    peak = max(color)
    red, green, blue = (round(110 + 145 * value / peak) for value in color)
    return red, green, blue


def _darken(shape: Shape) -> Color:
    """Return the ground for white letters."""
    if shape.fate == "group":
        return (90, 90, 90)
    red, green, blue = (round(0.75 * value) for value in THING_LABELS[shape.class_index - 1].color)
    return red, green, blue


def _overlap(a: Window, b: Window) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
