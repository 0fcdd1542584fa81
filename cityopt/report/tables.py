"""Tables and numbers as people read them in a terminal: leaderboard, promotion, anchors, data check, prediction."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cityopt.dimension import Scalar

if TYPE_CHECKING:
    from cityopt.search.forecast import Forecast, Range
    from cityopt.search.promote import Promotion
    from cityopt.search.status import Spending, StudyStatus, TrialStatus
    from cityopt.training.prediction_folder import PredictSummary

STATE_STYLES: dict[str, str] = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "running": "cyan",
    "waiting": "dim",
}
_MAX_PROBLEMS = 10


def print_leaderboard(console: Console, status: "StudyStatus", *, limit: int = 20) -> None:
    """Print the trials of a study, the best first, and what failed."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count) or "no trial yet"
    table = Table(title=escape(f"{status.study}: {counts}"), title_justify="left", title_style="bold")
    keys = list(dict.fromkeys(key for trial in status.trials for key in trial.params))
    for heading in ("trial", "state", status.metric, *(key.rsplit(".", 1)[-1] for key in keys), "time", "run"):
        table.add_column(heading, justify="right" if heading in ("trial", status.metric, "time") else "left")
    for trial in status.ranked[:limit]:
        table.add_row(
            *_format_row(trial, keys), style="bold" if status.best and trial.number == status.best.number else ""
        )
    console.print(table)
    if len(status.trials) > limit:
        console.print(f"… and {len(status.trials) - limit} more; all of them with --json")
    if status.spending is not None:
        console.print(format_spending(status.spending), highlight=False, soft_wrap=True)
    for trial in status.trials:
        if trial.state == "failed":
            text = f"trial {trial.number} failed ({trial.reason}): {trial.message or 'see the log of its run'}"
            console.print(text, highlight=False, soft_wrap=True, markup=False)


def format_spending(spending: "Spending") -> str:
    """Return what a study has spent, and of how much."""
    trained = f"trained for {format_seconds(3600 * spending.device_hours)}"
    if spending.max_device_hours is not None:
        trained += f" of {format_seconds(3600 * spending.max_device_hours)}"
    parts = [trained, f"{spending.trials_left} trials left"]
    if spending.hours is not None:
        limit = "" if spending.max_hours is None else f" of {format_seconds(3600 * spending.max_hours)}"
        parts.append(f"at work for {format_seconds(3600 * spending.hours)}{limit}")
    return ", ".join(parts)


def format_settings(settings: Mapping[str, Scalar]) -> str:
    """Return settings as one line, numbers in three digits."""
    return (
        ", ".join(f"{key.rsplit('.', 1)[-1]}={_format_scalar(value)}" for key, value in settings.items()) or "defaults"
    )


def format_value(value: float | None) -> str:
    """Return a score in four decimals, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def format_seconds(seconds: float | None) -> str:
    """Return a duration as people say it: 48 s, 3:05 min, 2:10 h."""
    if seconds is None:
        return "–"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def _format_row(trial: "TrialStatus", keys: list[str]) -> list[str]:
    state = f"[{STATE_STYLES[trial.state]}]{trial.state}[/]" + (f" ({trial.reason})" if trial.reason else "")
    settings = [escape(_format_scalar(trial.params[key])) if key in trial.params else "" for key in keys]
    return [
        str(trial.number),
        state,
        format_value(trial.value),
        *settings,
        format_seconds(trial.seconds),
        (trial.run_id or "")[:8],
    ]


def _format_scalar(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_promotion(console: Console, promotion: "Promotion") -> None:
    """Print what full training brought, on the same images and by the same protocol, and where the model is."""
    settings = escape(format_settings(promotion.settings))
    title = f"{promotion.name} of {promotion.study}: trial {promotion.trial} ({settings})"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("images", "metric", "trial", "promoted", "difference"):
        # A metric that is cut off is another metric: in a narrow terminal the images give way.
        is_text = heading in ("images", "metric")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "images")
    for row in promotion.comparisons:
        known = row.trial is not None and row.promoted is not None
        difference = f"{(row.promoted or 0) - (row.trial or 0):+.4f}" if known else "–"
        table.add_row(row.images, row.metric, format_value(row.trial), format_value(row.promoted), difference)
    console.print(table)
    for row in promotion.comparisons:
        if row.note:
            console.print(f"{row.images}: {row.note}", highlight=False, soft_wrap=True, markup=False)
    said = f"{promotion.model} (version {promotion.version}): {promotion.reason}"
    console.print(said, highlight=False, soft_wrap=True, markup=False)


def print_forecast(console: Console, forecast: "Forecast") -> None:
    """Print what a sweep will cost."""

    def tell(found: "Range") -> str:
        return f"{format_seconds(found.likely)} ({format_seconds(found.low)} to {format_seconds(found.high)})"

    where = f"{forecast.workers} worker(s) on {forecast.device}, {forecast.threads} threads each"
    table = Table(title=escape(f"{forecast.study}: {forecast.trials} trials, {where}"), title_justify="left")
    for heading in ("what", "how much"):
        table.add_column(heading)
    promotion = "not known: a stage has another model" if forecast.promotion_s is None else ""
    many = f"{forecast.finalists} trainings, about {format_seconds(forecast.finalists_s)} one after the other"
    rows = {
        "an epoch of trial 0": format_seconds(forecast.epoch_s),
        f"a trial of {forecast.epochs} epochs, not pruned, in a warm worker": tell(forecast.trial_s),
        "the sweep": tell(forecast.sweep_s),
        "training in all": tell(forecast.device_s),
        "its finalists": many if forecast.finalists else "none",
        "the promotion": promotion or f"about {format_seconds(forecast.promotion_s)}",
        "memory of a worker": f"{forecast.memory_gib:.2f} GiB",
        "disk": f"{forecast.disk_gib:.2f} GiB of checkpoints",
    }
    for what, how_much in rows.items():
        table.add_row(what, how_much)
    console.print(table)


def print_anchors(console: Console, report: dict[str, Any]) -> None:
    """Print anchors by pyramid level and their recall beside torchvision's defaults."""
    shapes = Table(title=f"anchors: {report['adopted']} ({report['reason']})", title_justify="left", title_style="bold")
    for heading in ("level", "sizes (px)", "ratios (height / width)"):
        shapes.add_column(heading)
    for level, (sizes, ratios) in enumerate(zip(report["sizes"], report["ratios"], strict=True), start=2):
        shapes.add_row(f"P{level}", *("  ".join(f"{value:.2f}" for value in row) for row in (sizes, ratios)))
    console.print(shapes)
    recall = Table(title="on held-out images, offset to the grid included", title_justify="left", title_style="bold")
    names = [name for name in ("kmeans", "default", "explicit") if name in report]
    for heading in ("", *names):
        recall.add_column(heading, justify="right" if heading else "left")
    for key, label in (
        ("mean_best_iou", "mean best IoU"),
        ("recall_50", "objects with IoU ≥ .5"),
        ("recall_70", "objects with IoU ≥ .7"),
    ):
        recall.add_row(label, *(format_value(report[name][key]) for name in names))
        for size in ("small", "medium", "large"):
            recall.add_row(f"  {size}", *(format_value(report[name]["bins"][size][key]) for name in names), style="dim")
    console.print(recall)


