"""Flip and zoom an image and its raster together, and change the image's colours, at random but repeatably.

Stands between cache and targets: the raw ids are moved first and instances are found afterwards, so boxes and masks
always fit each other. Every sample draws from a generator of its own, so no order of workers can change it.

Shapes: H, W height and width in pixels, which an augmentation never changes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from cityopt.data.resizing import resize_raster

COLOR_RANGES = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1}
"""How far `color_jitter: 1` goes: factors of 1 -/+ the range, and a turn of the hue by -/+ the range."""
BLUR_SIGMAS_PX = (0.1, 2.0)
_Sample = tuple[NDArray[np.uint8], NDArray[np.uint16]]


def augment_sample(
    image: NDArray[np.uint8],
    raster: NDArray[np.uint16],
    rng: np.random.Generator,
    *,
    hflip: float,
    scale_jitter: tuple[float, float],
    crop: float = 1.0,
    color_jitter: float = 0.0,
    blur: float = 0.0,
) -> _Sample:
    """Return image (H, W, 3) uint8 and raster (H, W) uint16, zoomed and perhaps mirrored; they may be views.

    `hflip` is the chance of a mirror image. `scale_jitter` is the range of the zoom, drawn evenly in its logarithm:
    above 1 a random crop fills the frame, below 1 the image lies at a random place on black, with id 0.
    `crop`, in (0, 1], zooms in further, by 1 / crop: alone it shows a random window of that share of each side.
    `color_jitter` is the strength of random colours (see `COLOR_RANGES`), `blur` the chance of a Gaussian blur.
    """
    flip, zoom, down, right = rng.random(4)
    low, high = scale_jitter
    image, raster = zoom_sample(image, raster, low * (high / low) ** zoom / crop, (down, right))
    if flip < hflip:
        image, raster = image[:, ::-1], raster[:, ::-1]
    if color_jitter:
        image = jitter_colors(image, rng.uniform(-color_jitter, color_jitter, len(COLOR_RANGES)).tolist())
    if blur and rng.random() < blur:
        image = blur_image(image, rng.uniform(*BLUR_SIGMAS_PX))
    return image, raster


def jitter_colors(image: NDArray[np.uint8], shifts: Sequence[float]) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue of (H, W, 3) uint8, each by its shift in [-1, 1] of its range."""
    amounts = dict(zip(COLOR_RANGES, (s * r for s, r in zip(shifts, COLOR_RANGES.values(), strict=True)), strict=True))
    pixels = _to_tensor(image)
    pixels = functional.adjust_brightness(pixels, 1 + amounts["brightness"])
    pixels = functional.adjust_contrast(pixels, 1 + amounts["contrast"])
    pixels = functional.adjust_saturation(pixels, 1 + amounts["saturation"])
    return _to_array(functional.adjust_hue(pixels, amounts["hue"]))


def blur_image(image: NDArray[np.uint8], sigma_px: float) -> NDArray[np.uint8]:
    """Blur (H, W, 3) uint8 with a Gaussian of a sigma in px."""
    side = 2 * max(1, round(3 * sigma_px)) + 1
    return _to_array(functional.gaussian_blur(_to_tensor(image), [side, side], [sigma_px, sigma_px]))


def _to_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _to_array(pixels: torch.Tensor) -> NDArray[np.uint8]:
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return array


def zoom_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to (height, width) as `resize_image` does, within one level, in a quarter of its time."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]  # a copy: the cache cannot be written
    zoomed = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return _to_array(zoomed[0])


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
        return zoom_image(image[window], (height, width)), resize_raster(raster[window], (height, width))
    black, nothing = np.zeros_like(image), np.zeros_like(raster)
    black[window] = zoom_image(image, small)
    nothing[window] = resize_raster(raster, small)
    return black, nothing
