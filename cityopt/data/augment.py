"""Flip and zoom an image and its raster together, at random but repeatably.

Stands between cache and targets: the raw ids are moved first and instances are found afterwards, so boxes and masks
always fit each other. Every sample draws from a generator of its own, so no order of workers can change it.

Shapes: H, W height and width in pixels, which an augmentation never changes.
"""

import numpy as np
from numpy.typing import NDArray

from cityopt.data.resizing import resize_image, resize_raster

_Sample = tuple[NDArray[np.uint8], NDArray[np.uint16]]


def augment_sample(
    image: NDArray[np.uint8],
    raster: NDArray[np.uint16],
    rng: np.random.Generator,
    *,
    hflip: float,
    scale_jitter: tuple[float, float],
) -> _Sample:
    """Return image (H, W, 3) uint8 and raster (H, W) uint16, zoomed and perhaps mirrored; they may be views.

    `hflip` is the chance of a mirror image. `scale_jitter` is the range of the zoom, drawn evenly in its logarithm:
    above 1 a random crop fills the frame, below 1 the image lies at a random place on black, with id 0.
    """
    flip, zoom, down, right = rng.random(4)
    low, high = scale_jitter
    image, raster = zoom_sample(image, raster, low * (high / low) ** zoom, (down, right))
    if flip < hflip:
        image, raster = image[:, ::-1], raster[:, ::-1]
    return image, raster


def zoom_sample(
    image: NDArray[np.uint8], raster: NDArray[np.uint16], zoom: float, place: tuple[float, float]
) -> _Sample:
    """Zoom image (H, W, 3) and raster (H, W) by a factor and keep their size.

    `place`, in [0, 1] down and to the right, says which part is cropped, or where the smaller image lies.
    """
    height, width = raster.shape
    factor = min(zoom, 1 / zoom)
    small = max(1, round(height * factor)), max(1, round(width * factor))
    if small == (height, width):
        return image, raster
    top, left = round(place[0] * (height - small[0])), round(place[1] * (width - small[1]))
    window = slice(top, top + small[0]), slice(left, left + small[1])
    if zoom > 1:
        return resize_image(image[window], (height, width)), resize_raster(raster[window], (height, width))
    black, nothing = np.zeros_like(image), np.zeros_like(raster)
    black[window] = resize_image(image, small)
    nothing[window] = resize_raster(raster, small)
    return black, nothing
