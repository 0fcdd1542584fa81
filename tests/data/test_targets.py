from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation.instances2dict import instances2dict
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from tiny_tree import paint_raster, write_raster

from cityopt.data.targets import find_instances, find_train_ids
from cityopt.labels import CLASS_OF_ID, THING_NAMES


def find_slowly(raster: NDArray[np.uint16]) -> dict[int, tuple[int, int, int, int]]:
    """Boxes by id, pixel after pixel."""
    boxes: dict[int, tuple[int, int, int, int]] = {}
    for y, x in np.ndindex(raster.shape):
        value = int(raster[y, x])
        if value // 1000 in CLASS_OF_ID:
            x0, y0, x1, y1 = boxes.get(value, (x, y, x + 1, y + 1))
            boxes[value] = min(x0, x), min(y0, y), max(x1, x + 1), max(y1, y + 1)
    return boxes


@pytest.mark.parametrize("seed", range(20))
def test_find_instances_equals_a_slow_loop_when_the_raster_is_random(seed: int) -> None:
    rng = np.random.default_rng(seed)
    raster = paint_raster((int(rng.integers(6, 40)), int(rng.integers(8, 50))), rng, int(rng.integers(0, 12)))
    noisy = rng.random(raster.shape) < 0.05
    raster[noisy] = rng.choice([0, 24, 24005, 33999, 29001, 26000], noisy.sum())
    slow = find_slowly(raster)
    found = find_instances(raster)
    assert found.ids.tolist() == sorted(slow)
    assert len(found) == len(slow)
    assert [tuple(box) for box in found.boxes_xyxy.tolist()] == [slow[value] for value in found.ids]
    assert found.classes.tolist() == [CLASS_OF_ID[value // 1000] for value in found.ids.tolist()]
    for number, value in enumerate(found.ids, start=1):
        np.testing.assert_array_equal(found.instance_map == number, raster == value)
    np.testing.assert_array_equal(found.instance_map > 0, np.isin(raster, found.ids))
    assert found.areas.tolist() == [int((raster == value).sum()) for value in found.ids]


def test_find_instances_equals_pycocotools_when_masks_are_encoded() -> None:
    raster = paint_raster((60, 90), np.random.default_rng(5), 12)
    found = find_instances(raster)
    for number, box in enumerate(found.boxes_xyxy, start=1):
        rle = coco_mask.encode(np.asfortranarray((found.instance_map == number).astype(np.uint8)))
        x, y, width, height = coco_mask.toBbox(rle)
        assert box.tolist() == [x, y, x + width, y + height]
        assert found.areas[number - 1] == coco_mask.area(rle)


def test_find_instances_equals_the_official_script_when_it_lists_a_raster(tmp_path: Path) -> None:
    raster = paint_raster((40, 60), np.random.default_rng(3), 10)
    write_raster(tmp_path / "raster.png", raster)
    (official,) = instances2dict([str(tmp_path / "raster.png")], verbose=False).values()
    found = find_instances(raster)
    ours = {name: {} for name in THING_NAMES}
    for value, number, area in zip(found.ids, found.classes, found.areas, strict=True):
        ours[THING_NAMES[number - 1]][int(value)] = int(area)
    for name in THING_NAMES:
        theirs = {item["instID"]: item["pixelCount"] for item in official.get(name, []) if item["instID"] >= 1000}
        assert ours[name] == theirs


def test_find_instances_gives_empty_arrays_when_there_are_none() -> None:
    found = find_instances(np.full((5, 7), 26, dtype=np.uint16))
    assert found.boxes_xyxy.shape == (0, 4)
    assert (found.boxes_xyxy.dtype, found.classes.dtype) == (np.float32, np.int64)
    assert (found.instance_map.dtype, found.instance_map.shape) == (np.int32, (5, 7))
    assert not found.instance_map.any()
    assert len(found) == found.classes.size == found.ids.size == found.areas.size == 0


def test_find_instances_leaves_out_what_is_no_class() -> None:
    raster = np.array([[29000, 30001, 26, 7], [24000, 33999, 0, 23]], dtype=np.uint16)
    assert find_instances(raster).ids.tolist() == [24000, 33999]


def test_find_instances_keeps_an_instance_when_one_pixel_is_left() -> None:
    raster = np.zeros((4, 6), dtype=np.uint16)
    raster[3, 5] = 26000
    assert find_instances(raster).boxes_xyxy.tolist() == [[5, 3, 6, 4]]


def test_find_instances_joins_the_parts_when_something_stands_before() -> None:
    raster = np.zeros((4, 9), dtype=np.uint16)
    raster[1:3, 1:8] = 26002
    raster[:, 4] = 24000
    found = find_instances(raster)
    assert found.boxes_xyxy.tolist() == [[4, 0, 5, 4], [1, 1, 8, 3]]
    assert found.areas.tolist() == [4, 12]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_find_instances_is_the_same_when_the_raster_is_a_view_of_another_type(dtype: type[np.generic]) -> None:
    raster = paint_raster((30, 40), np.random.default_rng(1), 8)
    found = find_instances(raster.astype(dtype)[::-1, ::-1])
    expected = find_instances(np.ascontiguousarray(raster[::-1, ::-1]))
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.instance_map, expected.instance_map)


def test_find_train_ids_equals_the_official_table_when_given_every_value_of_a_raster() -> None:
    from cityscapesscripts.helpers.labels import id2label

    values = [*range(34), *(label_id * 1000 + k for label_id in range(24, 34) for k in (0, 1, 999))]
    official = [id2label[value if value < 1000 else value // 1000].trainId for value in values]
    assert find_train_ids(np.array([values], np.uint16)).tolist() == [official]
    assert find_train_ids(np.zeros((2, 3), np.uint16)).dtype == np.uint8
