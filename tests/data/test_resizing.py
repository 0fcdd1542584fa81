import numpy as np
import pytest
from PIL import Image

from cityopt.data.resizing import resize_image, resize_raster


@pytest.mark.parametrize("size", [(7, 11), (24, 48), (12, 24), (5, 60), (1, 1)])
def test_resize_raster_takes_the_pixel_under_the_centre(size: tuple[int, int]) -> None:
    raster = np.arange(24 * 48, dtype=np.uint16).reshape(24, 48)
    found = resize_raster(raster, size)
    for y, x in np.ndindex(size):
        assert found[y, x] == raster[int((y + 0.5) * 24 / size[0]), int((x + 0.5) * 48 / size[1])]


def test_resize_raster_equals_pillow_when_it_takes_the_nearest() -> None:
    raster = np.random.default_rng(0).integers(0, 34000, (64, 96)).astype(np.uint16)
    for size in ((32, 48), (20, 96), (100, 100)):
        theirs = np.asarray(Image.fromarray(raster).resize((size[1], size[0]), Image.Resampling.NEAREST))
        np.testing.assert_array_equal(resize_raster(raster, size), theirs)


def test_resize_image_averages_when_it_halves_a_fine_pattern() -> None:
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    image[:, ::2] = 200
    halved = resize_image(image, (16, 16))
    assert halved.shape == (16, 16, 3)
    assert np.abs(halved[:, 2:-2].astype(int) - 100).max() <= 26  # without antialiasing it would be 0 or 200


def test_resize_returns_the_same_array_when_the_size_is_right() -> None:
    image, raster = np.zeros((4, 6, 3), dtype=np.uint8), np.zeros((4, 6), dtype=np.uint16)
    assert resize_image(image, (4, 6)) is image
    assert resize_raster(raster, (4, 6)) is raster


def test_resize_keeps_image_and_raster_aligned_when_the_scale_is_odd() -> None:
    raster = np.zeros((60, 90), dtype=np.uint16)
    raster[20:50, 30:70] = 26000
    image = np.stack([(raster > 0) * np.uint8(200)] * 3, axis=-1)
    for size in ((37, 55), (30, 45), (100, 170)):
        bright = resize_image(image, size)[..., 0] > 100
        inside = resize_raster(raster, size) > 0
        # they may differ by the pixels of an edge that falls between two centres, never by a shifted row
        ys, xs = np.nonzero(bright)
        rows, columns = np.nonzero(inside)
        for a, b in ((ys, rows), (xs, columns)):
            assert abs((a.min() + a.max()) - (b.min() + b.max())) <= 1
