"""Which classes are taken for which, in the report: the confusion matrix of a semantic model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import DataError
from cityopt.evaluation.confusion import CLASS_NAMES, FILE, OTHER, parse_confusion
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, tag
from cityopt.tracking.run_folder import ARTIFACTS


def write_confusion(findings: Findings) -> Markup | None:
    """Return the matrix of the promoted model, else of the best trial; None where neither has one."""
    for name, folder in _list_runs(findings):
        path = folder / ARTIFACTS / FILE
        try:
            pixels = parse_confusion(path.read_text())
        except (OSError, DataError):
            continue
        note = (
            f"{name}: each row is a class of the ground truth, each column what was predicted, in percent of the row’s "
            "pixels; a bright diagonal is right. Classes that these images do not show are left out."
        )
        return join([tag("p", note, class_="note"), _write_matrix(pixels)])
    return None


def _list_runs(findings: Findings) -> Iterator[tuple[str, Path]]:
    """Yield runs whose matrix is shown, the first choice first: what they are, and their folders."""
    promotion, best = findings.promotion, findings.best
    if promotion is not None and promotion.outcome == "complete":
        yield f"{promotion.name} on {promotion.ground}", promotion.folder
    if best is not None and best.folder is not None:
        yield f"Trial {best.number} on the held-out cities", best.folder


def _write_matrix(pixels: NDArray[np.int64]) -> Markup:
    """Return a table of the classes that are there or predicted, row by row in percent."""
    rows = np.flatnonzero(pixels.sum(axis=1))
    columns = np.union1d(rows, np.flatnonzero(pixels.sum(axis=0)))
    names = (*CLASS_NAMES, OTHER)
    shares = pixels / np.maximum(pixels.sum(axis=1, keepdims=True), 1)
    headings = [tag("th", tag("span", names[column]), scope="col") for column in columns]
    head = tag("thead", tag("tr", tag("th", "truth", scope="col"), *headings))
    body = [
        tag(
            "tr",
            tag("th", names[row], scope="row"),
            *(_write_cell(names[row], names[column], float(shares[row, column])) for column in columns),
        )
        for row in rows
    ]
    table = tag("table", head, tag("tbody", *body), class_="confusion")
    return tag("div", table, class_="scroll")


def _write_cell(truth: str, found: str, share: float) -> Markup:
    said = f"{share:.1%} of {truth} is taken for {found}" if truth != found else f"{share:.1%} of {truth} is right"
    style = f"background:color-mix(in srgb, var(--best) {100 * share:.0f}%, transparent)" if share >= 0.005 else None
    text = f"{100 * share:.0f}" if share >= 0.005 else ""
    return tag("td", text, class_="strong" if share > 0.5 else None, style=style, data_tip=said)
