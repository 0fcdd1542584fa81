"""What `cityopt transfer` prints for people."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.report.tables import format_value
from cityopt.report.transfer_tables import (
    GROUNDS,
    MEASURES,
    Drop,
    Row,
    describe_ground,
    list_classes,
    list_drops,
    list_scores,
    list_warnings,
)
from cityopt.training.transfer_study import STREETS, Comparison, TransferStudy


def print_transfer(console: Console, study: TransferStudy, lines: Sequence[str]) -> None:
    """Print the scores of all models, who is better on the same images, and where the page is."""
    for ground in study.grounds:
        console.print(_lay_out(study, f"{describe_ground(ground)}: scores", list_scores(study, ground)))
        if ground.key == STREETS:
            for metric, label in (("cityscapes/ap", "AP"), ("cityscapes/ap50", "AP50")):
                rows = list_classes(study, ground, metric)
                console.print(_lay_out(study, f"Cityscapes {label} by class", rows))
    for subject in study.subjects:
        for kind, what in (("segm", "mask"), ("bbox", "box")):
            if drops := list_drops(subject, kind):
                console.print(_lay_out_drops(subject.label, what, drops))
    for comparison in study.comparisons:
        console.print(describe_comparison(comparison), highlight=False, soft_wrap=True, markup=False)
    for line in (*list_warnings(study), *lines):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def describe_comparison(comparison: Comparison) -> str:
    """Say in one line who is better in a measure on the same images."""
    found = comparison.found
    what = f"{GROUNDS[comparison.ground]}, {MEASURES[comparison.measure]}"
    models = f"{comparison.second} − {comparison.first}"
    if not found.num_images:
        return f"{what}: {models} cannot be told, since no image has one"
    if math.isnan(found.low):
        return f"{what}: {models} = {found.difference:+.4f} on {found.num_images} images: too little to decide".replace(
            "-", "−"
        )
    interval = f"95 %: {found.low:+.4f} … {found.high:+.4f}, {found.num_images} images"
    return f"{what}: {models} = {found.difference:+.4f} ({interval}): {found.verdict}".replace("-", "−")


def _lay_out_drops(label: str, what: str, drops: Sequence[Drop]) -> Table:
    table = Table(title=escape(f"{label}: from COCO to Cityscapes"), title_justify="left")
    for heading in (f"COCO {what} AP, shared classes", "COCO", "Cityscapes", "difference"):
        table.add_column(heading, justify="left" if "shared" in heading else "right")
    for drop in drops:
        table.add_row(drop.label, *(format_value(x) for x in (drop.coco, drop.streets, drop.difference)))
    return table


def _lay_out(study: TransferStudy, title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("")
    for subject in study.subjects:
        table.add_column(escape(subject.label), justify="right")
    for row in rows:
        table.add_row(row.label, *(format_value(value) for value in row.values))
    return table
