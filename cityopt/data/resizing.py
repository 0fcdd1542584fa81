"""Resize images and rasters: one rule for the cache, which does it once, and for augmentation, which zooms.

Both take the centre of a pixel for its place, so an image and its raster stay aligned.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (height, width) bilinearly; Pillow's filter antialiases when it shrinks."""
    if image.shape[:2] == size:
        return image
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_raster(raster: NDArray[np.uint16], size: tuple[int, int]) -> NDArray[np.uint16]:
    """Resize (H, W) ids to (height, width): each new pixel takes the old one under its centre."""
    if raster.shape == size:
        return raster
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, raster.shape, strict=True)
    )
    resized: NDArray[np.uint16] = raster.take(rows, axis=0).take(columns, axis=1)
    return resized