def print_check(console: Console, found: dict[str, Any]) -> None:
    """Print what a dataset holds and what is wrong with it."""
    table = Table(title=escape(str(found["root"])), title_justify="left", title_style="bold")
    for heading in ("split", "images", "labels", "problems"):
        table.add_column(heading, justify="left" if heading == "split" else "right")
    for split, part in found["splits"].items():
        table.add_row(split, str(part["images"]), str(part["labels"]), str(len(part["problems"])))
    console.print(table)
    for split, part in found["splits"].items():
        for problem in part["problems"][:_MAX_PROBLEMS]:
            text = f"{split}: {problem['file']}: {problem['problem']}"
            console.print(text, highlight=False, soft_wrap=True, markup=False)
        if len(part["problems"]) > _MAX_PROBLEMS:
            console.print(f"{split}: … and {len(part['problems']) - _MAX_PROBLEMS} more; all of them with --json")


def print_statistics(console: Console, found: dict[str, Any]) -> None:
    """Print the objects of a dataset by class and split, and what was left out."""
    splits = {split: f"{part['images']:,} images" for split, part in found["splits"].items()}
    title = f"{found['root']}: {', '.join(f'{split} {images}' for split, images in splits.items())}"
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for heading in ("split", "class", "objects", "images", "pixels", "median area", "small", "truncated", "in parts"):
        table.add_column(heading, justify="left" if heading in ("split", "class") else "right")
    for row in found["classes"]:
        area = "–" if row["median_area_px"] is None else f"{row['median_area_px']:,.0f} px"
        shares = [row[f"{key}_share"] for key in ("pixel", "small", "truncated", "in_parts")]
        pixels, *hard = ["–" if share is None else f"{100 * share:.1f} %" for share in shares]
        table.add_row(row["split"], row["class"], f"{row['objects']:,}", f"{row['images']:,}", pixels, area, *hard)
    console.print(table)
    for remark in found["remarks"]:
        console.print(remark, highlight=False, soft_wrap=True, markup=False)


def print_prediction(console: Console, summary: "PredictSummary", out: Path) -> None:
    """Print what was found in pictures, where it lies, and what could not be read."""
    lines = [
        f"{_count(summary.num_pictures, 'picture')}, {_count(summary.num_detections, 'object')} found: "
        f"{out / 'overlays'}, {out / 'detections'}"
    ]
    if summary.num_labelled:
        lines.append(
            f"{_count(summary.num_labelled, 'picture')} with ground truth, at IoU .50: {summary.num_found} found, "
            f"{summary.num_false} false, {summary.num_missed} missed"
        )
    problems = list(summary.problems.items())
    if problems:
        lines.append(f"{_count(len(problems), 'file')} could not be read:")
        lines += [f"  {path}: {reason}" for path, reason in problems[:_MAX_PROBLEMS]]
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"  … and {len(problems) - _MAX_PROBLEMS} more, in {out / 'summary.json'}")
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def print_conversion(console: Console, found: dict[str, Any]) -> None:
    """Print what a file of weights turned out to be, and how to use what was made of it."""
    rows = {
        "found": f"{found['family']} with {found['backbone']}, {found['classes']} classes, {found['framework']}",
        "weights": f"{found['num_tensors']} tensors, {found['num_parameters'] / 1e6:.1f} million numbers",
        "anchors": found["anchors"],
        "left out": ", ".join(dict.fromkeys(name.rstrip(".0123456789") for name in found["dropped"])) or "nothing",
        "licence": f"{found['licence']}: the checkpoint says so, and so must whoever passes it on",
        "checkpoint": found["checkpoint"],
    }
    table = Table(title=escape(found["source"]), title_justify="left", title_style="bold", show_header=False)
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console.print(table)
