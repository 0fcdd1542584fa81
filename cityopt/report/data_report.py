"""The look at a dataset as files: tables (CSV), pictures (PNG), a summary (stats.json) and an index (README.md).

`cityopt data stats` writes them to a folder; the first sweep of a study puts the same files on its parent run.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cityopt.config import DEFAULT_ANCHORS, StudyConfig
from cityopt.data.anchors import NamedAnchors, name_adopted
from cityopt.data.roots import choose_folder
from cityopt.data.statistics import DataStatistics, measure_dataset
from cityopt.data.tallies import (
    OBJECT_COLUMNS,
    Row,
    name_bin_columns,
    summarize_statistics,
    tabulate_areas,
    tabulate_cities,
    tabulate_classes,
    tabulate_labels,
    tabulate_objects,
    tabulate_objects_per_image,
    tabulate_ratios,
)
from cityopt.errors import ConfigError
from cityopt.search.observer import Observer
from cityopt.search.preparation import prepare_study
from cityopt.store import open_store
from cityopt.tracking.partial_folder import PartialFolder
from cityopt.tracking.run_folder import write_atomically

SUMMARY, INDEX = "stats.json", "README.md"
KIND = "cityopt data stats"
_TABLES: dict[str, tuple[Callable[[DataStatistics], list[Row]], str]] = {
    "classes.csv": (tabulate_classes, "objects, images, groups and pixels by split and class; sizes, visibility"),
    "labels.csv": (tabulate_labels, "pixels of every label by split"),
    "objects_per_image.csv": (tabulate_objects_per_image, "images by split and number of objects"),
    "areas.csv": (tabulate_areas, "objects by split, class and area (bins of half an octave)"),
    "ratios.csv": (tabulate_ratios, "objects by split, class and height / width of the box (eight bins an octave)"),
    "cities.csv": (tabulate_cities, "images and objects by split, city and class"),
    "objects.csv": (tabulate_objects, "every object: image, box, area, truncated or not, parts"),
}
_EMPTY: dict[str, Sequence[str]] = {
    "areas.csv": name_bin_columns("area_px"),
    "ratios.csv": name_bin_columns("ratio"),
    "objects.csv": OBJECT_COLUMNS,
}
"""Columns of the tables that may have no row."""
_PICTURES = {
    "classes.png": "objects, images and pixels by class",
    "labels.png": "share of all pixels by label",
    "objects_per_image.png": "how many objects images have",
    "areas.png": "areas of the objects, with COCO's and Cityscapes' limits",
    "ratios.png": "sizes and aspect ratios of the boxes, with the anchors",
    "visibility.png": "small, truncated and divided objects by class",
    "cities.png": "what differs between the cities",
}
DEFINITIONS = {
    "object": "a single instance of one of the eight evaluated classes; a group is none",
    "pixels": "of a label, those of its instances and groups included",
    "area": "visible pixels in the label file, at its own size",
    "small, medium, large": "COCO's limits: below 32² px, below 96² px, and above",
    "below_100_px": "objects that Cityscapes' instance AP ignores",
    "truncated": "touches the image border, `rectification border` or `out of roi`",
    "in_parts": "two or more 8-connected regions: divided by what stands before it, a lower bound of the occluded",
    "ratio": "height / width of the box",
}


def report_dataset(
    out: Path, *, data: str | None, config: StudyConfig | None, store: Path, observer: Observer
) -> dict[str, Any]:
    """Measure a dataset, write the report to a folder and return its summary.

    A study's config brings its dataset and its anchors, fitted as `cityopt anchors` does; without one the anchors are
    torchvision's. Raises DataError (no dataset, a broken one) and ConfigError (a folder of other things).
    """
    check_report_folder(out)
    if config is None:
        root = choose_folder(data)
        anchors = NamedAnchors(DEFAULT_ANCHORS, "torchvision's default anchors", None)
    else:
        prepared = prepare_study(config, open_store(store), data=data, observer=observer)
        root = prepared.root
        anchors = name_adopted(config.name, prepared.anchor_report, config.data.size)
    statistics = measure_dataset(root, observer.reporter("measuring labels"))
    write_data_report(out, build_data_report(statistics, anchors))
    return describe_data_report(statistics, anchors)


def build_data_report(statistics: DataStatistics, anchors: NamedAnchors) -> dict[str, bytes]:
    """Return the files of the report by name, stats.json the last."""
    tables = build_tables(statistics)
    pictures = _draw_pictures(statistics, anchors)
    summary = describe_data_report(statistics, anchors)
    files = {**tables, **pictures, INDEX: _write_index(summary).encode()}
    return {**files, SUMMARY: (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode()}


def build_tables(statistics: DataStatistics) -> dict[str, bytes]:
    """Return the tables of the report as CSV by name."""
    return {name: _encode_csv(tabulate(statistics), name) for name, (tabulate, _) in _TABLES.items()}


def describe_data_report(statistics: DataStatistics, anchors: NamedAnchors) -> dict[str, Any]:
    """Return the summary: what stats.json holds and `cityopt data stats --json` prints."""
    return {
        "kind": KIND,
        **summarize_statistics(statistics),
        "anchors": {"name": anchors.name, "size": anchors.size, **anchors.table.model_dump(mode="json")},
        "definitions": DEFINITIONS,
        "files": [*_TABLES, *_PICTURES, INDEX, SUMMARY],
    }


def check_report_folder(out: Path) -> None:
    """Refuse to write a report among files that are none of ours. Raises ConfigError."""
    with _naming(out):
        if not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _holds_report(out))):
            return
        what = "holds other files" if out.is_dir() else "is a file"
    raise ConfigError(
        f"`--out` must be a new or empty folder, or one that an earlier `{KIND}` wrote, but {out} {what}. "
        "Choose another folder."
    )


def write_data_report(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a report: in a new or empty folder it appears whole, the files of an earlier one are replaced one by one.

    Raises ConfigError: the folder holds something else, or cannot be written.
    """
    check_report_folder(out)
    with _naming(out):
        if out.is_dir() and any(out.iterdir()):
            for name, content in files.items():
                write_atomically(out / name, content)
            return
        partial = PartialFolder(out)
        try:
            for name, content in files.items():
                (partial.path / name).write_bytes(content)
            partial.finish()
        finally:
            partial.discard()


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"`--out` must be writable, but {out} is not: {error}. Choose another folder.") from error


