"""Pictures of classes: what is painted where, and what the legend counts."""

import numpy as np
import pytest

from cityopt.evaluation.drawing import HEADER_PX
from cityopt.evaluation.maps import FILL, _caption, draw_maps
from cityopt.labels import BY_NAME

ROAD, SKY, CAR = (BY_NAME[name].id for name in ("road", "sky", "car"))


def make_case():
    """Sky above road; the prediction puts the border too low; a car and a corner of void stand in the truth."""
    image = np.full((96, 192, 3), 100, np.uint8)
    raster = np.full((96, 192), ROAD, np.uint16)
    raster[:48], raster[60:70, 20:60], raster[:8, :8] = SKY, CAR * 1000 + 3, 0
    found = np.full((96, 192), ROAD, np.uint8)
    found[:56] = SKY
    return image, found, raster


def test_panels_carry_the_palette_and_leave_void_dark_when_drawn():
    image, found, raster = make_case()
    picture = np.asarray(draw_maps(image, found, raster))
    scale = (picture.shape[1] - 6) / 2 / 192
    assert scale == 4

    def look(row, column, panel):
        return picture[round((row + 0.5) * scale) + HEADER_PX, round((column + 0.5) * scale) + panel * (768 + 6)]

    def mix(label_id):
        color = next(label.color for label in BY_NAME.values() if label.id == label_id)
        return (100 * (1 - FILL) + np.array(color) * FILL).astype(np.uint8)

    for place, panel, label_id in (((52, 100), 0, SKY), ((52, 100), 1, ROAD), ((65, 40), 1, CAR), ((65, 40), 0, ROAD)):
        np.testing.assert_allclose(look(*place, panel), mix(label_id), atol=2)
    np.testing.assert_allclose(look(3, 3, 1), 100 * (1 - FILL), atol=2)


def test_legend_counts_iou_by_class_without_void():
    _, found, raster = make_case()
    truth = np.where(raster < 1000, raster, raster // 1000)
    sky, shown = truth == SKY, (found == SKY) & (truth != 0)
    assert _caption(BY_NAME["sky"], found, truth) == f"sky {(sky & shown).sum() / (sky | shown).sum():.2f}"
    assert _caption(BY_NAME["car"], found, truth) == "car 0.00" and _caption(BY_NAME["bus"], found, truth) == "bus"
    assert draw_maps(*make_case()[:2], None).width == 768


def test_sizes_that_differ_are_refused():
    image, found, raster = make_case()
    with pytest.raises(ValueError, match="one size"):
        draw_maps(image, found[1:], raster)
