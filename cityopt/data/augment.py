"""Flip and zoom an image and its raster together, at random but repeatably.

Stands between cache and targets: the raw ids are moved first and instances are found afterwards, so boxes and masks
always fit each other. Every sample draws from a generator of its own, so no order of workers can change it.

Shapes: H, W height and width in pixels, which an augmentation never changes.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate


def augment_sample(
    image: Tensor, raster: Tensor, rng: np.random.Generator, *, hflip: float, scale_jitter: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return image (3, H, W) uint8 and raster (H, W) int32, zoomed and perhaps mirrored.

    `hflip` is the chance of a mirror image, `scale_jitter` the range of the zoom: above 1 a random crop fills the
    frame, below 1 the image lies at a random place on black, with id 0. Images are resized bilinearly (with
    antialiasing), rasters to the nearest pixel.
    """
    flip, zoom, down, right = rng.random(4)
    image, raster = zoom_sample(image, raster, _spread(zoom, scale_jitter), (down, right))
    if flip < hflip:
        image, raster = image.flip(-1), raster.flip(-1)
    return image, raster


def zoom_sample(image: Tensor, raster: Tensor, zoom: float, place: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Zoom image (3, H, W) uint8 and raster (H, W) by a factor and keep their size.

    `place`, in [0, 1] down and to the right, says which part is cropped, or where the smaller image lies.
    """
    height, width = raster.shape
    small = round(height * min(zoom, 1 / zoom)), round(width * min(zoom, 1 / zoom))
    small = max(1, small[0]), max(1, small[1])
    if small == (height, width):
        return image, raster
    top, left = round(place[0] * (height - small[0])), round(place[1] * (width - small[1]))
    window = (..., slice(top, top + small[0]), slice(left, left + small[1]))
    if zoom > 1:
        return _resize_image(image[window], (height, width)), _resize_raster(raster[window], (height, width))
    black, nothing = torch.zeros_like(image), torch.zeros_like(raster)
    black[window] = _resize_image(image, small)
    nothing[window] = _resize_raster(raster, small)
    return black, nothing


def _spread(value: float, interval: tuple[float, float]) -> float:
    """Map [0, 1) to an interval, evenly in the logarithm: twice and half the size are equally far from 1."""
    low, high = interval
    return float(low * (high / low) ** value)


def _resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _resize_raster(raster: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long() for new, old in zip(size, raster.shape, strict=True)
    )
    return raster[rows][:, columns]
