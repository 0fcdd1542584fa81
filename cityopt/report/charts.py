"""The report's charts as SVG: score against a setting, curves by epoch, anchors.

Each is drawn in the pixels that it is shown in, so that text keeps its size on a phone. Colours come from classes that
the style sheet knows in both themes. What belongs to a trial carries `data-trial` and `data-tip`: the script shows the
tip and lights up the same trial in all charts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from cityopt.report.axes import Axis, fit_axis, fit_log_axis
from cityopt.report.markup import Markup, join, number, tag, void

Kind = Literal["best", "baseline", "complete", "pruned", "failed", "running", "waiting"]
SMALL_PX = (344, 244)
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 30, 42
_STRIP_PX = 20
_LABEL_GAP_PX = 14
MAX_POINTS = 20_000
"""Of the curves of one chart, which would otherwise make a long study's page too large to send."""
_HIT_POINTS = 24
"""Of the unseen path that the pointer meets, which is wide."""
_ORDER: tuple[Kind, ...] = ("pruned", "failed", "waiting", "running", "complete", "baseline", "best")


@dataclass(frozen=True)
class Mark:
    """A trial as a point; `y` is None for one without a score, which stands in the strip below the plot."""

    trial: int
    kind: Kind
    x_px: float
    y: float | None
    tip: str
    span: tuple[float, float] | None = None
    """Ends of an interval around `y`."""


@dataclass(frozen=True)
class Line:
    """A trial as a curve of (epoch, value), with a label at its end if it has one."""

    trial: int
    kind: Kind
    points: Sequence[tuple[int, float]]
    tip: str
    label: str = ""


def inner_span() -> tuple[float, float]:
    """Return the first and last pixel in x of a small chart's plot."""
    return _LEFT, SMALL_PX[0] - _RIGHT


def draw_scatter(marks: Sequence[Mark], x_axis: Axis, *, x_label: str, y_label: str, title: str) -> Markup:
    """Draw scores against a setting; trials without a score stand in a strip of their own."""
    width, height = SMALL_PX
    has_strip = any(mark.y is None for mark in marks)
    if all(mark.y is None for mark in marks):
        y_label = ""  # without scores an axis of them would be made up
    floor = height - _BOTTOM - (_STRIP_PX if has_strip else 0)
    ends = [end for mark in marks for end in mark.span or ()]
    y_axis = fit_axis([*(mark.y for mark in marks if mark.y is not None), *ends], floor, _TOP)
    parts = [_draw_frame(x_axis, y_axis, width, height, x_label=x_label, y_label=y_label, num_x=4)]
    if has_strip:
        parts.append(_draw_strip(width, floor))
    for mark in sorted(marks, key=lambda mark: _ORDER.index(mark.kind)):
        y_px = floor + _STRIP_PX / 2 + 2 if mark.y is None else y_axis.place(mark.y)
        if mark.span:
            low, high = (number(y_axis.place(end)) for end in mark.span)
            x = number(mark.x_px)
            parts.append(void("line", class_="span", x1=x, x2=x, y1=low, y2=high))
        parts.append(_draw_mark(mark, y_px))
    return _draw_svg(width, height, title, parts)


def draw_curves(lines: Sequence[Line], *, width: int, height: int, y_label: str, title: str) -> Markup:
    """Draw curves by epoch; pruned ones are thin and faint, the best and the baseline are named at their end."""
    right = 12 + max((7 * len(line.label) for line in lines), default=0)
    last = max((step for line in lines for step, _ in line.points), default=1)
    x_axis = Axis(1, max(last, 2), _LEFT, width - right)
    y_axis = fit_axis([value for line in lines for _, value in line.points], height - _BOTTOM, _TOP)
    parts = [_draw_frame(x_axis, y_axis, width, height, x_label="epoch", y_label=y_label, num_x=6, whole_x=True)]
    ordered = sorted(lines, key=lambda line: _ORDER.index(line.kind))
    limit = MAX_POINTS // max(len(lines), 1)
    parts += [_draw_line(line, x_axis, y_axis, limit) for line in ordered if line.points]
    parts += _label_ends([line for line in ordered if line.points and line.label], x_axis, y_axis)
    return _draw_svg(width, height, title, parts)


def thin_points(points: Sequence[tuple[int, float]], limit: int) -> Sequence[tuple[int, float]]:
    """Return about `limit` of a curve's points, in their order: both ends, and lows and highs of even stretches."""
    if len(points) <= limit:
        return points
    count = max(limit // 2, 1)
    kept = {0, len(points) - 1}
    for begin, end in pairwise(round(place * len(points) / count) for place in range(count + 1)):
        stretch = range(begin, end)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[index] for index in sorted(kept)]


