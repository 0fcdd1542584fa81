"""How good the models are, in the report: AP by class and by size, and what full training brought."""

from collections.abc import Mapping
from dataclasses import dataclass

from cityopt.evaluation.confusion import CLASS_NAMES
from cityopt.labels import BY_NAME, LABELS, THING_NAMES
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, signed, tag
from cityopt.report.protocols import SIZES, describe_metric, list_class_scores, list_size_scores
from cityopt.report.tables import format_value
from cityopt.report.trainings import write_stages

_MAX_COLUMNS = 4
_SHOWN = ("coco/segm/ap", "coco/segm/ap50", "cityscapes/ap", "cityscapes/ap50", "semantic/iou", "semantic/f1")
"""Tables of scores by class that are worth a column."""


@dataclass(frozen=True)
class Source:
    """A model and the images that it was judged on, with all its metrics."""

    name: str
    ground: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """One column of a table of scores."""

    heading: str
    ground: str
    scores: Mapping[str, float]


def write_class_scores(findings: Findings) -> Markup:
    """Return the table of scores by class: of the best trial, and of the promoted model where there is one."""
    columns = [
        Column(table.label, source.name, table.scores)
        for source in list_sources(findings)
        for table in list_class_scores(source.metrics)
        if table.prefix.endswith(_SHOWN) and (source.name.startswith("trial") or not table.prefix.endswith("ap50"))
    ][:_MAX_COLUMNS]
    if not columns:
        return tag("p", "No model has been judged by class yet.", class_="empty")
    found = {name for column in columns for name in column.scores}
    judged = THING_NAMES if findings.config.model.task == "instance" else CLASS_NAMES
    names = [label.name for label in LABELS if label.name in found | set(judged)]
    names += sorted(found - set(names))
    keys = {name: _write_class_key(name) for name in names}
    missing = [name for name in names if name not in found]
    nowhere = f" ({', '.join(missing)} in none of them)" if missing else ""
    has_gaps = any(name not in column.scores for column in columns for name in names)
    note = f"A dash: a column’s images hold nothing of that class to find{nowhere}." if has_gaps else ""
    return join(
        [_write_grounds(findings), _write_table("class", keys, columns), tag("p", note, class_="note") if note else ""]
    )


def write_size_scores(findings: Findings) -> Markup:
    """Return the table of scores by the objects' size."""
    columns = [
        Column(label, source.name, scores)
        for source in list_sources(findings)
        for label, scores in list_size_scores(source.metrics)
    ][:_MAX_COLUMNS]
    if not columns:
        return tag("p", "No model has been judged by size yet.", class_="empty")
    keys = {size: tag("span", size, tag("small", f" {area}")) for size, area in SIZES.items()}
    note = "Areas are COCO’s, measured at the size that is evaluated: in the full picture the same objects are larger."
    return join([_write_table("size", keys, columns), tag("p", note, class_="note")])


def write_promotion(findings: Findings) -> Markup | None:
    """Return trial and promoted model side by side, by protocol; None without a complete promotion."""
    promotion = findings.promotion
    if promotion is None or promotion.outcome != "complete":
        return None
    pairs = [
        (promotion.ground, "val/", "trial/val/", ""),
        (
            "the trials’ holdout",
            "promoted/holdout/",
            "trial/holdout/",
            "the promoted model has trained on these images",
        ),
    ]
    rows = []
    for images, own, before, note in pairs:
        for tail in _list_summaries(promotion.metrics, own):
            new, old = promotion.metrics.get(own + tail), promotion.metrics.get(before + tail)
            gain = signed(new - old) if new is not None and old is not None else "–"
            label = [describe_metric(f"val/{tail}"), tag("small", f" on {images}{', ' if note else ''}{note}")]
            cells = [tag("td", text) for text in (format_value(old), format_value(new), gain)]
            rows.append(tag("tr", tag("th", *label, scope="row"), *cells))
    headings = ("protocol and images", f"trial {promotion.trial}", "promoted", "difference")
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    said = tag("p", promotion.message, class_="note") if promotion.message else ""
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")
    return join([said, tag("div", table, class_="scroll"), write_stages(promotion.stages)])


def list_sources(findings: Findings) -> list[Source]:
    """Return the models whose scores are shown: the best trial on the holdout, the promoted one on val."""
    sources = []
    if findings.best is not None:
        height, width = findings.config.data.size
        ground = f"{findings.facts.num_holdout} images of held-out cities at {height} × {width} px"
        sources.append(Source(f"trial {findings.best.number}", ground, findings.best_metrics))
    promotion = findings.promotion
    if promotion is not None and promotion.metrics:
        height, width = promotion.size
        state = "promoted" if promotion.outcome == "complete" else "promotion so far"
        sources.append(Source(state, f"{promotion.ground} at {height} × {width} px", promotion.metrics))
    return sources


def _write_grounds(findings: Findings) -> Markup:
    """Say on which images, and at which size, each model was judged."""
    said = "; ".join(f"{source.name} on {source.ground}" for source in list_sources(findings))
    return tag("p", f"Judged: {said}.", class_="note")


def _list_summaries(metrics: Mapping[str, float], prefix: str) -> list[str]:
    """Return the summaries that are worth a row: the two means of masks, and those of other protocols."""
    wanted = ("coco/segm/ap", "coco/segm/ap50", "cityscapes/ap", "cityscapes/ap50", "semantic/miou")
    return [tail for tail in wanted if prefix + tail in metrics]


def _write_table(what: str, keys: Mapping[str, Markup], columns: list[Column]) -> Markup:
    top = max((score for column in columns for score in column.scores.values()), default=1.0) or 1.0
    headings = [tag("th", what, scope="col")]
    headings += [tag("th", column.heading, tag("small", f" {column.ground}"), scope="col") for column in columns]
    rows = []
    for name, key in keys.items():
        cells = [
            _write_score(column.scores.get(name), top, name, first=place == 0) for place, column in enumerate(columns)
        ]
        rows.append(tag("tr", tag("th", key, scope="row"), *cells))
    table = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *rows), class_="small-table scores")
    return tag("div", table, class_="scroll")


def _write_score(score: float | None, top: float, name: str, *, first: bool) -> Markup:
    """Return a cell; the first column's has a bar in the class's colour."""
    if not first or score is None:
        return tag("td", format_value(score))
    fill = tag("span", "", class_="fill", style=f"width:{100 * score / top:.2f}%{_write_color(name)}")
    return tag("td", tag("span", fill, class_="bar"), format_value(score), class_="with-bar")


def _write_class_key(name: str) -> Markup:
    return tag(
        "span", tag("i", "", class_="swatch", style=_write_color(name).lstrip(";") or None), name, class_="class-key"
    )


def _write_color(name: str) -> str:
    label = BY_NAME.get(name)
    return "" if label is None else ";background:rgb({},{},{})".format(*label.color)
