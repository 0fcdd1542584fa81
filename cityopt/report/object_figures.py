"""The pictures of a dataset's objects: how large they are, which anchors could meet them, how much of them one sees.

Stands beside data_figures.py, which draws classes, images and cities.

Shapes: N objects, L = 5 pyramid levels, A anchors per level.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from cityopt.config import DEFAULT_ANCHORS, AnchorTable
from cityopt.data.anchors import NamedAnchors, list_shapes, measure_overlap
from cityopt.data.statistics import DataStatistics
from cityopt.data.tallies import (
    COCO_MEDIUM_PX,
    COCO_SMALL_PX,
    Row,
    count_objects,
    divide,
    tabulate_classes,
)
from cityopt.labels import MIN_INSTANCE_PX, THING_NAMES
from cityopt.report.figures import (
    GRID,
    INK,
    MUTED,
    PAPER,
    SMALL_PT,
    TEXT_PT,
    THING_COLORS,
    Color,
    add_panel,
    explain_dots,
    format_percents,
    head_panel,
    mark_limits,
    name_rows,
    open_figure,
    plot_dots,
)

ALL_COLOR: Color = (0.38, 0.42, 0.48)
LEVEL_COLORS = ("#fdbb2d", "#f58518", "#e4572e", "#b5174b", "#6a0f49")
LIMITS = (
    (MIN_INSTANCE_PX, "100 px\nCityscapes' minimum"),
    (COCO_SMALL_PX, "32² px\nCOCO: small | medium"),
    (COCO_MEDIUM_PX, "96² px\nCOCO: medium | large"),
)
HARDSHIPS = {"small": "small: below 32² px", "truncated": "truncated by the edge of the view", "in_parts": "in parts"}
_DENSITY = LinearSegmentedColormap.from_list("density", ("#eef2f6", "#b8c9da", "#5d86ab", "#1f4a73"))
_SIZES, _RATIOS = np.arange(1, 10.01, 0.25), np.arange(-3.5, 3.51, 0.25)
"""Edges of the bins in log2."""


def draw_areas(statistics: DataStatistics) -> Figure:
    """Draw the areas of the objects by class on a log axis, with the limits of both protocols."""
    areas, classes = statistics.objects.areas, statistics.objects.classes
    small, tiny = (_say_share(int((areas < limit).sum()), len(areas)) for limit in (COCO_SMALL_PX, MIN_INSTANCE_PX))
    title = (
        f"{small} of the objects are small for COCO, {tiny} too small for Cityscapes" if len(areas) else "No objects"
    )
    subtitle = "Objects by visible area (px of the label files, log axis), each row on its own scale. White: median."
    figure = open_figure(10, 6.4, title, subtitle)
    axes = add_panel(figure, 1.35, 7.4, top_in=0.35)
    names, colors = ["all", *THING_NAMES], [ALL_COLOR, *THING_COLORS]
    edges = 2.0 ** np.arange(2, np.log2(max(areas.max(initial=0), 2e5)) + 0.5, 0.5)
    for row, color in enumerate(colors):
        some = areas[classes == row] if row else areas
        _draw_ridge(axes, row, np.clip(some, edges[0], None), edges, color)
        axes.text(1.01, row - 0.25, f"{len(some):,}", transform=axes.get_yaxis_transform(), va="center",
                  size=SMALL_PT, color=MUTED)  # fmt: skip
    axes.set_ylim(len(names) - 0.75, -0.95)
    axes.set_yticks([row - 0.25 for row in range(len(names))], names)
    axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("area (px)", size=TEXT_PT, color=MUTED)
    mark_limits(axes, LIMITS)
    return figure


def draw_ratios(statistics: DataStatistics, anchors: NamedAnchors) -> Figure:
    """Draw sizes and aspect ratios of the boxes, and the anchors that shall meet them."""
    boxes = scale_boxes(statistics, anchors.size)
    pixels = f"px at {anchors.size[0]} × {anchors.size[1]}" if anchors.size else "px of the label files"
    subtitle = f"Box and anchor on one centre, {pixels}. Shown: {anchors.name}."
    figure = open_figure(11, 7.0, _say_reach(boxes, anchors.table), subtitle)
    axes = add_panel(figure, 0.95, 7.0, bottom_in=0.75)
    side = add_panel(figure, 8.25, 2.3, bottom_in=0.75)
    _draw_density(axes, side, boxes[:, 2:] - boxes[:, :2])
    _draw_anchors(axes, side, anchors.table)
    for each in (axes, side):
        each.set_ylim(-3.4, 3.4)
        each.set_yticks(range(-3, 4), ["1:8", "1:4", "1:2", "1:1", "2:1", "4:1", "8:1"])
        each.grid(visible=True, color=GRID, linewidth=0.8)
    side.tick_params(labelleft=False)
    axes.set_ylabel("height : width (log axis)", size=TEXT_PT, color=MUTED)
    axes.set_xlabel(f"size, √(width · height) ({pixels}, log axis)", size=TEXT_PT, color=MUTED)
    side.set_xlabel("boxes (%); lines: the anchors", size=TEXT_PT, color=MUTED)
    return figure


def draw_visibility(statistics: DataStatistics) -> Figure:
    """Draw which objects are hard: small, truncated, in parts."""
    rows = tabulate_classes(statistics)
    totals = [_count_split(statistics, split) for split in statistics.splits]
    by_split = [[total, *(row for row in rows if row["split"] == total["split"])] for total in totals]
    cut, parted = (
        _say_share(sum(total[key] for total in totals), len(statistics.frame_of)) for key in ("truncated", "in_parts")
    )
    figure = open_figure(
        12,
        5.6,
        f"{cut} of the objects are truncated, {parted} in parts" if len(statistics.frame_of) else "No objects",
        "Share of a class's objects (%). In parts: divided by what stands before them, so at least these are occluded.",
    )
    for place, (key, heading) in enumerate(HARDSHIPS.items()):
        axes = add_panel(figure, 1.35 + 3.6 * place, 2.75, top_in=0.15)
        name_rows(axes, ["all", *THING_NAMES])
        axes.tick_params(labelleft=place == 0)
        values = [[_find_percent(row[key], row["objects"]) for row in some] for some in by_split]
        texts = [format_percents(of_row) for of_row in zip(*values, strict=True)]
        plot_dots(axes, values, [ALL_COLOR, *THING_COLORS], texts)
        axes.set_xlim(-2, 102)
        head_panel(axes, f"{heading} (%)")
    explain_dots(figure, statistics.splits)
    return figure


def scale_boxes(statistics: DataStatistics, size: tuple[int, int] | None) -> NDArray[np.float64]:
    """Return the objects' boxes `(N, 4)` in pixels of images resized to (height, width)."""
    boxes = statistics.objects.boxes_xyxy.astype(np.float64)
    if size is None:
        return boxes
    factors = np.array(size) / statistics.sizes[statistics.frame_of]
    return boxes * factors[:, [1, 0, 1, 0]]


