import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import ndimage
from tiny_tree import paint_raster

from cityopt.data.augment import augment_sample, blur_image, jitter_colors, zoom_sample
from cityopt.data.targets import find_instances

Pair = tuple[NDArray[np.uint8], NDArray[np.uint16]]
CAR = 26000


def make_pair(size: tuple[int, int] = (60, 120), box: tuple[int, int, int, int] = (40, 20, 80, 50)) -> Pair:
    """A bright car on a dark street, in image and raster."""
    raster = np.full(size, 7, dtype=np.uint16)
    raster[box[1] : box[3], box[0] : box[2]] = CAR
    image = np.where(raster[..., None] == CAR, 200, 40).astype(np.uint8)
    return np.repeat(image, 3, axis=-1), raster


def test_augment_sample_mirrors_image_raster_and_boxes_when_it_flips() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)
    raster = paint_raster((30, 50), rng, 6)
    flipped, ids = augment_sample(image, raster, rng, hflip=1.0, scale_jitter=(1.0, 1.0))
    for x in range(50):
        np.testing.assert_array_equal(flipped[:, x], image[:, 49 - x])
        np.testing.assert_array_equal(ids[:, x], raster[:, 49 - x])
    before, after = find_instances(raster).boxes_xyxy, find_instances(ids).boxes_xyxy
    np.testing.assert_array_equal(
        after, np.stack([50 - before[:, 2], before[:, 1], 50 - before[:, 0], before[:, 3]], 1)
    )


def test_augment_sample_changes_nothing_when_it_is_off() -> None:
    image, raster = make_pair()
    same, ids = augment_sample(image, raster, np.random.default_rng(0), hflip=0.0, scale_jitter=(1.0, 1.0))
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(ids, raster)


def test_augment_sample_flips_about_as_often_as_asked() -> None:
    image, raster = make_pair(box=(0, 20, 10, 50))
    rng = np.random.default_rng(0)
    flips = 0
    for _ in range(400):
        ids = augment_sample(image, raster, rng, hflip=0.25, scale_jitter=(1.0, 1.0))[1]
        flips += int(ids[30, -1] == CAR)
    assert 65 <= flips <= 135  # four standard deviations around 100


def test_augment_sample_draws_zooms_over_the_range_when_it_jitters() -> None:
    image, raster = make_pair(box=(0, 0, 120, 60))
    rng = np.random.default_rng(0)
    sides = []
    for _ in range(300):
        ids = augment_sample(image, raster, rng, hflip=0.0, scale_jitter=(0.5, 1.0))[1]
        (box,) = find_instances(ids).boxes_xyxy
        sides.append((box[2] - box[0]) / 120)
    assert min(sides) == pytest.approx(0.5, abs=0.02)
    assert max(sides) == pytest.approx(1.0, abs=0.02)
    assert np.median(sides) == pytest.approx(0.5**0.5, abs=0.04)  # even in the logarithm


@pytest.mark.parametrize("crop", [0.5, 0.25])
def test_augment_sample_zooms_random_windows_to_the_frame_when_it_crops(crop: float) -> None:
    """Each pixel's id says where it is: what is seen spans that share of both sides, at places all over the image."""
    side = 48
    raster = np.arange(side * side, dtype=np.uint16).reshape(side, side)
    image = np.repeat(raster.astype(np.uint8)[..., None], 3, axis=-1)
    rng, tops = np.random.default_rng(0), []
    for _ in range(100):
        seen, ids = augment_sample(image, raster, rng, hflip=0.0, scale_jitter=(1.0, 1.0), crop=crop)
        assert (seen.shape, ids.shape) == (image.shape, raster.shape)
        rows, columns = np.unique(ids // side), np.unique(ids % side)
        for places in (rows, columns):
            np.testing.assert_array_equal(places, np.arange(places[0], places[0] + round(crop * side)))
        tops.append(int(rows[0]))
    assert min(tops) <= 2 and max(tops) >= side - round(crop * side) - 2


def test_augment_sample_repeats_when_the_generator_does() -> None:
    image, raster = make_pair()
    first, second = (
        augment_sample(image, raster, np.random.default_rng(3), hflip=0.5, scale_jitter=(0.5, 2.0)) for _ in range(2)
    )
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.25)])
def test_zoom_sample_doubles_the_box_when_it_crops(place: tuple[float, float]) -> None:
    image, raster = make_pair(box=(50, 25, 60, 32))
    zoomed, ids = zoom_sample(image, raster, 2.0, place)
    assert zoomed.shape == image.shape
    top, left = place[0] * 30, place[1] * 60
    expected = np.clip([2 * (50 - left), 2 * (25 - top), 2 * (60 - left), 2 * (32 - top)], 0, (120, 60, 120, 60))
    found = find_instances(ids).boxes_xyxy
    if expected[0] < expected[2] and expected[1] < expected[3]:
        np.testing.assert_array_equal(found, [expected])
    else:
        assert len(found) == 0


