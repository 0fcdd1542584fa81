"""The house style of the pictures: an open figure with a finding for a title, quiet axes, dots and limits.

Matplotlib through its object interface alone: no pyplot, no global settings, so that a thread may draw while another
works. A picture says its finding in bold, then the quantity and its unit, and leaves out what the data does not need.
"""

import io
import logging
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from cityopt.labels import THING_LABELS

DPI = 120
INK, MUTED, GRID, PAPER = "#1d2330", "#626b7a", "#e3e6eb", "#ffffff"
TITLE_PT, TEXT_PT, SMALL_PT = 14, 10, 8.5
MARGIN_IN = 0.35
HEADER_IN = 0.95
Color = tuple[float, float, float]
"""Red, green and blue in 0 … 1."""

# Without a cache of its fonts, matplotlib says at length that it makes one.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


def scale_color(color: tuple[int, int, int]) -> Color:
    """Return a colour of the palette, 0 … 255, as matplotlib takes it."""
    red, green, blue = (value / 255 for value in color)
    return red, green, blue


THING_COLORS = [scale_color(label.color) for label in THING_LABELS]


def open_figure(width_in: float, height_in: float, title: str, subtitle: str) -> Figure:
    """Return an empty figure with its title (the finding) and subtitle (quantity, unit, source) in the corner."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor=PAPER)
    left = MARGIN_IN / width_in
    figure.text(left, 1 - 0.22 / height_in, title, va="top", size=TITLE_PT, weight="bold", color=INK)
    figure.text(left, 1 - 0.54 / height_in, subtitle, va="top", size=TEXT_PT, color=MUTED)
    return figure


def add_panel(figure: Figure, left_in: float, width_in: float, *, bottom_in: float = 0.6, top_in: float = 0.0) -> Axes:
    """Add axes below the header: `left_in` from the left edge, `bottom_in` above the lower, `top_in` below the header.

    They have no frame but a grid across the x axis, whatever is drawn in them.
    """
    full_width, full_height = figure.get_size_inches()
    height_in = full_height - HEADER_IN - top_in - bottom_in
    axes = figure.add_axes(
        (left_in / full_width, bottom_in / full_height, width_in / full_width, height_in / full_height)
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=INK, labelsize=TEXT_PT, length=0, pad=7)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Make the y axis a list: the first name on top, one unit each."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)


def head_panel(axes: Axes, text: str) -> None:
    """Write what a panel shows above it."""
    axes.set_title(text, loc="left", size=TEXT_PT, color=INK, pad=8)


def plot_dots(
    axes: Axes,
    series: Sequence[Sequence[float | None]],
    colors: Sequence[Color],
    texts: Sequence[str],
) -> None:
    """Draw rows of dots: the first series filled, the others hollow, a text to the right of each row's last dot.

    A value of None draws nothing, a row of them its text alone. Rows run from the top down, as `name_rows` names them.
    """
    for row, (color, text) in enumerate(zip(colors, texts, strict=True)):
        known = [value for values in series if (value := values[row]) is not None]
        if known:
            axes.plot([min(known), max(known)], [row, row], color=(*color, 0.35), linewidth=2, zorder=2)
        axes.annotate(
            text,
            (max(known), row) if known else (0, row),
            (8, 0),
            xycoords=axes.transData if known else axes.get_yaxis_transform(),
            textcoords="offset points",
            va="center",
            size=SMALL_PT,
            color=MUTED,
        )
    for number, values in enumerate(series):
        points = [(value, row, colors[row]) for row, value in enumerate(values) if value is not None]
        if points:
            xs, rows, edges = zip(*points, strict=True)
            faces = edges if number == 0 else PAPER
            axes.scatter(xs, rows, s=48, c=faces, edgecolors=edges, linewidths=1.6, zorder=4 - number, clip_on=False)


def explain_dots(figure: Figure, names: Sequence[str]) -> None:
    """Say in the lower left corner which dot is which series, in the order of the numbers beside the dots."""
    if len(names) < 2:
        return
    width, height = figure.get_size_inches()
    axes = figure.add_axes((MARGIN_IN / width, 0.1 / height, 3 / width, 0.22 / height))
    axes.set_axis_off()
    axes.set(xlim=(0, 3), ylim=(-1, 1))
    for number, name in enumerate(names):
        axes.plot(0.06 + number, 0, "o", ms=6, mfc=MUTED if number == 0 else PAPER, mec=MUTED, mew=1.4)
        axes.text(0.16 + number, 0, name, va="center", size=SMALL_PT, color=MUTED)


def mark_limits(axes: Axes, limits: Sequence[tuple[float, str]]) -> None:
    """Draw vertical limits with their names above the axes."""
    above = blended_transform_factory(axes.transData, axes.transAxes)
    for value, name in limits:
        axes.axvline(value, color=PAPER, linewidth=3, alpha=0.55, zorder=4)
        axes.axvline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=5)
        axes.text(value, 1.01, name, transform=above, ha="center", va="bottom", size=SMALL_PT, color=INK)


def format_percents(values: Sequence[float | None]) -> str:
    """Return percentages as one text: `51 %`, `51 / 0.38 %`; a dash is None."""
    if all(value is None for value in values):
        return "–"
    return " / ".join("–" if value is None else _shorten(value) for value in values) + " %"


def join_words(words: Sequence[str]) -> str:
    """Return words as one says them: `road, building and sky`."""
    return " and ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else "".join(words)


def _shorten(value: float) -> str:
    if value == 0 or value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"


def render(figure: Figure) -> bytes:
    """Return a figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()
