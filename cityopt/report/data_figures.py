"""The pictures of a dataset's classes, images and cities, from what `data/tallies.py` counted.

Stands between the tallies and data_report.py, which writes the files; object_figures.py draws sizes and shapes.
Classes have the colours of the Cityscapes palette. Where a dataset has two splits, train is the filled mark and val
the hollow one, and numbers stand in this order.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from cityopt.data.statistics import DataStatistics
from cityopt.data.tallies import Row, count_per_image, summarize_statistics, tabulate_classes, tabulate_labels
from cityopt.labels import BY_NAME, THING_NAMES
from cityopt.report.figures import (
    GRID,
    INK,
    MUTED,
    SMALL_PT,
    TEXT_PT,
    THING_COLORS,
    Color,
    add_panel,
    explain_dots,
    format_percents,
    head_panel,
    join_words,
    name_rows,
    open_figure,
    plot_dots,
    scale_color,
)

SPLIT_COLORS: tuple[Color, ...] = ((0.18, 0.44, 0.62), (0.85, 0.51, 0.17))
VOID_INK = "#9aa2af"
_MAX_BINS = 60


def draw_classes(statistics: DataStatistics) -> Figure:
    """Draw objects, images and pixels by class."""
    rows = tabulate_classes(statistics)
    by_split = [[row for row in rows if row["split"] == split] for split in statistics.splits]
    sums = [sum(row["objects"] for row in same) for same in zip(*by_split, strict=True)]
    figure = open_figure(12, 5.2, _say_imbalance(sums), "The eight classes with instances. A group is no object.")
    num_images = [int(statistics.in_split(split).sum()) for split in statistics.splits]
    objects = [[row["objects"] or None for row in some] for some in by_split]
    images = [[100 * row["images"] / n for row in some] for some, n in zip(by_split, num_images, strict=True)]
    pixels = [[100 * row["pixel_share"] or None for row in some] for some in by_split]
    panels: list[tuple[str, Sequence[Sequence[float | None]], Callable[[Sequence[float | None]], str]]] = [
        ("objects (log axis)", objects, _format_counts),
        ("images that show one (%)", images, format_percents),
        ("share of all pixels (%, log axis)", pixels, format_percents),
    ]
    for place, (heading, values, write) in enumerate(panels):
        axes = add_panel(figure, 1.35 + 3.6 * place, 2.75, top_in=0.15)
        name_rows(axes, THING_NAMES)
        axes.tick_params(labelleft=place == 0)
        plot_dots(axes, values, THING_COLORS, [write(of_row) for of_row in zip(*values, strict=True)])
        if "log" in heading:
            _use_log(axes, values)
        else:
            axes.set_xlim(-2, 102)
        head_panel(axes, heading)
    explain_dots(figure, statistics.splits)
    return figure


def draw_labels(statistics: DataStatistics) -> Figure:
    """Draw the share of all pixels that each label has, the largest first."""
    rows = tabulate_labels(statistics)
    totals = {row["label"]: 0 for row in rows}
    for row in rows:
        totals[row["label"]] += row["pixels"]
    shown = sorted((name for name in totals if totals[name]), key=lambda name: -totals[name])
    shares = [100 * totals[name] / sum(totals.values()) for name in shown]
    title = f"{join_words(shown[:3])} make up {sum(shares[:3]):.0f} % of all pixels"
    absent = f" {len(totals) - len(shown)} of {len(totals)} labels do not occur." if len(shown) < len(totals) else ""
    subtitle = f"Share of all pixels (%). Labels in grey are not evaluated.{absent}"
    figure = open_figure(10, 1.9 + 0.27 * len(shown), title[0].upper() + title[1:], subtitle)
    axes = add_panel(figure, 1.9, 7.2)
    name_rows(axes, shown)
    colors = [scale_color(BY_NAME[name].color) for name in shown]
    axes.barh(range(len(shown)), shares, height=0.68, color=colors, edgecolor=MUTED, linewidth=0.4)
    for place, (name, share, tick) in enumerate(zip(shown, shares, axes.get_yticklabels(), strict=True)):
        axes.annotate(format_percents([share]), (share, place), (6, 0), textcoords="offset points", va="center",
                      size=SMALL_PT, color=MUTED)  # fmt: skip
        if BY_NAME[name].ignore_in_eval:
            tick.set_color(VOID_INK)
    axes.set_xlim(0, 1.12 * max(shares))
    axes.set_xlabel("share of all pixels (%)", size=TEXT_PT, color=MUTED)
    return figure


def draw_objects_per_image(statistics: DataStatistics) -> Figure:
    """Draw how many objects images have."""
    counts = count_per_image(statistics)
    empty = int((counts == 0).sum())
    title = _tell_objects(int(np.ceil(np.median(counts))), int(counts.max()))
    none = f"{empty:,} of {len(counts):,} images show none." if empty else "Every image shows at least one."
    figure = open_figure(10, 4.8, title, f"Objects of the eight classes per image; a group is no object. {none}")
    axes = add_panel(figure, 0.9, 8.7, bottom_in=0.75, top_in=0.25)
    width = max(1, -(-int(counts.max() + 1) // _MAX_BINS))
    edges = np.arange(0, counts.max() + width + 1, width) - 0.5
    for number, (split, color) in enumerate(zip(statistics.splits, SPLIT_COLORS, strict=False)):
        some = counts[statistics.in_split(split)]
        shares = 100 * np.histogram(some, edges)[0] / len(some)
        label = f"{split}: {len(some):,} images, {some.mean():.1f} objects on average"
        axes.stairs(shares, edges, fill=not number, color=color, alpha=1 if number else 0.75, lw=1.8, label=label)
    axes.grid(axis="x", visible=False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("objects in an image" + (f" (bins of {width})" if width > 1 else ""), size=TEXT_PT, color=MUTED)
    axes.set_ylabel("share of a split's images (%)", size=TEXT_PT, color=MUTED)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, frameon=False, fontsize=TEXT_PT, labelcolor=INK)
    return figure


def _tell_objects(median: int, most: int) -> str:
    """Return what there is to say of the objects in an image."""
    if not most:
        return "No image shows an object"
    if not median:
        return f"At least half of the images show no object, the fullest {most}"
    return f"Half of the images show {median} {'object' if median == 1 else 'objects'} or more, the fullest {most}"


def draw_cities(statistics: DataStatistics) -> Figure:
    """Draw what differs between the cities, which splits and holdouts divide."""
    cities = summarize_statistics(statistics)["cities"]
    subtitle = "Each city of each split, the eight classes together."
    figure = open_figure(12, 1.9 + 0.32 * len(cities), _say_range(cities), subtitle)
    colors = [SPLIT_COLORS[statistics.splits.index(row["split"]) % len(SPLIT_COLORS)] for row in cities]
    panels: list[tuple[str, str, Callable[[float], str]]] = [
        ("images", "images", lambda value: f"{value:,}"),
        ("objects per image", "objects_per_image", lambda value: f"{value:.1f}"),
        ("small: below 32² px (%)", "small_share", lambda value: format_percents([value])),
        ("truncated (%)", "truncated_share", lambda value: format_percents([value])),
    ]
    for place, (heading, key, write) in enumerate(panels):
        axes = add_panel(figure, 2.1 + 2.45 * place, 1.85, top_in=0.15)
        name_rows(axes, [f"{row['city']} ({row['split']})" for row in cities])
        axes.tick_params(labelleft=place == 0)
        scale = 100 if "%" in heading else 1
        values = [None if row[key] is None else scale * row[key] for row in cities]
        plot_dots(axes, [values], colors, ["–" if value is None else write(value) for value in values])
        high = 100 if "%" in heading else max(1.0, 1.15 * max(value or 0 for value in values))
        axes.set_xlim(-0.02 * high, 1.02 * high)
        head_panel(axes, heading)
    return figure


def _use_log(axes: Axes, series: Sequence[Sequence[float | None]]) -> None:
    known = [value for values in series for value in values if value]
    axes.set_xscale("log")
    low, high = (min(known), max(known)) if known else (1, 10)
    axes.set_xlim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high * 1.01)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _format_counts(counts: Sequence[float | None]) -> str:
    if all(count is None for count in counts):
        return "–"
    return " / ".join("–" if count is None else f"{count:,.0f}" for count in counts)


def _say_imbalance(sums: Sequence[int]) -> str:
    shown = {name: count for name, count in zip(THING_NAMES, sums, strict=True) if count}
    if not shown:
        return "No objects of the eight classes"
    most, least = max(shown, key=lambda name: shown[name]), min(shown, key=lambda name: shown[name])
    absent = [name for name in THING_NAMES if name not in shown]
    tail = f", and no {' or '.join(absent)}" if 0 < len(absent) < 3 else ""
    tail = f", and none of {len(absent)} classes" if len(absent) > 2 else tail
    if most == least:
        return f"All {shown[most]:,} objects are of one class, {most}{tail}"
    ratio = shown[most] / shown[least]
    plural = "buses" if most == "bus" else f"{most}s"
    return (
        f"{ratio:,.0f} {plural} for every {least}{tail}"
        if ratio >= 10
        else (f"{ratio:.1f} {plural} for every {least}{tail}")
    )


def _say_range(cities: Sequence[Row]) -> str:
    most = max(cities, key=lambda row: row["objects_per_image"])
    least = min(cities, key=lambda row: row["objects_per_image"])
    if len(cities) == 1:
        return f"{most['objects_per_image']:.1f} objects an image in the only city, {most['city']}"
    ends = [f"{row['objects_per_image']:.1f}{unit} in {row['city']} ({row['split']})"
            for row, unit in ((least, " objects an image"), (most, ""))]  # fmt: skip
    return f"From {ends[0]} to {ends[1]}"
