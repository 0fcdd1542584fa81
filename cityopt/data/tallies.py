"""Count what `statistics.py` measured: one tidy table per question, and the summary that `--json` prints.

A table is a list of rows with the same keys, one observation each, so that a reader can group and add up without
running into sums that somebody else put between. Shares of nothing are None.

Source: the size limits are those of pycocotools (areaRng) and of cityscapesScripts (evalInstanceLevelSemanticLabeling,
minRegionSizes).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cityopt.data.anchors import SIZE_BINS
from cityopt.data.statistics import DataStatistics
from cityopt.labels import LABELS, MIN_INSTANCE_PX, THING_LABELS, THING_NAMES

Row = dict[str, Any]
Mask = NDArray[np.bool_]

COCO_SMALL_PX = int(SIZE_BINS["small"][1])
COCO_MEDIUM_PX = int(SIZE_BINS["medium"][1])
AREA_BINS, RATIO_BINS = 2, 8
"""Bins per octave of the tables."""
OBJECT_COLUMNS = (
    *("split", "city", "image", "id", "class", "area_px"),
    *("left_px", "top_px", "width_px", "height_px", "truncated", "parts"),
)


def tabulate_objects(statistics: DataStatistics) -> list[Row]:
    """List every object: where it is, its box in pixels, and what can be seen of it."""
    objects = statistics.objects
    rows = []
    for index, place in enumerate(statistics.frame_of.tolist()):
        frame = statistics.frames[place]
        name = THING_NAMES[objects.classes[index] - 1]
        left, top, right, bottom = objects.boxes_xyxy[index].astype(int).tolist()
        place_px = (left, top, right - left, bottom - top)
        seen = (int(objects.is_truncated[index]), int(objects.num_parts[index]))
        values = (frame.split, frame.city, frame.name, int(objects.ids[index]), name, int(objects.areas[index]))
        rows.append(dict(zip(OBJECT_COLUMNS, (*values, *place_px, *seen), strict=True)))
    return rows


def tabulate_classes(statistics: DataStatistics) -> list[Row]:
    """Count objects by split and class, with their typical area and shape, and how many are hard to see."""
    rows = []
    ratios = measure_ratios(statistics)
    for split in statistics.splits:
        in_split = statistics.in_split(split)
        all_pixels = int(statistics.pixels[in_split].sum())
        for number, label in enumerate(THING_LABELS, start=1):
            mine = in_split[statistics.frame_of] & (statistics.objects.classes == number)
            pixels = int(statistics.pixels[in_split, label.id].sum())
            rows.append(
                {
                    "split": split,
                    "class": label.name,
                    **count_objects(statistics, mine),
                    "images": len(np.unique(statistics.frame_of[mine])),
                    "images_with_group": int(statistics.groups[in_split, number - 1].sum()),
                    "pixels": pixels,
                    "pixel_share": divide(pixels, all_pixels),
                    "median_area_px": find_median(statistics.objects.areas[mine]),
                    "median_ratio": find_median(ratios[mine]),
                }
            )
    return rows


def tabulate_labels(statistics: DataStatistics) -> list[Row]:
    """Count the pixels of every label that rasters hold, by split."""
    rows = []
    for split in statistics.splits:
        pixels = statistics.pixels[statistics.in_split(split)]
        for label in LABELS:
            if label.id >= 0:
                rows.append(
                    {
                        "split": split,
                        "label_id": label.id,
                        "label": label.name,
                        "category": label.category,
                        "evaluated": int(not label.ignore_in_eval),
                        "pixels": int(pixels[:, label.id].sum()),
                        "pixel_share": divide(int(pixels[:, label.id].sum()), int(pixels.sum())),
                        "images": int((pixels[:, label.id] > 0).sum()),
                    }
                )
    return rows


def tabulate_objects_per_image(statistics: DataStatistics) -> list[Row]:
    """Count the images of each split by their number of objects."""
    counts = count_per_image(statistics)
    rows = []
    for split in statistics.splits:
        images = np.bincount(counts[statistics.in_split(split)])
        rows += [{"split": split, "objects": number, "images": int(n)} for number, n in enumerate(images) if n]
    return rows


def tabulate_areas(statistics: DataStatistics) -> list[Row]:
    """Count objects by split, class and area, in bins that are even on a log axis."""
    return _tabulate_bins(statistics, statistics.objects.areas, "area_px", AREA_BINS)


def tabulate_ratios(statistics: DataStatistics) -> list[Row]:
    """Count objects by split, class and height / width of their boxes, in bins that are even on a log axis."""
    return _tabulate_bins(statistics, measure_ratios(statistics), "ratio", RATIO_BINS)


def tabulate_cities(statistics: DataStatistics) -> list[Row]:
    """Count images and objects by split, city and class."""
    rows = []
    for split, city, in_city in list_cities(statistics):
        for number, name in enumerate(THING_NAMES, start=1):
            mine = in_city[statistics.frame_of] & (statistics.objects.classes == number)
            where = {"split": split, "city": city, "images": int(in_city.sum()), "class": name}
            rows.append({**where, **count_objects(statistics, mine)})
    return rows


def summarize_statistics(statistics: DataStatistics) -> dict[str, Any]:
    """Return the summary: `{"root", "splits": {split: …}, "classes", "labels", "cities", "remarks"}`.

    `cities` has one row per city, over all classes; the tables have more.
    """
    counts = count_per_image(statistics)
    splits = {}
    for split in statistics.splits:
        in_split = statistics.in_split(split)
        splits[split] = {
            "images": int(in_split.sum()),
            "cities": len({frame.city for frame in statistics.frames if frame.split == split}),
            "sizes": _list_sizes(statistics.sizes[in_split]),
            "objects_per_image": {
                "mean": float(counts[in_split].mean()),
                "median": float(np.median(counts[in_split])),
                "max": int(counts[in_split].max()),
            },
            **_add_shares(count_objects(statistics, in_split[statistics.frame_of])),
        }
    cities = [
        {
            "split": split,
            "city": city,
            "images": int(mine.sum()),
            "objects_per_image": float(counts[mine].mean()),
            **_add_shares(count_objects(statistics, mine[statistics.frame_of])),
        }
        for split, city, mine in list_cities(statistics)
    ]
    return {
        "root": str(statistics.root),
        "splits": splits,
        "classes": [_add_shares(row) for row in tabulate_classes(statistics)],
        "labels": tabulate_labels(statistics),
        "cities": cities,
        "remarks": list(statistics.remarks),
    }


def count_objects(statistics: DataStatistics, chosen: Mask) -> dict[str, int]:
    """Count chosen objects `(N,)`: all, by size, and those truncated or in parts."""
    objects = statistics.objects
    areas = objects.areas[chosen]
    return {
        "objects": int(chosen.sum()),
        "below_100_px": int((areas < MIN_INSTANCE_PX).sum()),
        "small": int((areas < COCO_SMALL_PX).sum()),
        "medium": int(((areas >= COCO_SMALL_PX) & (areas < COCO_MEDIUM_PX)).sum()),
        "large": int((areas >= COCO_MEDIUM_PX).sum()),
        "truncated": int(objects.is_truncated[chosen].sum()),
        "in_parts": int((objects.num_parts[chosen] > 1).sum()),
    }


def count_per_image(statistics: DataStatistics) -> NDArray[np.int64]:
    """Return the number of objects `(F,)` of each frame."""
    return np.bincount(statistics.frame_of, minlength=len(statistics.frames)).astype(np.int64)


def measure_ratios(statistics: DataStatistics) -> NDArray[np.float64]:
    """Return height / width `(N,)` of each object's box, in pixels of the label."""
    left, top, right, bottom = statistics.objects.boxes_xyxy.astype(np.float64).T
    ratios: NDArray[np.float64] = (bottom - top) / (right - left)
    return ratios


