"""The chart of a transfer study: what a model loses on its way from COCO to Cityscapes."""

from collections.abc import Sequence

from cityopt.report.axes import Axis
from cityopt.report.markup import Markup, number, tag, void
from cityopt.report.transfer_tables import Drop

WIDTH_PX, ROW_PX = 440, 24
_LEFT, _RIGHT, _TOP, _BOTTOM = 118, 16, 12, 40


def draw_drops(drops: Sequence[Drop], label: str) -> Markup:
    """Draw one line per class or size, from the AP on COCO (hollow) to that on Cityscapes (filled)."""
    height = _TOP + len(drops) * ROW_PX + _BOTTOM
    floor = height - _BOTTOM
    known = [value for drop in drops for value in (drop.coco, drop.streets) if value is not None]
    axis = Axis(0.0, max([0.05, *known]) * 1.06, _LEFT, WIDTH_PX - _RIGHT)
    parts = []
    for value, text in axis.ticks(4):
        x = number(axis.place(value))
        parts.append(void("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=floor))
        parts.append(tag("text", text, class_="tick", x=x, y=floor + 17, text_anchor="middle"))
    parts.append(tag("text", "COCO mask AP: ○ on COCO, ● on Cityscapes", class_="name", x=WIDTH_PX - _RIGHT,
                     y=height - 5, text_anchor="end"))  # fmt: skip
    for row, drop in enumerate(drops):
        parts += _draw_row(drop, axis, _TOP + (row + 0.5) * ROW_PX)
    title = f"What {label} loses from COCO to Cityscapes"
    view = f"0 0 {WIDTH_PX} {height}"
    return tag("svg", tag("title", title), *parts, viewBox=view, width=WIDTH_PX, height=height, role="img",
               aria_label=title)  # fmt: skip


def _draw_row(drop: Drop, axis: Axis, y_px: float) -> list[Markup]:
    y = number(y_px)
    parts = [tag("text", drop.label, class_="tick", x=_LEFT - 10, y=y, dy=".32em", text_anchor="end")]
    places = [None if value is None else axis.place(value) for value in (drop.coco, drop.streets)]
    if places[0] is not None and places[1] is not None:
        parts.append(void("line", class_="axis", x1=number(places[0]), x2=number(places[1]), y1=y, y2=y))
    for name, place, value, where in zip(
        ("anchor", "anchor filled"), places, (drop.coco, drop.streets), ("COCO", "Cityscapes"), strict=True
    ):
        if place is not None:
            tip = f"{drop.label} on {where}: {value:.4f}"
            parts.append(void("circle", class_=name, cx=number(place), cy=y, r=4.6, data_tip=tip))
    return parts
