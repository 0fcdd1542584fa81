"""The pictures of a dataset: what they draw is what was counted, and they are drawn whatever there is to draw."""

import io

import numpy as np
import pytest
from PIL import Image
from small_statistics import make_statistics

from cityopt.config import DEFAULT_ANCHORS, AnchorTable
from cityopt.data.anchors import NamedAnchors
from cityopt.data.tallies import tabulate_classes, tabulate_labels
from cityopt.report import data_figures
from cityopt.report.data_figures import draw_cities, draw_classes, draw_labels, draw_objects_per_image
from cityopt.report.figures import format_percents, join_words, render
from cityopt.report.object_figures import draw_areas, draw_ratios, draw_visibility, scale_boxes

DEFAULTS = NamedAnchors(DEFAULT_ANCHORS, "torchvision's default anchors", None)
OWN = NamedAnchors(
    AnchorTable(sizes=tuple((size, size * 1.1, size * 1.2) for size in (6.0, 11.0, 23.0, 41.0, 80.0)),
                ratios=((0.4, 1.1, 2.6),) * 5),
    "k-means anchors of street",
    (30, 90),
)  # fmt: skip
DRAWERS = [draw_classes, draw_labels, draw_objects_per_image, draw_areas, draw_visibility, draw_cities]


def read_texts(figure):
    axes = [each for each in figure.axes for each in (*each.texts, each.title, each._left_title)]
    return [text.get_text() for text in (*figure.texts, *axes)]


def read_dots(axes):
    """Return what each series of dots shows: {row: value}."""
    return [{int(y): float(x) for x, y in dots.get_offsets()} for dots in axes.collections]


@pytest.mark.parametrize("anchors", [DEFAULTS, OWN], ids=["defaults", "own"])
def test_anchors_that_are_drawn_are_those_given(anchors):
    main, side = draw_ratios(make_statistics(), anchors).axes
    drawn = {dots.get_label(): 2.0 ** np.asarray(dots.get_offsets()) for dots in main.collections[1:]}
    for level, (sizes, ratios) in enumerate(zip(anchors.table.sizes, anchors.table.ratios, strict=True), start=2):
        assert drawn.pop(f"P{level}").tolist() == [pytest.approx(pair) for pair in zip(sizes, ratios, strict=True)]
    if anchors is OWN:
        others = drawn.pop("torchvision's defaults")
        assert sorted(set(np.round(others[:, 0]))) == [32, 64, 128, 256, 512]
    assert not drawn
    lines = [2 ** segment[0, 1] for each in side.collections for segment in each.get_segments()]
    assert lines == pytest.approx(sorted(set(anchors.table.ratios[0])))


def test_reach_of_the_anchors_is_that_of_a_slow_loop():
    statistics = make_statistics()
    boxes = scale_boxes(statistics, OWN.size)
    reached = [0, 0]
    for left, top, right, bottom in boxes.tolist():
        for place, table in enumerate((OWN.table, DEFAULT_ANCHORS)):
            best = 0.0
            for sizes, ratios in zip(table.sizes, table.ratios, strict=True):
                for size, ratio in zip(sizes, ratios, strict=True):
                    width, height = size / ratio**0.5, size * ratio**0.5
                    common = min(width, right - left) * min(height, bottom - top)
                    best = max(best, common / (width * height + (right - left) * (bottom - top) - common))
            reached[place] += best >= 0.5
    shares = [f"{100 * count / len(boxes):.0f} %" if count else "none" for count in reached]
    title = read_texts(draw_ratios(statistics, OWN))[0]
    assert title.startswith(shares[0]) and shares[1] in title.split(", ")[1]


def test_boxes_are_scaled_to_the_size_the_anchors_are_for():
    statistics = make_statistics()
    before, after = (scale_boxes(statistics, size) for size in (None, (30, 90)))
    assert np.array_equal(before, statistics.objects.boxes_xyxy)
    assert np.allclose(after[:, [0, 2]], before[:, [0, 2]]) and np.allclose(after[:, [1, 3]], before[:, [1, 3]] / 2)


def test_limits_of_both_protocols_are_drawn_into_the_areas():
    (axes,) = draw_areas(make_statistics()).axes
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [100, 32**2, 96**2]
    assert axes.get_xscale() == "log"


def test_classes_show_what_was_counted():
    statistics = make_statistics()
    rows = tabulate_classes(statistics)
    objects, images, pixels, _ = draw_classes(statistics).axes
    for series, split, num_images in ((0, "train", 5), (1, "val", 2)):
        mine = [row for row in rows if row["split"] == split]
        shown = {number: row for number, row in enumerate(mine) if row["objects"]}
        assert read_dots(objects)[series] == {number: row["objects"] for number, row in shown.items()}
        assert read_dots(images)[series] == {n: 100 * row["images"] / num_images for n, row in enumerate(mine)}
        assert read_dots(pixels)[series] == pytest.approx({n: 100 * row["pixel_share"] for n, row in shown.items()})


def test_labels_show_their_share_the_largest_first():
    statistics = make_statistics()
    (axes,) = draw_labels(statistics).axes
    totals: dict[str, int] = {}
    for row in tabulate_labels(statistics):
        totals[row["label"]] = totals.get(row["label"], 0) + row["pixels"]
    expected = sorted(((count, name) for name, count in totals.items() if count), reverse=True)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [name for _, name in expected]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([100 * n / (7 * 60 * 90) for n, _ in expected])


@pytest.mark.parametrize(
    "statistics",
    [make_statistics(num_objects=0), make_statistics(1, 0, 1)],
    ids=["no object", "one object of one split"],
)
def test_picture_is_drawn_whatever_there_is(statistics):
    for draw in (*DRAWERS, lambda found: draw_ratios(found, OWN)):
        figure = draw(statistics)
        with Image.open(io.BytesIO(render(figure))) as image:
            assert image.format == "PNG" and min(image.size) > 250
        title, subtitle, *_ = read_texts(figure)
        assert title and subtitle and "nan" not in " ".join(read_texts(figure))


def test_pictures_repeat_to_the_byte():
    assert len({render(draw_visibility(make_statistics())) for _ in range(2)}) == 1


def test_percents_and_lists_are_said_as_people_do():
    assert format_percents([51.2, 0.384]) == "51 / 0.38 %"
    assert format_percents([None, 100.0]) == "– / 100 %"
    assert format_percents([None, None]) == "–"
    assert format_percents([0.0]) == "0 %"
    assert join_words(["road", "sky", "car"]) == "road, sky and car"
    assert join_words(["road"]) == "road"


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([0, 0, 0, 0], "No image shows an object"),
        ([0, 0, 0, 7], "At least half of the images show no object, the fullest 7"),
        ([0, 1, 1, 7], "Half of the images show 1 object or more, the fullest 7"),
        ([2, 3, 3, 7], "Half of the images show 3 objects or more, the fullest 7"),
    ],
)
def test_title_says_how_many_objects_half_of_the_images_show(objects, said, monkeypatch):
    statistics = make_statistics(num_train=2, num_val=2)
    monkeypatch.setattr(data_figures, "count_per_image", lambda _: np.array(objects))
    assert said in read_texts(draw_objects_per_image(statistics))
