"""What `cityopt compare` shows: a table in the terminal, and one self-contained page with pictures."""

import base64
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cityopt.errors import StoreError
from cityopt.evaluation.paired import CONFIDENCE
from cityopt.report.document import write_document
from cityopt.report.markup import Markup, join, signed, tag, void
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_value
from cityopt.tracking.run_folder import write_atomically
from cityopt.training.model_comparison import MEASURES, Difference, ImagePair, ModelComparison

_HEADINGS = ("score", "A", "B", "B − A", "interval", "p", "verdict")
_MOST_ROWS = 12


def print_comparison(console: Console, found: ModelComparison) -> None:
    """Print every difference with its interval, and who wins how many images."""
    for letter, model in zip("AB", found.models, strict=True):
        console.print(f"{letter}: {model}", highlight=False, soft_wrap=True, markup=False)
    table = Table(title=f"{found.prefix} of {found.root}", title_justify="left", title_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="left" if heading in ("score", "verdict") else "right")
    for row in found.differences:
        table.add_row(f"{found.prefix}/{row.metric}", *_format_row(row))
    console.print(table)
    console.print(describe_wins(found), highlight=False, soft_wrap=True, markup=False)
    console.print(describe_method(found), highlight=False, soft_wrap=True, markup=False)


def write_comparison(found: ModelComparison, out: Path) -> str:
    """Write the page to a file and return a line that says where it is. Raises StoreError: it cannot be written."""
    content = write_comparison_page(found).encode()
    try:
        write_atomically(out.expanduser().absolute(), content)
    except OSError as error:
        raise StoreError(f"the page must go into a file that can be written, but {out}: {error.strerror}.") from error
    return f"{out} ({len(content) / 1e6:.1f} MB)"


def write_comparison_page(found: ModelComparison) -> str:
    """Return the page."""
    sections = [
        ("scores", "Which is better, and by how much?", _write_scores(found)),
        ("images", "On which images?", _write_images(found)),
        ("pictures", "What does that look like?", _write_pictures(found)),
    ]
    head = tag(
        "header",
        tag(
            "p", "cityopt compare · ", tag("strong", "A: ", found.models[0], ", B: ", found.models[1]), class_="eyebrow"
        ),
        tag("h1", reach_verdict(found)),
        tag("p", describe_wins(found), class_="lead"),
        tag("p", describe_method(found), class_="note"),
    )
    return write_document("cityopt compare", head, sections)


def reach_verdict(found: ModelComparison) -> str:
    """Return what the first score says, in a sentence."""
    row = found.differences[0]
    name = f"{describe_metric(f'val/{row.metric}')} on {found.prefix}"
    if math.isnan(row.first) or math.isnan(row.second):
        return f"There is nothing to judge by {name}."
    numbers = f"{row.first:.4f} (A) and {row.second:.4f} (B)"
    if row.paired.verdict == "undecided":
        return f"The images do not tell A from B: {name} {numbers}."
    better = "B" if row.paired.difference > 0 else "A"
    return f"{better} is better: {name} {numbers}."


def describe_wins(found: ModelComparison) -> str:
    """Return on how many images each model is better."""
    first, second = found.wins
    same = len(found.images) - first - second
    return f"By {MEASURES[found.task]} A is better on {first} images, B on {second}; {same} are even."


def describe_method(found: ModelComparison) -> str:
    """Return what the numbers are."""
    part = "" if "_first_" not in found.prefix else " Only a part of the split was judged: no number here is official."
    return (
        f"Both models on the same images at full resolution; {CONFIDENCE:.0%} intervals and p by a paired bootstrap "
        f"over images, not corrected for the number of scores.{part}"
    )


def _format_row(row: Difference) -> tuple[str, ...]:
    paired = row.paired
    interval, p = "–", "–"
    if not math.isnan(paired.low):
        interval, p = f"{signed(paired.low)} … {signed(paired.high)}", f"{paired.p_bootstrap:.3f}"
    known = not math.isnan(row.first + row.second)
    verdict = {"better": "B is better", "worse": "A is better", "undecided": "undecided"}[paired.verdict]
    scores = (format_value(None if math.isnan(x) else x) for x in (row.first, row.second))
    return (*scores, signed(paired.difference) if known else "–", interval, p, verdict if known else "nothing to judge")


def _write_scores(found: ModelComparison) -> Markup:
    rows = [(f"{found.prefix}/{row.metric}", *_format_row(row)) for row in found.differences]
    return _write_table(_HEADINGS, rows)


def _write_images(found: ModelComparison) -> Markup:
    half = _MOST_ROWS // 2
    ends = [*found.images[:half], *found.images[half:][-half:]]
    rows = [(x.name, f"{x.first:.4f}", f"{x.second:.4f}", signed(x.second - x.first)) for x in ends]
    note = f"{MEASURES[found.task]} of single images, from A's clearest wins to B's."
    return join([tag("p", note, class_="note"), _write_table(("image", "A", "B", "B − A"), rows)])


def _write_pictures(found: ModelComparison) -> Markup:
    if not found.shown:
        return tag("p", "The models are even on every image.", class_="empty")
    return join([_write_figure(pair) for pair in found.shown])


def _write_figure(pair: ImagePair) -> Markup:
    winner = "A" if pair.first > pair.second else "B"
    parts = [tag("h3", f"{winner} wins {pair.name}: {pair.first:.4f} (A), {pair.second:.4f} (B)")]
    for letter, picture in zip("AB", pair.pictures, strict=True):
        source = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        image = void("img", src=source, alt=f"{letter} beside the ground truth of {pair.name}", loading="lazy")
        parts.append(tag("figure", image, tag("figcaption", f"{letter}, beside the ground truth")))
    return join(parts)


def _write_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    body = [tag("tr", tag("th", name, scope="row"), *(tag("td", text) for text in texts)) for name, *texts in rows]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="small-table scores")
    return tag("div", table, class_="scroll")
