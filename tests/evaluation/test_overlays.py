"""Overlays: the right pixels in the right colours, readable captions, one size for every panel."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle_tools

from cityopt.evaluation.drawing import FATE_COLORS, HEADER_PX, choose_panel_size, draw_line
from cityopt.evaluation.matching import list_instances, match_detections
from cityopt.evaluation.overlays import GAP_PX, draw_overlay, encode_picture, outline_instances
from cityopt.labels import THING_LABELS

SIZE = (96, 192)
SCALE = 4  # 768 / 192


def predict(*masks, classes, scores):
    return SimpleNamespace(
        size=SIZE,
        masks=[rle_tools.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks],
        classes=np.array(classes, np.int64),
        scores=np.array(scores, np.float32),
        boxes_xyxy=np.zeros((len(masks), 4), np.float32),
    )


def fill_box(y0, x0, y1, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


GREY = np.full((*SIZE, 3), 120, np.uint8)
NOTHING = predict(classes=[], scores=[])


def look(picture, y, x, panel=0):
    """Return the colour in the middle of a pixel of the original image."""
    return picture.getpixel((int(panel * (768 + GAP_PX) + SCALE * x + 2), HEADER_PX + SCALE * y + 2))


def test_overlay_mixes_palette_and_image_when_a_pixel_is_in_a_mask():
    picture = draw_overlay(GREY, predict(fill_box(40, 50, 70, 90), classes=[3], scores=[0.9]), None)
    assert picture.size == (768, SCALE * 96 + HEADER_PX)
    expected = 0.55 * 120 + 0.45 * np.array(THING_LABELS[2].color)
    assert look(picture, 55, 70) == pytest.approx(expected, abs=1)
    assert look(picture, 55, 100) == look(picture, 80, 70) == (120, 120, 120)
    assert sum(look(picture, 55, 49.5)) > sum(expected) + 100  # a bright outline


def test_overlay_leaves_the_image_alone_when_the_score_is_too_low():
    prediction = predict(fill_box(40, 50, 70, 90), classes=[3], scores=[0.4])
    below, empty = (np.asarray(draw_overlay(GREY, p, None))[HEADER_PX:] for p in (prediction, NOTHING))
    np.testing.assert_array_equal(below, empty)
    assert (below == 120).all()
    shown = np.asarray(draw_overlay(GREY, prediction, None, score=0.3))[HEADER_PX:]
    assert (shown != 120).any()


def test_overlay_draws_the_better_detection_on_top_when_two_overlap():
    masks = fill_box(40, 50, 70, 90), fill_box(30, 40, 80, 100)
    picture = draw_overlay(GREY, predict(*masks, classes=[1, 3], scores=[0.9, 0.8]), None)
    red, _, blue = look(picture, 55, 70)
    assert red > blue


def test_overlay_shows_the_ground_truth_when_there_is_a_raster():
    raster = np.full(SIZE, 7, np.uint16)
    raster[40:70, 20:60] = 26003
    raster[40:70, 100:140] = 24  # a group: outlined, not filled
    raster[80:90, 20:60] = 29000  # a caravan is no thing
    picture = draw_overlay(GREY, NOTHING, raster)
    assert picture.size == (2 * 768 + GAP_PX, SCALE * 96 + HEADER_PX)
    assert look(picture, 55, 40, panel=0) == (120, 120, 120)
    assert look(picture, 55, 40, panel=1) == pytest.approx(0.55 * 120 + 0.45 * np.array((0, 0, 142)), abs=1)
    assert look(picture, 55, 120, panel=1) == look(picture, 85, 40, panel=1) == (120, 120, 120)
    assert look(picture, 55, 99.5, panel=1) == (200, 200, 200)
    found = list_instances(raster)
    names = [
        (shape.caption, shape.fate == "group") for shape in outline_instances(found, match_detections(NOTHING, found))
    ]
    assert sorted(names) == [("car", False), ("person group", True)]


def relative_luminance(color):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(color) / 255]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("class_index", range(1, 9))
@pytest.mark.parametrize("brightness", [0, 255])
def test_captions_can_be_read_when_the_image_is_dark_or_bright(class_index, brightness):
    image = np.full((*SIZE, 3), brightness, np.uint8)
    picture = draw_overlay(image, predict(fill_box(40, 50, 70, 90), classes=[class_index], scores=[0.9]), None)
    tag = np.asarray(picture)[HEADER_PX + SCALE * 40 - 17 : HEADER_PX + SCALE * 40, SCALE * 50 : SCALE * 50 + 50]
    assert (tag == 255).all(axis=2).sum() > 20  # letters
    assert (1.0 + 0.05) / (relative_luminance(tag[0, 0]) + 0.05) > 4.5  # contrast, WCAG 2 level AA


def test_overlay_keeps_captions_apart_when_objects_crowd():
    rng = np.random.default_rng(0)
    masks = [fill_box(y, x, y + 20, x + 20) for y, x in rng.integers(0, (76, 172), (60, 2))]
    scores = np.sort(rng.uniform(0.5, 1, 60))[::-1]
    picture = np.asarray(draw_overlay(GREY, predict(*masks, classes=[6] * 60, scores=scores), None)).astype(int)
    ground = np.abs(picture - np.round(np.array(THING_LABELS[5].color) * 0.75)).max(axis=2) == 0
    assert ground[:HEADER_PX].sum() == 0
    alone = np.asarray(draw_overlay(GREY, predict(masks[0], classes=[6], scores=[0.95]), None)).astype(int)
    one = (np.abs(alone - np.round(np.array(THING_LABELS[5].color) * 0.75)).max(axis=2) == 0).sum()
    assert 10 * one < ground.sum() < 60 * one


def test_overlay_survives_when_a_mask_is_empty_or_one_pixel():
    masks = fill_box(0, 0, 0, 0), fill_box(95, 191, 96, 192)
    picture = draw_overlay(GREY, predict(*masks, classes=[1, 2], scores=[0.9, 0.9]), None)
    assert picture.getpixel((766, HEADER_PX + SCALE * 96 - 2)) != (120, 120, 120)


@pytest.mark.parametrize(("width", "expected"), [(64, 768), (900, 900), (2048, 1280)])
def test_overlay_width_stays_readable_when_images_are_small_or_large(width, expected):
    nothing = SimpleNamespace(**{**vars(NOTHING), "size": (40, width)})
    assert draw_overlay(np.zeros((40, width, 3), np.uint8), nothing, None).width == expected


def test_overlay_refuses_sizes_that_differ():
    with pytest.raises(ValueError, match=r"one size .*\(50, 60\)"):
        draw_overlay(GREY, NOTHING, np.zeros((50, 60), np.uint16))


def test_encode_picture_gives_a_jpeg_that_looks_the_same():
    picture = draw_overlay(GREY, predict(fill_box(40, 50, 70, 90), classes=[3], scores=[0.9]), None)
    opened = Image.open(io.BytesIO(encode_picture(picture)))
    assert opened.format == "JPEG"
    assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - np.asarray(picture)).mean() <= 4


def count_near(picture, color, panel):
    """Count the pixels of a panel, without its header, that have a colour."""
    left = panel * (768 + GAP_PX)
    pixels = np.asarray(picture)[HEADER_PX:, left : left + 768].astype(int)
    return int((np.abs(pixels - color).max(axis=2) <= 2).sum())


def test_outlines_tell_found_false_and_missed_apart_when_there_is_ground_truth():
    raster = np.full(SIZE, 7, np.uint16)
    raster[40:70, 20:60] = 26003  # found
    raster[40:70, 120:160] = 26004  # missed
    masks = fill_box(40, 22, 70, 60), fill_box(5, 80, 35, 110)
    picture = draw_overlay(GREY, predict(*masks, classes=[3, 3], scores=[0.9, 0.8]), raster)
    pixels = {
        (fate, panel): count_near(picture, FATE_COLORS[fate], panel)
        for fate in ("found", "false", "missed")
        for panel in (0, 1)
    }
    perimeter = 2 * SCALE * (30 + 40)
    assert pixels["found", 0] > perimeter and pixels["found", 1] > perimeter  # whole, about two pixels wide
    assert 0.3 * perimeter < pixels["false", 0] < 1.6 * perimeter  # dashed
    assert 0.3 * perimeter < pixels["missed", 1] < 1.6 * perimeter
    assert pixels["false", 1] == pixels["missed", 0] == 0
    plain = draw_overlay(GREY, predict(*masks, classes=[3, 3], scores=[0.9, 0.8]), None)
    assert not any(count_near(plain, color, 0) for color in FATE_COLORS.values())


@pytest.mark.parametrize("brightness", [0, 90, 255])
@pytest.mark.parametrize("fate", ["found", "false", "missed"])
def test_outlines_can_be_seen_when_the_image_is_dark_or_bright(fate, brightness):
    """Light line and dark line: one of them differs from the ground, and they differ from each other."""
    pixels = np.full((20, 200, 3), brightness, np.uint8)
    draw_line(pixels, [np.array([(0.0, 10.0), (200.0, 10.0)])], FATE_COLORS[fate], fate)
    column = [relative_luminance(color) + 0.05 for color in pixels[:, 4]]
    assert max(column[6:14]) / min(column[6:14]) > 3  # WCAG 2, graphical objects
    dashes = np.abs(pixels[10].astype(int) - FATE_COLORS[fate]).max(axis=1) <= 2
    assert dashes.all() if fate == "found" else 0.35 < dashes.mean() < 0.75


def test_boxes_are_drawn_where_the_model_put_them():
    prediction = predict(fill_box(40, 50, 70, 90), classes=[3], scores=[0.9])
    prediction.boxes_xyxy[:] = (40.0, 30.0, 100.0, 80.0)
    picture = draw_overlay(GREY, prediction, None)
    for y, x in ((30, 70), (80, 70), (55, 40), (55, 100)):
        around = [picture.getpixel((SCALE * x + i, HEADER_PX + SCALE * y + j)) for i in (-1, 0) for j in (-1, 0)]
        assert max(max(color) for color in around) > 180, (y, x)
    assert look(picture, 35, 70) == (120, 120, 120)


def test_overlay_is_not_blown_up_when_the_image_is_tall():
    nothing = SimpleNamespace(**{**vars(NOTHING), "size": (3000, 40)})
    assert draw_overlay(np.zeros((3000, 40, 3), np.uint8), nothing, None).size == (768, 1600 + HEADER_PX)
    assert choose_panel_size(360, 180) == (512, 1024)
    assert choose_panel_size(1200, 900) == (900, 1200)
