"""What a raster shows, against loops over its pixels, and what a tree gives when parts of it are missing or broken."""

from pathlib import Path

import numpy as np
import pytest
from tiny_tree import paint_raster, write_frame, write_raster, write_tree

from cityopt.data.cityscapes import index_split, read_instance_ids
from cityopt.data.statistics import measure_dataset, measure_raster
from cityopt.errors import DataError
from cityopt.labels import THING_LABELS

THING_IDS = [label.id for label in THING_LABELS]
RIM = (2, 3)
"""Rectification border and out of roi."""


def measure_slowly(raster):
    """Measure pixel by pixel: {id: (class, area, box, parts, truncated)}."""
    height, width = raster.shape
    pixels: dict[int, set[tuple[int, int]]] = {}
    for y in range(height):
        for x in range(width):
            value = int(raster[y, x])
            if value >= 1000 and value // 1000 in THING_IDS:
                pixels.setdefault(value, set()).add((y, x))
    found = {}
    for value, mine in pixels.items():
        ys, xs = zip(*mine, strict=True)
        box = (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
        cut = any(is_cut(raster, y, x) for y, x in mine)
        found[value] = (THING_IDS.index(value // 1000) + 1, len(mine), box, count_regions(mine), cut)
    return found


def is_cut(raster, y, x):
    for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
        if not (0 <= ny < raster.shape[0] and 0 <= nx < raster.shape[1]) or raster[ny, nx] in RIM:
            return True
    return False


def count_regions(pixels):
    left, regions = set(pixels), 0
    while left:
        regions += 1
        front = [left.pop()]
        while front:
            y, x = front.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            front += near
    return regions


def as_dict(measures):
    objects = measures.objects
    columns = (objects.classes, objects.areas, map(tuple, objects.boxes_xyxy), objects.num_parts, objects.is_truncated)
    return dict(zip(objects.ids.tolist(), zip(*columns, strict=True), strict=True))


def draw_noisy(rng):
    """Draw rectangles, a rim on some sides, and specks that cut everything into pieces."""
    raster = paint_raster((20, 26), rng, num_instances=7)
    if rng.random() < 0.7:
        raster[:, : rng.integers(1, 3)] = rng.choice(RIM)
        raster[-1] = rng.choice((1, *RIM))
    specks = rng.random(raster.shape) < 0.25
    raster[specks] = rng.choice((7, 26, 26001, 24002, 3), int(specks.sum()))
    return raster


@pytest.mark.parametrize("seed", range(25))
def test_raster_measures_as_pixel_loops_do(seed):
    raster = draw_noisy(np.random.default_rng(seed))
    measures = measure_raster(raster)
    assert as_dict(measures) == measure_slowly(raster)
    plain = np.where(raster >= 1000, raster // 1000, raster)
    assert measures.pixels.tolist() == [int((plain == number).sum()) for number in range(34)]
    assert measures.groups.tolist() == [bool((raster == number).any()) for number in THING_IDS]
    assert measures.size == raster.shape


def test_noise_shows_every_case_that_the_loops_know():
    found = [entry for seed in range(25) for entry in measure_slowly(draw_noisy(np.random.default_rng(seed))).values()]
    assert {cut for *_, cut in found} == {True, False}
    assert {1, 2} < {parts for *_, parts, _ in found}


def road(*patches):
    raster = np.full((9, 12), 7, dtype=np.uint16)
    for value, rows, columns in patches:
        raster[slice(*rows), slice(*columns)] = value
    return measure_raster(raster).objects


def test_object_is_whole_when_pixels_touch_at_corners_and_in_parts_when_not():
    assert road((26000, (2, 4), (2, 4)), (26000, (4, 6), (4, 6))).num_parts.tolist() == [1]
    assert road((26000, (2, 4), (2, 4)), (26000, (4, 6), (5, 7))).num_parts.tolist() == [2]
    assert road((26000, (2, 7), (2, 9)), (17, (0, 9), (5, 6))).num_parts.tolist() == [2]  # behind a pole


@pytest.mark.parametrize(("neighbour", "cut"), [(3, True), (2, True), (1, False), (26001, False), (7, False)])
def test_object_is_truncated_when_beside_the_edge_of_the_view_not_when_beside_the_hood(neighbour, cut):
    objects = road((neighbour, (2, 6), (5, 8)), (26000, (3, 5), (3, 5)))
    assert objects.is_truncated[objects.ids == 26000].tolist() == [cut]


@pytest.mark.parametrize("place", [((0, 2), (3, 5)), ((7, 9), (3, 5)), ((3, 5), (0, 2)), ((3, 5), (10, 12))])
def test_object_is_truncated_when_it_touches_any_border(place):
    assert road((26000, *place)).is_truncated.tolist() == [True]


def test_caravans_and_groups_are_no_objects_but_their_pixels_count():
    raster = np.full((4, 6), 7, dtype=np.uint16)
    raster[0, :3], raster[1, :2] = 29001, 24
    measures = measure_raster(raster)
    assert len(measures.objects.ids) == 0 and measures.objects.boxes_xyxy.shape == (0, 4)
    assert (measures.pixels[29], measures.pixels[24]) == (3, 2)
    assert measures.groups.tolist() == [True, *[False] * 7]


def test_dataset_holds_what_its_rasters_do(tmp_path):
    root = write_tree(tmp_path, {"train": {"ulm": 3, "aachen": 2}, "val": {"bonn": 2}, "test": {"berlin": 1}})
    progress = []
    found = measure_dataset(root, lambda *count: progress.append(count), workers=3)
    frames = [*index_split(root, "train"), *index_split(root, "val")]
    assert list(found.frames) == frames and found.splits == ["train", "val"]
    assert found.in_split("val").tolist() == [False] * 5 + [True] * 2
    assert progress == [(number, 7) for number in range(1, 8)]
    for index, frame in enumerate(frames):
        alone = measure_raster(read_instance_ids(frame.instance_ids))
        mine = found.frame_of == index
        assert found.objects.ids[mine].tolist() == alone.objects.ids.tolist()
        assert found.objects.areas[mine].tolist() == alone.objects.areas.tolist()
        assert found.pixels[index].tolist() == alone.pixels.tolist()
        assert found.sizes[index].tolist() == [24, 48]
    assert found.remarks == ("test (1 images) is left out: its labels are not public",)


def test_split_without_labels_is_left_out_with_a_remark(tmp_path):
    root = write_tree(tmp_path, {"train": {"ulm": 2}, "train_extra": {"graz": 2}})
    write_frame(root, "val", "bonn", 0, labelled=False)
    found = measure_dataset(root)
    assert found.splits == ["train"]
    assert found.remarks == (
        "val is left out: none of its 1 images has a label in gtFine",
        "train_extra (2 images) is left out: it has coarse labels only",
    )


def test_dataset_is_refused_when_nothing_is_labelled_or_there(tmp_path):
    write_frame(tmp_path / "tree", "train", "ulm", 0, labelled=False)
    with pytest.raises(DataError, match="labelled images of train or val"):
        measure_dataset(tmp_path / "tree")
    with pytest.raises(DataError, match=r"there is none at .*nowhere"):
        measure_dataset(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="must hold leftImg8bit"):
        measure_dataset(tmp_path / "photos")


def damage(path: Path, how: str) -> None:
    if how == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "missing":
        path.unlink()
    else:
        write_raster(path, np.full((24, 48) if how == "ids" else (9, 9), 35000 if how == "ids" else 7, dtype=np.uint16))


@pytest.mark.parametrize(
    ("how", "problem"), [("cut", "whole PNG"), ("missing", "lacks"), ("ids", "holds 35000"), ("size", "one size")]
)
def test_broken_raster_is_named(tmp_path, how, problem):
    root = write_tree(tmp_path, {"train": {"ulm": 4}})
    path = root / "gtFine/train/ulm/ulm_000002_000019_gtFine_instanceIds.png"
    damage(path, how)
    with pytest.raises(DataError, match=problem) as caught:
        measure_dataset(root)
    assert str(path) in str(caught.value)
