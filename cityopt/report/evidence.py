"""Why this one: in the report, who competed for the promotion, what their seeds say, and what the gate said."""

from cityopt.report.axes import fit_axis
from cityopt.report.charts import Kind, Mark, draw_scatter, inner_span
from cityopt.report.finalist_table import describe_ranks
from cityopt.report.findings import Findings
from cityopt.report.markup import Markup, join, last_part, scalar, tag
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_seconds, format_value
from cityopt.search.evidence import CHEAPER, LEVEL
from cityopt.search.finalist_result import Finalist, Finalists


def write_evidence(findings: Findings) -> Markup | None:
    """Return the finalists with their intervals, the rank plot, the verdict and the gate's; None without finalists."""
    found = findings.finalists
    if found is None:
        return None
    lines = [tag("p", line, class_="note") for line in describe_ranks(found)]
    promotion = findings.promotion
    is_theirs = promotion is not None and promotion.finalists == found.name and promotion.outcome == "complete"
    gate = promotion.message if promotion and is_theirs else ""
    return join(
        [
            tag("p", found.reason),
            _write_table(found),
            tag("p", f"{_describe_method(found)}{_list_dropped(found)}", class_="note"),
            tag("h3", "Does the subset rank as more data does?"),
            tag("p", found.trust.sentence),
            _draw_ranks(found),
            *lines,
            *([tag("h3", "The gate"), tag("p", gate)] if gate else []),
        ]
    )


def _write_table(found: Finalists) -> Markup:
    headings = ("finalist", "on the subset", "mean", f"{LEVEL:.0%} interval".replace("%", " %"), "seeds", "device time")
    sign = -1.0 if found.direction == "maximize" else 1.0
    rows = []
    for it in sorted(found.entrants, key=lambda it: sign * found.interval_of(it).mean):
        interval = found.interval_of(it)
        bounds = "–" if interval.low is None else f"{interval.low:.4f} … {format_value(interval.high)}"
        texts = (
            format_value(it.subset_score),
            format_value(interval.mean),
            bounds,
            " ".join(map(format_value, it.scores)),
            format_seconds(it.cost.typical),
        )
        name = tag("th", f"{it.name} ", tag("small", _describe_place(found, it)), scope="row")
        rows.append(tag("tr", name, *(tag("td", text) for text in texts)))
    head = tag("tr", *(tag("th", heading, scope="col") for heading in headings))
    table = tag("table", tag("thead", head), tag("tbody", *rows), class_="small-table scores")
    return tag("div", table, class_="scroll")


def _describe_place(found: Finalists, it: Finalist) -> str:
    """Return what a finalist is: winner, standard recipe, tied, and its settings or what rules made of them."""
    roles = ["wins"] if it == found.winner else []
    roles += ["the standard recipe"] if it.trial == found.baseline and not it.rescaled else []
    roles += ["ties"] if found.entrants.index(it) in found.decision.tied else []
    roles += it.rescaled or [f"{last_part(key)} {scalar(value)}" for key, value in it.settings.items()]
    return ", ".join(roles)


def _describe_method(found: Finalists) -> str:
    return (
        f"{found.name}, {describe_metric(found.metric)}, {found.note}, judged on the trials’ holdout. Intervals are "
        "Student’s with one variance for all finalists; the winner has the best bound of its mean, and ties go to one "
        f"that takes {1 - CHEAPER:.0%} less time."
    ).replace("%", " %")


def _list_dropped(found: Finalists) -> str:
    return "".join(f" {it.name} is out: {it.failure}." for it in found.dropped)


def _draw_ranks(found: Finalists) -> Markup:
    """Draw each finalist's mean on more data, with its interval, against its trial's score on the subset."""
    known = [(it, it.subset_score) for it in found.entrants if it.subset_score is not None]
    if not known:
        return tag("p", "No finalist has a complete trial to compare with.", class_="empty")
    axis = fit_axis([score for _, score in known], *inner_span())
    marks = []
    for it, score in known:
        interval = found.interval_of(it)
        kind: Kind = "best" if it == found.winner else "baseline" if it.trial == found.baseline else "complete"
        span = None if interval.low is None or interval.high is None else (interval.low, interval.high)
        tip = f"{it.name}: {score:.4f} on the subset, {interval.mean:.4f} on more data"
        marks.append(Mark(it.trial, kind, axis.place(score), interval.mean, tip, span))
    label = describe_metric(found.metric)
    title = f"{label} of finalists on more data, with intervals, against their trials' on the subset"
    return tag("figure", draw_scatter(marks, axis, x_label="on the subset", y_label=f"{label}, more data", title=title))
