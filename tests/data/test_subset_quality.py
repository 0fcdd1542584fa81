"""What a subset shows beside the whole, counted by slow loops."""

from dataclasses import replace

import numpy as np

from cityopt.data.cityscapes import FrameFacts
from cityopt.data.statistics import gather_measures, measure_raster
from cityopt.data.subset_quality import RARE_OBJECTS, count_classes, list_rare, tabulate_subset
from cityopt.labels import CLASS_OF_ID, THING_LABELS, THING_NAMES


class Frame:
    def __init__(self, name, split):
        self.name, self.split = name, split


def paint(seed, size=(300, 300)):
    random, raster = np.random.default_rng(seed), np.full((300, 300), 7, np.uint16)
    for number in range(8):
        label = random.choice([label.id for label in THING_LABELS])
        top, left = random.integers(0, 200, 2)
        side = int(random.choice([10, 40, 100]))
        raster[top : top + side, left : left + side] = label * 1000 + number
    return raster


def test_subset_is_tabulated_by_class_and_size_beside_all_of_train():
    rasters = [paint(seed) for seed in range(6)]
    frames = [Frame(f"image-{number}", "val" if number == 5 else "train") for number in range(6)]
    statistics = gather_measures(None, frames, [measure_raster(raster) for raster in rasters])
    names = {"image-1", "image-3", "image-5"}  # the last is not of train
    rows = tabulate_subset(statistics, names)
    assert [row["class"] for row in rows] == list(THING_NAMES)
    for prefix, chosen in (("subset", (1, 3)), ("train", range(5))):
        expected = {name: [0, 0, 0] for name in THING_NAMES}
        for number in chosen:
            values, areas = np.unique(rasters[number], return_counts=True)
            for value, area in zip(values, areas, strict=True):
                if value >= 1000:
                    size = 0 if area < 32**2 else 1 if area < 96**2 else 2
                    expected[THING_NAMES[CLASS_OF_ID[value // 1000] - 1]][size] += 1
        for row in rows:
            found = [row[f"{prefix}_{size}"] for size in ("small", "medium", "large")]
            assert found == expected[row["class"]] and row[f"{prefix}_objects"] == sum(found), row


def test_classes_are_counted_and_rare_ones_named():
    fact = FrameFacts("a", "train", "x", (8, 8), (0, 3, 30, 0, 0, 1, 0, 0), 0, 1, "0")
    whole = [fact, replace(fact, class_counts=(5, 0, 2, 0, 0, 40, 0, 0))]
    counts = count_classes([fact], whole)
    assert counts["rider"] == [3, 1, 3, 1] and counts["car"] == [30, 1, 32, 2] and counts["truck"] == [0, 0, 0, 0]
    assert RARE_OBJECTS == 20 and list_rare(counts) == ["person", "rider", "train"]
    assert count_classes([], whole)["person"] == [0, 0, 5, 1]
