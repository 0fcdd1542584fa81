"""What `cityopt crossval` prints: the folds with mean ± std, the classes, the final model, and what to do next."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.labels import EVALUATED_LABELS
from cityopt.report.tables import format_seconds, format_settings, format_value
from cityopt.search.final_model import HEADLINES
from cityopt.store import describe_option
from cityopt.training.crossval import BLOCKS_REMARK

if TYPE_CHECKING:
    from cityopt.search.crossval_result import CrossValidation
    from cityopt.search.final_model import FinalModel
    from cityopt.training.fold_scores import Spread

SHOWN = (
    "val/semantic/miou",
    "val/semantic/f1_macro",
    "val/semantic/accuracy",
    "val/loss/total",
    "val/coco/segm/ap",
    "val/coco/segm/ap50",
)
"""Metrics with a column beside the objective's, where the folds have them."""
_BY_CLASS = ("val/semantic/iou/class/", "val/coco/segm/ap/class/")
_MAX_GROUPS = 60


def print_crossval(console: Console, found: "CrossValidation") -> None:
    """Print a cross-validation from its settings to the next command."""
    settings = escape(format_settings(found.choice.settings))
    console.print(f"[bold]{found.name} of {escape(found.study)}[/bold]: {settings}", highlight=False, soft_wrap=True)
    console.print(f"settings: {found.choice.source}", highlight=False, soft_wrap=True, markup=False)
    console.print(build_fold_table(found))
    console.print(build_class_table(found))
    for line in describe_method(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    if found.final is not None:
        for line in describe_final(found.final):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    console.print(advise(found), highlight=False, soft_wrap=True, markup=False)


def build_fold_table(found: "CrossValidation") -> Table:
    """Lay out a row per fold and one of means, at the epoch that each fold keeps."""
    columns = list(dict.fromkeys([found.metric, *(name for name in SHOWN if name in found.spreads)]))
    table = Table(title="by fold, at its best epoch", title_justify="left", title_style="bold")
    for heading in ("fold", "validates on", "images", "trains on", "epoch", *columns, "time"):
        table.add_column(heading, justify="left" if heading == "validates on" else "right", overflow="fold")
    for fold in found.folds:
        rule = fold.fold
        scores = [format_value(fold.metrics.get(name)) for name in columns]
        numbers = (str(rule.num_validation), str(rule.num_train), str(fold.epoch))
        table.add_row(
            str(rule.number), _name_groups(found, rule.number), *numbers, *scores, format_seconds(fold.seconds)
        )
    table.add_section()
    means = [format_spread(found.spreads[name], len(found.folds)) for name in columns]
    table.add_row("", "mean ± std", "", "", "", *means, "", style="bold")
    return table


def build_class_table(found: "CrossValidation") -> Table:
    """Lay out mean ± std of each class, and the folds whose validation images do not show it."""
    prefix = next(prefix for prefix in _BY_CLASS if any(name.startswith(prefix) for name in found.spreads))
    table = Table(title=f"by class: {prefix}…", title_justify="left", title_style="bold")
    for heading in ("class", "mean ± std", "not shown in folds"):
        table.add_column(heading, justify="right" if heading == "mean ± std" else "left")
    for label in EVALUATED_LABELS:
        spread = found.spreads.get(f"{prefix}{label.name}")
        if spread is not None:
            absent = [str(fold.number) for fold in found.division.folds if label.name in fold.absent_validation]
            missing = "all" if label.name in found.division.absent else ", ".join(absent)
            table.add_row(label.name, format_spread(spread, len(found.folds)), missing)
    return table


def format_spread(spread: "Spread", num_folds: int) -> str:
    """Return `.6120 ± .0134`, with the number of folds where some have no value."""
    text = f"{format_value(spread.mean)} ± {format_value(spread.std)}"
    return text if spread.num_folds == num_folds else f"{text} ({spread.num_folds} folds)"


def describe_method(found: "CrossValidation") -> list[str]:
    """Return lines that say what the numbers are, and what they are not."""
    lines = [
        f"± is the sample standard deviation (n - 1) of {len(found.folds)} folds; each keeps the epoch that is best by "
        f"{found.metric} on its own validation side, so the scores are those of a chosen epoch."
    ]
    if found.choice.trial is not None:
        lines.append(describe_choice(found.choice.trial))
    if found.division.blocks:
        lines.append(f"Folds are contiguous blocks of each city: {BLOCKS_REMARK}.")
    return [*lines, *found.division.describe_gaps()]


def describe_choice(trial: int) -> str:
    """Say what it means for the folds' scores that a trial chose their settings."""
    return (
        f"The settings of trial {trial} were chosen on the trials' holdout, which is among the images that folds "
        "validate on: the scores may be a little better than on images that chose nothing."
    )


def describe_final(final: "FinalModel") -> list[str]:
    """Return lines about the model that was trained on all images."""
    shown = [name for name in final.official if name.partition("/")[2] in HEADLINES]
    scores = ", ".join(f"{name} {final.official[name]:.4f}" for name in shown)
    epochs = f"{final.epochs} epoch{'s' * (final.epochs != 1)}"
    return [
        f"{final.name}: trained on all training images for {epochs}, the mean of the folds' best",
        f"official, at full resolution: {scores or 'val shows nothing to find'}",
        final.registered,
    ]


def advise(found: "CrossValidation") -> str:
    """Return the next commands."""
    store = describe_option(found.store)
    look = f"Look: cityopt ui{store}"
    if found.final is None:
        return f"Next: the same command without --no-final trains the model on all training images\n{look}"
    return f"Next: cityopt predict IMAGES --model {found.final.model} --out found{store}\n{look}"


def _name_groups(found: "CrossValidation", number: int) -> str:
    """Return a fold's cities, or how many blocks of how many cities it has."""
    spans = found.division.folds[number - 1].spans
    if found.division.blocks:
        return f"{len(spans)} block{'s' * (len(spans) != 1)}"
    text = ", ".join(span.city for span in spans)
    return text if len(text) <= _MAX_GROUPS else f"{text[:_MAX_GROUPS]}…"
