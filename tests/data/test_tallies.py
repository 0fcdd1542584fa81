"""Tables of a small dataset, against counting its objects one by one."""

from collections import Counter
from statistics import mean, median

import numpy as np
import pytest
from tiny_tree import write_tree

from cityopt.data.statistics import measure_dataset, measure_raster
from cityopt.data.tallies import (
    count_objects,
    list_cities,
    summarize_statistics,
    tabulate_areas,
    tabulate_cities,
    tabulate_classes,
    tabulate_labels,
    tabulate_objects,
    tabulate_objects_per_image,
    tabulate_ratios,
)
from cityopt.labels import THING_NAMES


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    tree = {"train": {"ulm": 5, "aachen": 4}, "val": {"bonn": 3}}
    return measure_dataset(write_tree(tmp_path_factory.mktemp("tree"), tree, size=(60, 90)))


@pytest.fixture(scope="module")
def objects(street):
    return tabulate_objects(street)


def test_every_object_is_listed_where_it_is(street, objects):
    assert len(objects) == len(street.frame_of) > 20
    for row in objects:
        frame = next(frame for frame in street.frames if frame.name == row["image"])
        assert (row["split"], row["city"]) == (frame.split, frame.city) and row["image"].startswith(row["city"])
        assert THING_NAMES.index(row["class"]) == [24, 25, 26, 27, 28, 31, 32, 33].index(row["id"] // 1000)
        assert 1 <= row["area_px"] <= row["width_px"] * row["height_px"]


def count_rows(rows):
    return {
        "objects": len(rows),
        "below_100_px": sum(row["area_px"] < 100 for row in rows),
        "small": sum(row["area_px"] < 1024 for row in rows),
        "medium": sum(1024 <= row["area_px"] < 9216 for row in rows),
        "large": sum(row["area_px"] >= 9216 for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "in_parts": sum(row["parts"] > 1 for row in rows),
    }


def test_classes_count_their_objects_by_split(street, objects):
    rows = tabulate_classes(street)
    assert [(row["split"], row["class"]) for row in rows] == [(s, n) for s in ("train", "val") for n in THING_NAMES]
    for row in rows:
        mine = [o for o in objects if (o["split"], o["class"]) == (row["split"], row["class"])]
        assert count_rows(mine).items() <= row.items()
        assert row["images"] == len({o["image"] for o in mine})
        assert row["median_area_px"] == (median(o["area_px"] for o in mine) if mine else None)
        ratios = [o["height_px"] / o["width_px"] for o in mine]
        assert row["median_ratio"] == (pytest.approx(median(ratios)) if mine else None)
        assert row["pixels"] >= sum(o["area_px"] for o in mine)
    assert any(row["images_with_group"] for row in rows)


def test_label_shares_add_up_to_all_pixels(street):
    rows = tabulate_labels(street)
    for split, images in (("train", 9), ("val", 3)):
        mine = [row for row in rows if row["split"] == split]
        assert len(mine) == 34 and sum(row["pixels"] for row in mine) == images * 60 * 90
        assert sum(row["pixel_share"] for row in mine) == pytest.approx(1)
        road = next(row for row in mine if row["label"] == "road")
        assert road["evaluated"] == 1 and 0 < road["images"] <= images
    classes = {(row["split"], row["class"]): row["pixels"] for row in tabulate_classes(street)}
    assert classes.items() <= {(row["split"], row["label"]): row["pixels"] for row in rows}.items()


def test_images_are_counted_by_their_objects_and_empty_ones_too(street, objects):
    counts = Counter(row["image"] for row in objects)
    expected = Counter((frame.split, counts[frame.name]) for frame in street.frames)
    assert {(row["split"], row["objects"]): row["images"] for row in tabulate_objects_per_image(street)} == expected


@pytest.mark.parametrize(
    ("tabulate", "name", "find"),
    [
        (tabulate_areas, "area_px", lambda row: row["area_px"]),
        (tabulate_ratios, "ratio", lambda row: row["height_px"] / row["width_px"]),
    ],
)
def test_bins_hold_every_object_once(street, objects, tabulate, name, find):
    rows = tabulate(street)
    assert sum(row["objects"] for row in rows) == len(objects)
    for row in rows:
        mine = [o for o in objects if (o["split"], o["class"]) == (row["split"], row["class"])]
        low, high = row[f"{name}_from"] * (1 - 1e-4), row[f"{name}_to"] * (1 - 1e-4)
        assert row["objects"] == sum(low <= find(o) < high for o in mine) > 0


def test_cities_add_up_to_their_split(street, objects):
    rows = tabulate_cities(street)
    assert {(row["split"], row["city"]): row["images"] for row in rows} == {
        ("train", "aachen"): 4,
        ("train", "ulm"): 5,
        ("val", "bonn"): 3,
    }
    for row in rows:
        mine = [o for o in objects if (o["city"], o["class"]) == (row["city"], row["class"])]
        assert count_rows(mine).items() <= row.items()
    assert [(split, city) for split, city, _ in list_cities(street)] == [
        ("train", "aachen"),
        ("train", "ulm"),
        ("val", "bonn"),
    ]


def test_summary_tells_shares_and_objects_per_image(street, objects):
    found = summarize_statistics(street)
    for split, part in found["splits"].items():
        mine = [row for row in objects if row["split"] == split]
        counts = Counter(row["image"] for row in mine)
        per_image = [counts[frame.name] for frame in street.frames if frame.split == split]
        assert part["objects_per_image"] == {
            "mean": pytest.approx(mean(per_image)),
            "median": median(per_image),
            "max": max(per_image),
        }
        assert part["small_share"] == pytest.approx(sum(o["area_px"] < 1024 for o in mine) / len(mine))
        assert part["truncated_share"] == pytest.approx(sum(o["truncated"] for o in mine) / len(mine))
        assert part["sizes"] == [[60, 90]] and part["images"] == len(per_image)
    assert [city["city"] for city in found["cities"]] == ["aachen", "ulm", "bonn"]
    absent = [row for row in found["classes"] if not row["objects"]]
    assert all(row["small_share"] is None and row["median_area_px"] is None for row in absent)


def test_limits_belong_to_the_larger_side():
    from cityopt.data.statistics import gather_measures

    raster = np.full((200, 300), 7, dtype=np.uint16)
    for number, area in enumerate((99, 100, 1023, 1024, 9215, 9216)):
        strip = raster[number * 33 : number * 33 + 32].reshape(-1)
        strip[:area] = 26000 + number
    frames = [type("Frame", (), {"split": "train", "city": "ulm", "name": "ulm_0"})()]
    statistics = gather_measures("", frames, [measure_raster(raster)])
    assert sorted(statistics.objects.areas) == [99, 100, 1023, 1024, 9215, 9216]
    counts = count_objects(statistics, np.ones(6, dtype=bool))
    assert [counts[key] for key in ("below_100_px", "small", "medium", "large")] == [1, 3, 2, 1]
