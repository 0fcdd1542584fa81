"""Pictures of maps of label ids: the predicted classes beside those that are there, in the Cityscapes palette.

What `overlays.py` is for instances this is for semantic models. Void of the ground truth stays as dark as it is in the
photograph. Under the two panels stands a legend of the classes in the picture, with the IoU of each on this image.

Shapes: images `(H, W, 3)` uint8, maps and rasters `(H, W)`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cityopt.evaluation.drawing import DARK, HEADER_PX, TEXT_PX, WHITE, choose_panel_size
from cityopt.evaluation.overlaps import IGNORED, find_label_ids
from cityopt.evaluation.overlays import GAP_PX
from cityopt.labels import EVALUATED_LABELS, LABELS, Label

FILL = 0.6
_SWATCH_PX = 12
_PALETTE = np.array([label.color for label in LABELS if label.id >= 0], dtype=np.float64)


def draw_maps(image: NDArray[np.uint8], label_ids: NDArray[np.uint8], raster: NDArray[Any] | None) -> Image.Image:
    """Draw the predicted classes `(H, W)` on an image, and beside them those of the instanceIds raster.

    Raises ValueError: image, map and raster of different sizes.
    """
    sizes = {image.shape[:2], label_ids.shape} | (set() if raster is None else {raster.shape})
    if len(sizes) != 1:
        raise ValueError(f"image, map and raster must have one size (height, width), but got {sorted(sizes)}.")
    panels = [_draw_panel(image, label_ids, "predicted classes")]
    truth = None
    if raster is not None:
        truth = find_label_ids(raster)
        panels.append(_draw_panel(image, truth, "ground truth; below, the IoU of each class on this image"))
    width = sum(panel.width for panel in panels) + GAP_PX * (len(panels) - 1)
    legend = _draw_legend(label_ids, truth, width)
    strip = Image.new("RGB", (width, panels[0].height + legend.height), DARK)
    for number, panel in enumerate(panels):
        strip.paste(panel, (number * (panel.width + GAP_PX), 0))
    strip.paste(legend, (0, panels[0].height))
    return strip


def _draw_panel(image: NDArray[np.uint8], label_ids: NDArray[Any], title: str) -> Image.Image:
    colored = image * (1 - FILL) + _PALETTE[label_ids] * FILL
    pixels = np.where(IGNORED[label_ids][..., None], image * (1 - FILL), colored).astype(np.uint8)
    size = choose_panel_size(image.shape[0], image.shape[1])
    panel = Image.new("RGB", (size[0], size[1] + HEADER_PX), DARK)
    panel.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), (0, HEADER_PX))
    font = ImageFont.load_default(TEXT_PX)
    ImageDraw.Draw(panel).text((8, HEADER_PX / 2), title, WHITE, font, anchor="lm")
    return panel


def _draw_legend(label_ids: NDArray[Any], truth: NDArray[Any] | None, width: int) -> Image.Image:
    """Draw a swatch per class in the picture, the largest first, in as many lines as they need."""
    font = ImageFont.load_default(TEXT_PX)
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    entries = [(label, _caption(label, label_ids, truth)) for label in _list_classes(label_ids, truth)]
    places, x, y = [], 8, 0
    for label, caption in entries:
        needed = _SWATCH_PX + 6 + round(probe.textlength(caption, font)) + 18
        if x + needed > width and x > 8:
            x, y = 8, y + HEADER_PX
        places.append((x, y, label, caption))
        x += needed
    legend = Image.new("RGB", (width, y + HEADER_PX), DARK)
    draw = ImageDraw.Draw(legend)
    for x, y, label, caption in places:
        top = y + (HEADER_PX - _SWATCH_PX) // 2
        draw.rectangle((x, top, x + _SWATCH_PX - 1, top + _SWATCH_PX - 1), label.color, outline=(200, 200, 200))
        draw.text((x + _SWATCH_PX + 6, y + HEADER_PX / 2), caption, WHITE, font, anchor="lm")
    return legend


def _list_classes(label_ids: NDArray[Any], truth: NDArray[Any] | None) -> list[Label]:
    shown = label_ids if truth is None else truth
    pixels = np.bincount(shown.ravel(), minlength=len(_PALETTE))
    present = pixels + np.bincount(label_ids.ravel(), minlength=len(_PALETTE))
    return sorted((x for x in EVALUATED_LABELS if present[x.id]), key=lambda x: -int(pixels[x.id]))


def _caption(label: Label, label_ids: NDArray[Any], truth: NDArray[Any] | None) -> str:
    if truth is None:
        return label.name
    found, there = (label_ids == label.id) & ~IGNORED[truth], truth == label.id
    union = int((found | there).sum())
    return f"{label.name} {int((found & there).sum()) / union:.2f}" if union else label.name