def _draw_ridge(axes: Axes, row: int, areas: NDArray[Any], edges: NDArray[np.float64], color: Color) -> None:
    """Draw one class's histogram on the line `row`, upwards, in the unit of a row."""
    axes.axhline(row, color=GRID, linewidth=0.8, zorder=1)
    if not areas.size:
        return
    counts = np.histogram(areas, edges)[0]
    axes.stairs(row - 0.85 * counts / counts.max(), edges, baseline=row, fill=True, color=(*color, 0.9), zorder=2)
    axes.vlines(float(np.median(areas)), row - 0.85, row, color=PAPER, linewidth=2, zorder=3)


def _draw_density(axes: Axes, side: Axes, extents: NDArray[np.float64]) -> None:
    """Draw boxes (N, 2) as a map over log2 of size and ratio, and their ratios alone beside it.

    What lies outside of the map is drawn at its rim.
    """
    sizes = np.clip(np.log2(extents.prod(axis=1)) / 2, _SIZES[0], _SIZES[-1])
    ratios = np.clip(np.log2(extents[:, 1] / extents[:, 0]), _RATIOS[0], _RATIOS[-1])
    counts = np.histogram2d(sizes, ratios, (_SIZES, _RATIOS))[0].T
    axes.pcolormesh(_SIZES, _RATIOS, np.where(counts, np.sqrt(counts), np.nan), cmap=_DENSITY, vmin=0,
                    vmax=max(1.0, float(np.sqrt(counts.max()))), zorder=2)  # fmt: skip
    axes.set_xlim(_SIZES[0], _SIZES[-1])
    axes.xaxis.set_major_locator(FixedLocator(range(1, 10)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{2**value:.0f}"))
    shares = 100 * np.histogram(ratios, _RATIOS)[0] / max(len(ratios), 1)
    side.stairs(shares, _RATIOS, orientation="horizontal", fill=True, color="#9db7cf", zorder=2)
    side.set_xlim(0, max(1.0, 1.08 * float(shares.max())))


def _draw_anchors(axes: Axes, side: Axes, table: AnchorTable) -> None:
    """Draw a table's anchors by level, and torchvision's defaults where they are others."""
    if table != DEFAULT_ANCHORS:
        xs, ys = _place_anchors(DEFAULT_ANCHORS)
        axes.scatter(xs.ravel(), ys.ravel(), s=70, c="none", edgecolors=INK, linewidths=1.1, zorder=4,
                     label="torchvision's defaults")  # fmt: skip
    xs, ys = _place_anchors(table)
    for level, color in enumerate(LEVEL_COLORS):
        axes.scatter(xs[level], ys[level], s=64, c=color, edgecolors=PAPER, linewidths=1, zorder=5,
                     label=f"P{level + 2}")  # fmt: skip
    side.hlines(np.unique(ys), 0, 1, transform=side.get_yaxis_transform(), color=INK, linewidth=1, zorder=5)
    axes.legend(loc="lower left", ncols=6, frameon=True, framealpha=0.9, edgecolor=PAPER, fontsize=SMALL_PT,
                handletextpad=0.1, columnspacing=1.0)  # fmt: skip


def _place_anchors(table: AnchorTable) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log2 of sizes and ratios, (L, A) each."""
    return np.log2(np.array(table.sizes)), np.log2(np.array(table.ratios))


def _say_reach(boxes: NDArray[np.float64], table: AnchorTable) -> str:
    """Say which share of the boxes (N, 4) has an anchor of IoU .5, and which would have a default one."""
    if not len(boxes):
        return "No boxes for the anchors to meet"
    tables = [table] if table == DEFAULT_ANCHORS else [table, DEFAULT_ANCHORS]
    best = [measure_overlap(list_shapes(each), boxes, None).max(axis=(1, 2)) for each in tables]
    shares = [_say_share(int((some >= 0.5).sum()), len(boxes)) for some in best]
    rest = f", {shares[1]} with torchvision's defaults" if len(shares) > 1 else ""
    return f"{shares[0]} of the boxes have an anchor of IoU ≥ .5{rest}"


def _count_split(statistics: DataStatistics, split: str) -> Row:
    return {"split": split, **count_objects(statistics, statistics.in_split(split)[statistics.frame_of])}


def _find_percent(part: int, whole: int) -> float | None:
    share = divide(part, whole)
    return None if share is None else 100 * share


def _say_share(part: int, whole: int) -> str:
    return format_percents([100 * part / max(whole, 1)]) if part else "none"