def draw_anchors(
    tables: Sequence[tuple[str, Sequence[tuple[float, float]]]], *, title: str, size: tuple[int, int] = SMALL_PX
) -> Markup:
    """Draw anchors by width and height (px), both logarithmic; the first table is drawn filled, the others hollow."""
    width, height = size
    shapes = [shape for _, table in tables for shape in table]
    x_axis = fit_log_axis([w for w, _ in shapes], _LEFT, width - _RIGHT)
    y_axis = fit_log_axis([h for _, h in shapes], height - _BOTTOM, _TOP)
    parts = [_draw_frame(x_axis, y_axis, width, height, x_label="width (px)", y_label="height (px)", num_x=5)]
    for place, (name, table) in reversed(list(enumerate(tables))):
        for w, h in table:
            shape = {"cx": number(x_axis.place(w)), "cy": number(y_axis.place(h)), "r": 3.6 if place == 0 else 4.6}
            tip = f"{name}: {w:.0f} × {h:.0f} px"
            parts.append(void("circle", class_="anchor filled" if place == 0 else "anchor", data_tip=tip, **shape))
    return _draw_svg(width, height, title, parts)


def _draw_svg(width: int, height: int, title: str, parts: Sequence[Markup]) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        *parts,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
    )


def _draw_frame(
    x_axis: Axis,
    y_axis: Axis,
    width: int,
    height: int,
    *,
    x_label: str,
    y_label: str,
    num_x: int,
    whole_x: bool = False,
) -> Markup:
    """Draw the grid, the ticks and the names of both axes."""
    left, right, floor = x_axis.start_px, x_axis.end_px, height - _BOTTOM
    parts = []
    for value, label in y_axis.ticks(4) if y_label else ():
        y = number(y_axis.place(value))
        parts.append(void("line", class_="grid", x1=number(left), x2=number(right), y1=y, y2=y))
        parts.append(tag("text", label, class_="tick", x=number(left - 7), y=y, dy=".32em", text_anchor="end"))
    ticks = [tick for tick in x_axis.ticks(num_x) if not whole_x or tick[0] == round(tick[0])]
    for value, label in ticks:
        x = number(x_axis.place(value))
        parts.append(void("line", class_="grid", x1=x, x2=x, y1=floor, y2=floor + 4))
        text = f"{value:.0f}" if whole_x else label
        parts.append(tag("text", text, class_="tick", x=x, y=floor + 17, text_anchor="middle"))
    parts.append(void("line", class_="axis", x1=number(left), x2=number(right), y1=floor, y2=floor))
    parts.append(tag("text", x_label, class_="name", x=number(right), y=height - 5, text_anchor="end"))
    parts.append(tag("text", y_label, class_="name", x=0, y=12, text_anchor="start"))
    return tag("g", *parts, class_="frame", aria_hidden="true")


def _draw_strip(width: int, floor: float) -> Markup:
    label = tag("text", "no score", class_="tick", x=_LEFT - 7, y=number(floor + 13), dy=".2em", text_anchor="end")
    y = number(floor + 1)
    return join([void("line", class_="strip", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y), label])


def _draw_mark(mark: Mark, y_px: float) -> Markup:
    x, y = number(mark.x_px), number(y_px)
    if mark.kind == "failed":
        shape = void("path", d=f"M{number(mark.x_px - 4)} {number(y_px - 4)}l8 8m0 -8l-8 8")
    elif mark.kind == "baseline":
        shape = void("path", d=f"M{x} {number(y_px - 6)}l6 6l-6 6l-6 -6z")
    else:
        shape = void("circle", cx=x, cy=y, r={"best": 6, "complete": 5}.get(mark.kind, 4))
    return tag("g", shape, class_=f"mark {mark.kind}", data_trial=mark.trial, data_tip=mark.tip)


def _draw_line(line: Line, x_axis: Axis, y_axis: Axis, limit: int) -> Markup:
    whole = line.kind in ("best", "baseline")
    paths = [
        "M" + "L".join(f"{number(x_axis.place(step))} {number(y_axis.place(value))}" for step, value in points)
        for points in (thin_points(line.points, _HIT_POINTS), line.points if whole else thin_points(line.points, limit))
    ]
    parts = [void("path", class_=name, d=path) for name, path in zip(("hit", "stroke"), paths, strict=True)]
    step, value = line.points[-1]
    end = number(x_axis.place(step)), number(y_axis.place(value))
    if line.kind != "complete" or len(line.points) == 1:
        parts.append(void("circle", cx=end[0], cy=end[1], r=3.4 if whole else 2.2))
    return tag("g", *parts, class_=f"line {line.kind}", data_trial=line.trial, data_tip=line.tip)


def _label_ends(lines: Sequence[Line], x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Name lines at their ends, from the top down, no name on another."""
    ends = sorted(((y_axis.place(line.points[-1][1]), line) for line in lines), key=lambda end: end[0])
    labels, free = [], float("-inf")
    for y_px, line in ends:
        y = max(y_px, free)
        free = y + _LABEL_GAP_PX
        x = number(x_axis.place(line.points[-1][0]) + 9)
        labels.append(tag("text", line.label, class_=f"end {line.kind}", x=x, y=number(y), dy=".32em"))
    return labels