def list_cities(statistics: DataStatistics) -> Iterator[tuple[str, str, Mask]]:
    """Yield (split, city, which frames `(F,)` are of it), by split and name."""
    for split in statistics.splits:
        for city in sorted({frame.city for frame in statistics.frames if frame.split == split}):
            yield split, city, np.array([(frame.split, frame.city) == (split, city) for frame in statistics.frames])


def name_bin_columns(name: str) -> tuple[str, ...]:
    """Return the columns of a table of bins of a quantity."""
    return ("split", "class", f"{name}_from", f"{name}_to", "objects")


def find_median(values: NDArray[Any]) -> float | None:
    """Return the median, None of nothing."""
    return float(np.median(values)) if values.size else None


def divide(part: int, whole: int) -> float | None:
    """Return a share, None of nothing."""
    return part / whole if whole else None


def _tabulate_bins(statistics: DataStatistics, values: NDArray[Any], name: str, per_octave: int) -> list[Row]:
    """Count by split, class and bin; bin b reaches from 2^(b / per_octave) to the next. Empty bins have no row."""
    bins = np.floor(np.log2(values) * per_octave + 1e-9).astype(int)
    rows = []
    for split in statistics.splits:
        in_split = statistics.in_split(split)[statistics.frame_of]
        for number, label in enumerate(THING_NAMES, start=1):
            found, counts = np.unique(bins[in_split & (statistics.objects.classes == number)], return_counts=True)
            for edge, count in zip(found.tolist(), counts.tolist(), strict=True):
                low, high = (2 ** ((edge + step) / per_octave) for step in (0, 1))
                row = (split, label, round(low, 4), round(high, 4), count)
                rows.append(dict(zip(name_bin_columns(name), row, strict=True)))
    return rows


def _add_shares(row: Row) -> Row:
    shares = {
        f"{key}_share": divide(row[key], row["objects"]) for key in ("below_100_px", "small", "truncated", "in_parts")
    }
    return {**row, **shares}


def _list_sizes(sizes: NDArray[np.int64]) -> list[list[int]]:
    """Return the different (height, width) of a split."""
    different: list[list[int]] = np.unique(sizes, axis=0).tolist()
    return different