def test_zoom_sample_pads_with_black_and_nothing_when_it_shrinks() -> None:
    image, raster = make_pair()
    zoomed, ids = zoom_sample(image, raster, 0.5, (1.0, 0.0))
    assert zoomed.shape == image.shape
    assert ids.shape == raster.shape
    assert not zoomed[:30].any()
    assert not zoomed[:, 60:].any()
    assert not ids[:30].any()
    assert not ids[:, 60:].any()
    assert (zoomed[30:, :60] > 0).all()
    assert find_instances(ids).boxes_xyxy.tolist() == [[20, 40, 40, 55]]


@pytest.mark.parametrize("zoom", [0.3, 0.71, 0.99, 1.0, 1.01, 1.37, 3.0])
def test_zoom_sample_keeps_mask_and_picture_together_at_any_factor(zoom: float) -> None:
    image, raster = make_pair((61, 119), (37, 17, 83, 47))
    zoomed, ids = zoom_sample(image, raster, zoom, (0.6, 0.4))
    bright, car = zoomed[..., 0] > 120, ids == CAR
    assert (bright & car).sum() / (bright | car).sum() > 0.9


def test_zoom_sample_keeps_a_pixel_when_the_zoom_is_extreme() -> None:
    image, raster = make_pair((8, 8), (0, 0, 8, 8))
    assert (zoom_sample(image, raster, 0.01, (0.5, 0.5))[1] > 0).sum() == 1
    assert (zoom_sample(image, raster, 100.0, (0.5, 0.5))[1] == CAR).all()


def draw_picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (24, 40, 3)).astype(np.uint8)


def test_jitter_changes_one_property_at_a_time_as_pillow_does() -> None:
    picture = draw_picture()
    same = [0.0] * 4
    np.testing.assert_array_equal(jitter_colors(picture, same), picture)
    for place, enhance in enumerate((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)):
        found = jitter_colors(picture, [*same[:place], 0.75, *same[place + 1 :]])
        expected = np.asarray(enhance(Image.fromarray(picture)).enhance(1.15))
        assert np.abs(found.astype(int) - expected).max() <= 2
    turned = jitter_colors(picture, [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(turned.max(axis=2), picture.max(axis=2), atol=1)  # a hue leaves the brightest channel


def test_blur_equals_scipy_within_the_picture() -> None:
    picture = draw_picture()
    found = blur_image(picture, 1.2)
    expected = ndimage.gaussian_filter(picture.astype(float), (1.2, 1.2, 0), truncate=3.4)
    assert np.abs(found[5:-5, 5:-5] - expected[5:-5, 5:-5]).max() < 2


def test_colours_leave_the_raster_and_the_draws_of_old_alone_when_they_are_asked_for() -> None:
    picture, raster = draw_picture(), np.arange(24 * 40, dtype=np.uint16).reshape(24, 40)
    settings = {"hflip": 0.5, "scale_jitter": (0.8, 1.25)}
    plain = augment_sample(picture, raster, np.random.default_rng(3), **settings)
    colored = augment_sample(picture, raster, np.random.default_rng(3), **settings, color_jitter=1.0, blur=1.0)
    np.testing.assert_array_equal(colored[1], plain[1])
    assert (colored[0] != plain[0]).any()