def _holds_report(out: Path) -> bool:
    try:
        content = json.loads((out / SUMMARY).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("kind") == KIND


def _draw_pictures(statistics: DataStatistics, anchors: NamedAnchors) -> dict[str, bytes]:
    from cityopt.report import data_figures, object_figures
    from cityopt.report.figures import render

    figures = {
        "classes.png": data_figures.draw_classes(statistics),
        "labels.png": data_figures.draw_labels(statistics),
        "objects_per_image.png": data_figures.draw_objects_per_image(statistics),
        "areas.png": object_figures.draw_areas(statistics),
        "ratios.png": object_figures.draw_ratios(statistics, anchors),
        "visibility.png": object_figures.draw_visibility(statistics),
        "cities.png": data_figures.draw_cities(statistics),
    }
    return {name: render(figure) for name, figure in figures.items()}


def _encode_csv(rows: Sequence[Row], name: str) -> bytes:
    """Return a table as UTF-8; None is an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(_EMPTY[name]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _write_index(summary: Mapping[str, Any]) -> str:
    lines = [f"# What {summary['root']} shows", ""]
    for split, found in summary["splits"].items():
        lines.append(
            f"- {split}: {found['images']:,} images of {_count_cities(found['cities'])}, {found['objects']:,} objects "
            f"({found['objects_per_image']['mean']:.1f} an image)"
        )
    lines += [f"- {remark}" for remark in summary["remarks"]]
    lines += ["", "| file | what it shows |", "|---|---|"]
    lines += [f"| [{name}]({name}) | {text} |" for name, (_, text) in _TABLES.items()]
    lines += [f"| [{name}]({name}) | {text} |" for name, text in _PICTURES.items()]
    lines += [f"| [{SUMMARY}]({SUMMARY}) | all of it in numbers, as `{KIND} --json` prints it |", ""]
    lines += [f"- **{term}**: {meaning}" for term, meaning in DEFINITIONS.items()]
    return "\n".join([*lines, f"- **anchors**: {summary['anchors']['name']}", ""])


def _count_cities(count: int) -> str:
    return "one city" if count == 1 else f"{count} cities"
