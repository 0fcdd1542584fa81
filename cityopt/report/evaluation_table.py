"""What `cityopt evaluate` prints for people: what was judged and how, scores by class, and the rest.

A protocol's name stands over each of its columns, for the same predictions have another AP in each.
"""

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.evaluation.semantic import PREFIX, THINGS_PREFIX
from cityopt.labels import CATEGORIES, EVALUATED_LABELS, THING_LABELS
from cityopt.report.tables import format_value

if TYPE_CHECKING:
    from cityopt.training.evaluation import Evaluation

Column = tuple[str, str, str]
"""The heading of a column, the metric of its mean, and what the metrics of classes begin with."""
_INSTANCE_COLUMNS: dict[str, tuple[Column, ...]] = {
    "cityscapes": (
        ("Cityscapes\nAP", "cityscapes/ap", "cityscapes/ap/class/"),
        ("Cityscapes\nAP50", "cityscapes/ap50", "cityscapes/ap50/class/"),
    ),
    "coco": (
        ("COCO\nmask AP", "coco/segm/ap", "coco/segm/ap/class/"),
        ("COCO\nmask AP50", "coco/segm/ap50", "coco/segm/ap50/class/"),
        ("COCO\nbox AP", "coco/bbox/ap", "coco/bbox/ap/class/"),
    ),
    "boundary": (("boundary\nmask AP", "boundary/segm/ap", "boundary/segm/ap/class/"),),
}


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
        if found.task == "semantic":
            console.print(build_category_table(found))
    if found.protocols:
        console.print("– nothing of that kind is there to be found; all numbers with --json", style="dim")
    if found.export is not None and found.problem is None:
        console.print(f"exported to {escape(str(found.export))}", highlight=False, soft_wrap=True)


def list_columns(found: "Evaluation") -> list[Column]:
    """Return the columns of the protocols by which a model of its task was judged."""
    prefix = _pixel_prefix(found)
    pixels = (
        ("Cityscapes\npixel IoU", f"{prefix}/miou", f"{prefix}/iou/class/"),
        ("Cityscapes\npixel iIoU", f"{prefix}/iiou", f"{prefix}/iiou/class/"),
    )
    columns = _INSTANCE_COLUMNS | {"semantic": pixels}
    return [column for protocol in found.protocols for column in columns[protocol]]


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
    columns = list_columns(found)
    table = Table(title=_title(found, "by class"), title_justify="left", title_style="bold")
    table.add_column("class", vertical="bottom")
    for heading, _, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("mean", *(_show(found, metric) for _, metric, _ in columns), style="bold", end_section=True)
    for label in EVALUATED_LABELS if found.task == "semantic" else THING_LABELS:
        # Instances alone are weighted, so stuff has no iIoU.
        scores = (
            "" if "/iiou/" in prefix and not label.has_instances else prefix + label.name for *_, prefix in columns
        )
        table.add_row(label.name, *(score and _show(found, score) for score in scores))
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
    """Lay out the scores of pixels beside IoU."""
    prefix, things = _pixel_prefix(found), found.task == "instance"
    title = _title(found, "painted pixels of the eight classes" if things else "pixels of all classes")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("mean over classes")
    for heading in ("precision", "recall", "F1 = Dice", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, label in (("macro", "each alike"), ("weighted", "by pixels")):
        names = (f"{prefix}/{name}_{kind}" for name in ("precision", "recall", "f1"))
        table.add_row(label, *(_show(found, name) for name in names))
    label = "all pixels, other classes as one" if things else "all pixels"
    table.add_row(label, "", "", "", _show(found, f"{prefix}/accuracy"))
    return table


def build_category_table(found: "Evaluation") -> Table:
    """Lay out the scores of the seven categories, within which confusions are right."""
    names = ("category_iou", "category_iiou")
    table = Table(title=_title(found, "by category"), title_justify="left", title_style="bold")
    for heading in ("category", "Cityscapes\npixel IoU", "Cityscapes\npixel iIoU"):
        table.add_column(heading, justify="left" if heading == "category" else "right", vertical="bottom")
    table.add_row("mean", *(_show(found, f"{PREFIX}/{name}") for name in names), style="bold", end_section=True)
    for category in CATEGORIES[1:]:
        metrics = (f"{PREFIX}/{name}/category/{category}" for name in names)
        table.add_row(category, *(_show(found, x) if f"{found.prefix}/{x}" in found.metrics else "" for x in metrics))
    return table


def _pixel_prefix(found: "Evaluation") -> str:
    return PREFIX if found.task == "semantic" else THINGS_PREFIX


def _title(found: "Evaluation", what: str) -> str:
    return f"{what}, first {found.num_images} images of {found.split}" if found.is_part else f"{what}, {found.split}"


def _show(found: "Evaluation", metric: str) -> str:
    value = found.metrics[f"{found.prefix}/{metric}"]
    return format_value(None if math.isnan(value) else value)
