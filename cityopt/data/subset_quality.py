"""What a subset shows beside the whole of its split: classes, rare ones by name, and sizes of objects.

Counts of classes come from the facts of frames, which every study knows before its first trial; sizes need the objects
themselves, which `measure_dataset` looks at. A class is rare in a subset below `RARE_OBJECTS` objects: few enough for a
class' AP to hang on single ones.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cityopt.data.cityscapes import FrameFacts
from cityopt.data.statistics import DataStatistics
from cityopt.labels import THING_NAMES

RARE_OBJECTS = 20
LIMITS_PX = (32**2, 96**2)
"""COCO's, on visible pixels at the labels' own size."""
Row = dict[str, str | int]

ClassCounts = dict[str, list[int]]
"""By class: objects and images of the subset, objects and images of the whole."""


def count_classes(subset: Sequence[FrameFacts], whole: Sequence[FrameFacts]) -> ClassCounts:
    """Return what a subset shows of each of the eight classes beside the whole that it was picked from."""
    counts = [
        np.array([fact.class_counts for fact in facts]).reshape(-1, len(THING_NAMES)) for facts in (subset, whole)
    ]
    columns = [column for some in counts for column in (some.sum(axis=0), (some > 0).sum(axis=0))]
    return {name: [int(column[place]) for column in columns] for place, name in enumerate(THING_NAMES)}


def list_rare(counts: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the classes of which a subset has few objects, though the whole has some."""
    return [name for name, (objects, _, all_objects, _) in counts.items() if objects < RARE_OBJECTS and all_objects]


def tabulate_subset(statistics: DataStatistics, names: Collection[str]) -> list[Row]:
    """Return a row for each class: its objects by size in a subset (names of images) and in all of train."""
    in_train = statistics.in_split("train")[statistics.frame_of]
    chosen = np.array([frame.split == "train" and frame.name in names for frame in statistics.frames], bool)
    in_subset = chosen[statistics.frame_of]
    sizes = np.digitize(statistics.objects.areas, LIMITS_PX)
    rows: list[Row] = []
    for place, name in enumerate(THING_NAMES, start=1):
        row: Row = {"class": name}
        for prefix, mask in (("subset", in_subset), ("train", in_train)):
            own = mask & (statistics.objects.classes == place)
            row[f"{prefix}_objects"] = int(own.sum())
            for index, size in enumerate(("small", "medium", "large")):
                row[f"{prefix}_{size}"] = int((own & (sizes == index)).sum())
        rows.append(row)
    return rows
