"""What stands behind one number, in the report: the stages of a promotion, the folds of a cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.image_set import ImageSet
from cityopt.report.crossval_table import SHOWN, describe_choice, format_spread
from cityopt.report.markup import Markup, join, tag
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_seconds, format_value
from cityopt.search.crossvalidation import CROSSVALS
from cityopt.store import run_folder
from cityopt.tracking.curves import merge_metrics, pick_epoch, sum_seconds
from cityopt.tracking.run_folder import read_records
from cityopt.training.fold_scores import summarize_folds


@dataclass(frozen=True)
class StageRecord:
    """One training of a staged promotion."""

    name: str
    config: Mapping[str, Any]
    """Of its run."""
    value: float | None
    """Of its own metric, at its last epoch."""
    seconds: float


@dataclass(frozen=True)
class FoldRecord:
    """One trained fold at the epoch that it keeps."""

    number: int
    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CrossvalRecord:
    """The last cross-validation of a study."""

    name: str
    grouping: str
    num_folds: int
    folds: tuple[FoldRecord, ...]
    """Those that have finished an epoch."""
    trial: int | None
    """The trial that chose the settings, None where none did."""


def read_stages(store: Path, promotion: Mapping[str, Any]) -> tuple[StageRecord, ...]:
    """Read the stages of a promotion, the promoted model's training last; none where it has a single one."""
    earlier = promotion.get("stages", [])
    if not earlier:
        return ()
    found = []
    for entry in (*earlier, {**promotion, "name": "the last"}):
        records = read_records(run_folder(store, entry["run_id"]))[0] if "run_id" in entry else []
        metrics = merge_metrics(records, records[-1].step) if records else {}
        value = metrics.get(entry["config"]["metric"])
        found.append(StageRecord(entry["name"], entry["config"], value, sum_seconds(records)))
    return tuple(found)


def read_last_crossval(
    store: Path, attributes: Mapping[str, Any], metric: str, direction: str
) -> CrossvalRecord | None:
    """Read the last cross-validation that a study remembers; `metric` chooses each fold's epoch."""
    entries: Sequence[Mapping[str, Any]] = attributes.get(CROSSVALS, [])
    if not entries:
        return None
    entry = entries[-1]
    folds = []
    for number in range(1, len(entry["division"]["folds"]) + 1):
        run_id = entry["runs"].get(f"fold-{number}")
        records = read_records(run_folder(store, run_id))[0] if run_id else []
        if any(metric in record.metrics for record in records):
            folds.append(FoldRecord(number, *pick_epoch(records, metric, direction)))
    division = entry["division"]
    return CrossvalRecord(entry["name"], division["grouping"], len(division["folds"]), tuple(folds), entry["trial"])


def write_stages(stages: Sequence[StageRecord]) -> Markup:
    """Return the table of a promotion's stages; nothing where it has a single training."""
    if not stages:
        return Markup("")
    headings = ("stage", "network", "images", "epochs", "freeze depth", "result", "time")
    rows = []
    for stage in stages:
        model, images = stage.config["model"], stage.config["train_set"]
        metric = stage.config["metric"]
        said = f" {describe_metric(metric)}{_describe_holdout(stage.config)}"
        result = tag("td", format_value(stage.value), tag("small", said))
        ground = f"{images['split']}, {images['labels']} labels"
        middle = (model["family"], ground, str(stage.config["training"]["epochs"]), str(model["freeze_depth"]))
        cells = [tag("td", text) for text in middle]
        rows.append(
            tag("tr", tag("th", stage.name, scope="row"), *cells, result, tag("td", format_seconds(stage.seconds)))
        )
    return join([tag("h3", "Stages"), _write_table(headings, rows)])


def _describe_holdout(config: Mapping[str, Any]) -> str:
    """Say what the result of a stage that is not judged on val is worth."""
    train, validation = (ImageSet.model_validate(config[name]) for name in ("train_set", "validation_set"))
    if validation.split == "val":
        return ""
    return " on the trials’ holdout" + (", on which it has trained" if train.may_share(validation) else "")


def write_crossval(found: CrossvalRecord | None, metric: str) -> Markup | None:
    """Return the folds of the last cross-validation with mean and spread; None without one."""
    if found is None:
        return None
    if not found.folds:
        return tag("p", f"{found.name} has not finished an epoch yet.", class_="empty")
    spreads = summarize_folds([fold.metrics for fold in found.folds], metric)
    columns = list(dict.fromkeys([metric, *(name for name in SHOWN if name in spreads)]))
    rows = [
        tag(
            "tr",
            tag("th", f"fold {fold.number}", scope="row"),
            tag("td", str(fold.epoch)),
            *(tag("td", format_value(fold.metrics.get(name))) for name in columns),
        )
        for fold in found.folds
    ]
    means = [format_spread(spreads[name], len(found.folds)) for name in columns]
    rows.append(tag("tr", tag("th", "mean ± std", scope="row"), tag("td", ""), *(tag("td", text) for text in means)))
    grouping = "whole cities" if found.grouping == "cities" else "contiguous blocks of each city"
    left = found.num_folds - len(found.folds)
    note = (
        f"{found.name}: {found.num_folds} folds of {grouping}, each at the epoch that is best on its own validation "
        "side; ± is the sample standard deviation."
    )
    open_folds = f" {left} of them {'has' if left == 1 else 'have'} not finished an epoch." if left else ""
    headings = ("fold", "best epoch", *(describe_metric(name) for name in columns))
    chosen = f" {describe_choice(found.trial)}" if found.trial is not None else ""
    return join([tag("p", note + open_folds + chosen, class_="note"), _write_table(headings, rows)])


def _write_table(headings: Sequence[str], rows: Sequence[Markup]) -> Markup:
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")
    return tag("div", table, class_="scroll")
