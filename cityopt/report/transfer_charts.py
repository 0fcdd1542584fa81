"""The charts of a transfer study: a score of every model by class, and what one loses from COCO to Cityscapes."""

from collections.abc import Sequence
from dataclasses import dataclass

from cityopt.report.axes import Axis
from cityopt.report.markup import Markup, number, tag, void
from cityopt.report.transfer_tables import Drop, Row

WIDTH_PX, ROW_PX = 440, 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 118, 16, 12, 40


@dataclass(frozen=True)
class _Spot:
    """A value in a row: how it is drawn, and what is said of it."""

    is_filled: bool
    value: float
    tip: str
    opacity: float = 1.0


def draw_classes(rows: Sequence[Row], labels: Sequence[str], score: str) -> Markup:
    """Draw a score of every model by class: the first one hollow, later ones filled, the later the darker.

    `labels` name the models. Classes without any object are left out.
    """
    known = [row for row in rows if any(value is not None for value in row.values)]
    axis = _fit([value for row in known for value in row.values])
    parts = []
    for place, row in enumerate(known):
        spots = [
            _Spot(rank > 0, value, f"{row.label}, {label}: {value:.4f}", rank / (len(labels) - 1) if rank else 1.0)
            for rank, (label, value) in enumerate(zip(labels, row.values, strict=True))
            if value is not None
        ]
        parts += _draw_row(row.label, spots, axis, place)
    return _draw_chart(f"{score} by class", score, len(known), axis, parts)


def name_marks(labels: Sequence[str]) -> str:
    """Say which model is which in `draw_classes`."""
    later = f"; ● {', '.join(labels[1:])}" if len(labels) > 1 else ""
    return f"○ {labels[0]}{later}" + (", the later the darker" if len(labels) > 2 else "")


def draw_drops(drops: Sequence[Drop], label: str) -> Markup:
    """Draw one line per class or size, from the AP on COCO (hollow) to that on Cityscapes (filled)."""
    axis = _fit([value for drop in drops for value in (drop.coco, drop.streets)])
    parts = []
    for place, drop in enumerate(drops):
        values = ((False, "COCO", drop.coco), (True, "Cityscapes", drop.streets))
        spots = [_Spot(x, value, f"{drop.label} on {where}: {value:.4f}") for x, where, value in values
                 if value is not None]  # fmt: skip
        parts += _draw_row(drop.label, spots, axis, place)
    title = f"What {label} loses from COCO to Cityscapes"
    return _draw_chart(title, "COCO mask AP: ○ on COCO, ● on Cityscapes", len(drops), axis, parts)


def _fit(values: Sequence[float | None]) -> Axis:
    return Axis(0.0, max([0.05, *(value for value in values if value is not None)]) * 1.06, _LEFT, WIDTH_PX - _RIGHT)


def _draw_chart(title: str, name: str, num_rows: int, axis: Axis, rows: Sequence[Markup]) -> Markup:
    """Put rows on a grid with a scale below."""
    height = _TOP + num_rows * ROW_PX + _BOTTOM
    floor = height - _BOTTOM
    parts = []
    for value, text in axis.ticks(4):
        x = number(axis.place(value))
        parts.append(void("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=floor))
        parts.append(tag("text", text, class_="tick", x=x, y=floor + 17, text_anchor="middle"))
    parts.append(tag("text", name, class_="name", x=WIDTH_PX - _RIGHT, y=height - 5, text_anchor="end"))
    return tag("svg", tag("title", title), *parts, *rows, viewBox=f"0 0 {WIDTH_PX} {height}", width=WIDTH_PX,
               height=height, role="img", aria_label=title)  # fmt: skip


def _draw_row(label: str, spots: Sequence["_Spot"], axis: Axis, place: int) -> list[Markup]:
    """Draw values on a line between the least and the greatest."""
    y = number(_TOP + (place + 0.5) * ROW_PX)
    parts = [tag("text", label, class_="tick", x=_LEFT - 10, y=y, dy=".32em", text_anchor="end")]
    places = [axis.place(spot.value) for spot in spots]
    if len(places) > 1:
        parts.append(void("line", class_="axis", x1=number(min(places)), x2=number(max(places)), y1=y, y2=y))
    for x, spot in zip(places, spots, strict=True):
        mark = "anchor filled" if spot.is_filled else "anchor"
        radius = 4.6 if spot.is_filled else 6  # seen around a filled one on the same place
        shade = number(spot.opacity)
        parts.append(void("circle", class_=mark, cx=number(x), cy=y, r=radius, opacity=shade, data_tip=spot.tip))
    return parts
