"""Pictures of one object as two models drew it, with the place enlarged where they disagree most.

Stands beside the overlays of whole images, which are too small to show a boundary. Which objects are shown is decided
by the boundary IoU of both models and by nothing else: those that gain most, those in the middle, those that lose most.

Shapes: images `(H, W, 3)` uint8; windows are (x0, y0, x1, y1) in the image's pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import uniform_filter

from cityopt.evaluation.boundary import cut_mask
from cityopt.evaluation.drawing import DARK, TEXT_PX, WHITE, Color, Window, draw_line
from cityopt.evaluation.transfer import FoundObject
from cityopt.models.masks import Rle

PANEL_PX, GAP_PX, HEADER_PX = (400, 300), 6, 24
MARGIN, ZOOM = 0.15, 0.25
MIN_SIDE_PX = 48
"""Objects with a smaller box are not shown: there is no detail to see."""
PER_KIND = 2
TRUTH_COLOR: Color = (255, 255, 255)
COLORS: tuple[Color, ...] = ((255, 176, 0), (60, 230, 150))
Found = Mapping[str, Mapping[int, FoundObject]]


@dataclass(frozen=True)
class CloseUp:
    """An object that both models found."""

    image: str
    number: int
    """Its place among the image's objects."""
    kind: str
    """`gain`, `middle` or `loss`: how the second model's boundary compares with the first one's."""
    first: FoundObject
    second: FoundObject

    @property
    def gain(self) -> float:
        """Return by how much the second model's boundary IoU is higher."""
        return self.second.boundary_iou - self.first.boundary_iou


def choose_close_ups(first: Found, second: Found, *, count: int = PER_KIND) -> list[CloseUp]:
    """Choose objects that both found: `count` each of the greatest gains, of the middle and of the greatest losses."""
    pairs = [
        CloseUp(image, number, "middle", found, second[image][number])
        for image, objects in first.items()
        for number, found in objects.items()
        if number in second.get(image, {}) and _is_large(found.mask)
    ]
    ranked = sorted(pairs, key=lambda pair: (-pair.gain, pair.image, pair.number))
    if len(ranked) <= 3 * count:
        return ranked
    middle = (len(ranked) - count) // 2
    kinds = {"gain": ranked[:count], "middle": ranked[middle : middle + count], "loss": ranked[-count:]}
    return [CloseUp(x.image, x.number, kind, x.first, x.second) for kind, some in kinds.items() for x in some]


def draw_close_up(pixels: NDArray[np.uint8], truth: Rle, close_up: CloseUp, labels: Sequence[str]) -> Image.Image:
    """Draw the object's truth beside what both models found, whole above and enlarged below."""
    masks = [truth, close_up.first.mask, close_up.second.mask]
    whole = _frame(masks, pixels.shape[:2])
    windows = [whole, _find_dispute(close_up.first.mask, close_up.second.mask, whole)]
    ious = ["", *(f", boundary IoU {x.boundary_iou:.2f}" for x in (close_up.first, close_up.second))]
    names = [f"{label}{iou}" for label, iou in zip(("ground truth", *labels), ious, strict=True)]
    width, height = PANEL_PX
    sheet = Image.new("RGB", (3 * width + 2 * GAP_PX, HEADER_PX + 2 * height + GAP_PX), DARK)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX)
    for column, (name, mask, color) in enumerate(zip(names, masks, (TRUTH_COLOR, *COLORS), strict=True)):
        left = column * (width + GAP_PX)
        pen.text((left + 6, HEADER_PX / 2), name, WHITE, font, anchor="lm")
        for row, window in enumerate(windows):
            inner = windows[1] if row == 0 else None
            sheet.paste(_draw_panel(pixels, mask, window, color, inner), (left, HEADER_PX + row * (height + GAP_PX)))
    return sheet


def _is_large(mask: Rle) -> bool:
    return bool(min(cut_mask(mask)[0].shape) >= MIN_SIDE_PX)


def _frame(masks: Sequence[Rle], size: tuple[int, ...]) -> Window:
    """Return a window of the panels' shape around masks, as far as the image reaches."""
    cuts = [cut_mask(mask) for mask in masks]
    x0, y0 = min(left for _, _, left in cuts), min(top for _, top, _ in cuts)
    x1 = max(left + crop.shape[1] for crop, _, left in cuts)
    y1 = max(top + crop.shape[0] for crop, top, _ in cuts)
    return _fit_window((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) * (1 + 2 * MARGIN), (y1 - y0) * (1 + 2 * MARGIN), size)


def _fit_window(x: float, y: float, width: float, height: float, size: tuple[int, ...]) -> Window:
    """Return a window around a point that holds (width, height), has the panels' shape and lies in the image."""
    ratio = PANEL_PX[0] / PANEL_PX[1]
    width, height = max(width, height * ratio), max(height, width / ratio)
    scale = min(1.0, size[1] / width, size[0] / height)
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    left = round(min(max(x - width / 2, 0), size[1] - width))
    top = round(min(max(y - height / 2, 0), size[0] - height))
    return left, top, left + int(width), top + int(height)


def _find_dispute(first: Rle, second: Rle, window: Window) -> Window:
    """Return the smaller window, inside another, in which two masks differ in most pixels."""
    dispute = _cut_window(first, window) != _cut_window(second, window)
    height, width = (max(1, round(side * ZOOM)) for side in dispute.shape)
    share = uniform_filter(dispute.astype(np.float32), (height, width), mode="constant")
    row, column = np.unravel_index(int(share.argmax()), share.shape)
    inner = _fit_window(float(column), float(row), width, height, dispute.shape)
    return inner[0] + window[0], inner[1] + window[1], inner[2] + window[0], inner[3] + window[1]


def _cut_window(mask: Rle, window: Window) -> NDArray[np.bool_]:
    """Return a mask within a window."""
    crop, top, left = cut_mask(mask)
    x0, y0, x1, y1 = window
    inside = np.zeros((y1 - y0, x1 - x0), dtype=bool)
    rows = slice(max(top, y0), min(top + crop.shape[0], y1))
    columns = slice(max(left, x0), min(left + crop.shape[1], x1))
    if rows.stop > rows.start and columns.stop > columns.start:
        part = crop[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        inside[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0] = part
    return inside


def _draw_panel(
    pixels: NDArray[np.uint8], mask: Rle, window: Window, color: Color, inner: Window | None
) -> Image.Image:
    """Draw a window of an image, the outline of a mask in it, and the frame of what is enlarged elsewhere."""
    x0, y0, x1, y1 = window
    shown = Image.fromarray(pixels[y0:y1, x0:x1]).resize(PANEL_PX, Image.Resampling.BICUBIC)
    panel = np.asarray(shown).copy()
    scale = np.array((PANEL_PX[0] / (x1 - x0), PANEL_PX[1] / (y1 - y0)))
    field = np.pad(_cut_window(mask, window).astype(np.float64), 1, mode="edge")
    lines = [(np.asarray(line) - 0.5) * scale for line in contour_generator(z=field).lines(0.5)]
    draw_line(panel, lines, color, "plain")
    picture = Image.fromarray(panel)
    if inner is not None:
        corners = [((inner[i] - window[i % 2]) * scale[i % 2]).item() for i in range(4)]
        ImageDraw.Draw(picture).rectangle(corners, outline=WHITE)
    return picture
