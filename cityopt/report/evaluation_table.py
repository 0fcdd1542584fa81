"""What `cityopt evaluate` prints for people: what was judged and how, scores by class, and the rest.

A protocol's name stands over each of its columns, for the same predictions have another AP in each.
"""

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.labels import THING_NAMES
from cityopt.report.tables import format_value

if TYPE_CHECKING:
    from cityopt.training.evaluation import Evaluation

COLUMNS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "cityscapes": (
        ("Cityscapes\nAP", "cityscapes/ap", "cityscapes/ap/class/"),
        ("Cityscapes\nAP50", "cityscapes/ap50", "cityscapes/ap50/class/"),
    ),
    "coco": (
        ("COCO\nmask AP", "coco/segm/ap", "coco/segm/ap/class/"),
        ("COCO\nmask AP50", "coco/segm/ap50", "coco/segm/ap50/class/"),
        ("COCO\nbox AP", "coco/bbox/ap", "coco/bbox/ap/class/"),
    ),
    "semantic": (
        ("pixels\nIoU", "semantic_things/miou", "semantic_things/iou/class/"),
        ("pixels\niIoU", "semantic_things/iiou", "semantic_things/iiou/class/"),
    ),
}
"""Per protocol the headings of its columns, the metric of the mean, and what the metrics of classes begin with."""


def print_evaluation(console: Console, found: "Evaluation") -> None:
    """Print the scores of an evaluation, or where its predictions are if it has none."""
    for line in describe_conditions(found):
        console.print(line, highlight=False, soft_wrap=True)
    if found.protocols:
        console.print(build_class_table(found))
    if "coco" in found.protocols:
        console.print(build_coco_table(found))
    if "semantic" in found.protocols:
        console.print(build_pixel_table(found))
    if found.protocols:
        console.print("– nothing of that kind is there to be found; all numbers with --json", style="dim")
    if found.export is not None:
        console.print(f"exported to {escape(str(found.export))}", highlight=False, soft_wrap=True)


def describe_conditions(found: "Evaluation") -> list[str]:
    """Return in lines of markup what was judged, on which images, and at which size."""
    if found.is_part:
        images = f"the first {found.num_images} of {found.num_in_split} images of {found.split}"
    else:
        images = f"{found.split}, all {found.num_images} images"
    sizes = ", ".join(f"{height} x {width}" for height, width in found.sizes[:3])
    more = f" and {len(found.sizes) - 3} other sizes" if len(found.sizes) > 3 else ""
    seen = "{} x {}".format(*found.size_seen)
    lines = [
        f"[bold]{escape(found.model)}[/bold]",
        f"on [bold]{images}[/bold] of {escape(str(found.root))}",
        f"masks and ground truth at full resolution, {sizes}{more}; the model sees {seen} (height x width)",
    ]
    if found.is_part:
        lines.append("[yellow]A part of the split: these are no official numbers. Leave --limit out for those.[/]")
    return lines


def build_class_table(found: "Evaluation") -> Table:
    """Lay out one row per class under the means, one column per kind of score."""
    columns = [column for protocol in found.protocols for column in COLUMNS[protocol]]
    table = Table(title=_title(found, "by class"), title_justify="left", title_style="bold")
    table.add_column("class", vertical="bottom")
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("mean", *(_show(found, metric) for _, metric, _ in columns), style="bold", end_section=True)
    for name in THING_NAMES:
        table.add_row(name, *(_show(found, prefix + name) for _, _, prefix in columns))
    return table


def build_coco_table(found: "Evaluation") -> Table:
    """Lay out COCO's APs of masks and boxes by threshold and by size of the objects."""
    table = Table(title=_title(found, "COCO"), title_justify="left", title_style="bold")
    table.add_column("")
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"} | {f"ap_{x}": f"AP {x}" for x in ("small", "medium", "large")}
    for heading in names.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, label in (("segm", "masks"), ("bbox", "boxes")):
        table.add_row(label, *(_show(found, f"coco/{kind}/{name}") for name in names))
    return table


def build_pixel_table(found: "Evaluation") -> Table:
    """Lay out the scores of painted pixels beside IoU."""
    table = Table(title=_title(found, "pixels of things"), title_justify="left", title_style="bold")
    table.add_column("mean over classes")
    for heading in ("precision", "recall", "F1 = Dice", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, label in (("macro", "each alike"), ("weighted", "by pixels")):
        names = (f"semantic_things/{name}_{kind}" for name in ("precision", "recall", "f1"))
        table.add_row(label, *(_show(found, name) for name in names))
    table.add_row("all pixels, other classes as one", "", "", "", _show(found, "semantic_things/accuracy"))
    return table


def _title(found: "Evaluation", what: str) -> str:
    return f"{what}, first {found.num_images} images of {found.split}" if found.is_part else f"{what}, {found.split}"


def _show(found: "Evaluation", metric: str) -> str:
    value = found.metrics[f"{found.prefix}/{metric}"]
    return format_value(None if math.isnan(value) else value)
