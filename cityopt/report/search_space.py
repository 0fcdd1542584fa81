"""The searched settings in the report: which of them mattered, and the score against each."""

from cityopt.dimension import Dimension
from cityopt.report.axes import build_setting_axis, place_setting
from cityopt.report.charts import Mark, draw_scatter, inner_span
from cityopt.report.findings import Findings
from cityopt.report.importance import BEST_SHARE
from cityopt.report.markup import Markup, join, last_part, tag
from cityopt.report.protocols import describe_metric
from cityopt.report.trials import kind_of, write_tip


def write_importance(findings: Findings) -> Markup:
    """Return one bar per setting, or the reason why nothing can be said."""
    importance = findings.importance
    if not importance.shares:
        return tag("p", f"Not to be told: {importance.reason}.", class_="empty")
    largest = max(importance.shares.values())
    rows = [
        tag(
            "div",
            tag("span", last_part(key), class_="bar-name", title=key),
            tag("span", tag("span", "", class_="fill", style=f"width:{100 * share / largest:.2f}%"), class_="bar"),
            tag("span", f"{100 * share:.0f} %", class_="bar-value"),
            class_="bar-row",
        )
        for key, share in importance.shares.items()
    ]
    note = (
        f"Share of each setting in what tells the best {BEST_SHARE:.0%} of {importance.num_trials} trials with a score "
        "apart from all of them (PED-ANOVA)."
    ).replace("%", " %")
    return join([tag("p", note, class_="note"), tag("div", *rows, class_="bars")])


def write_scatters(findings: Findings) -> Markup:
    """Return one chart per searched setting: every trial's score against its value."""
    space = findings.config.search.space
    if space and not findings.trials:
        return tag("p", "No trial has begun yet.", class_="empty")
    drawn = [_write_scatter(findings, key, dimension) for key, dimension in space.items()]
    if not space:
        return tag("p", "This study searches no setting.", class_="empty")
    return tag("div", *drawn, class_="small-charts")


def _write_scatter(findings: Findings, key: str, dimension: Dimension) -> Markup:
    axis = build_setting_axis(dimension, *inner_span())
    marks = []
    for trial in findings.trials:
        value = trial.status.params.get(key)
        x_px = None if value is None else place_setting(axis, dimension, value)
        if x_px is not None:
            tip = write_tip(findings, trial)
            marks.append(Mark(trial.number, kind_of(findings, trial), x_px, trial.status.value, tip))
    label = describe_metric(findings.status.metric)
    title = f"{label} against {last_part(key)}, one point per trial"
    chart = draw_scatter(marks, axis, x_label=last_part(key), y_label=label, title=title)
    condition = ", ".join(f"{last_part(other)} = {wanted}" for other, wanted in dimension.when.items())
    caption = tag("figcaption", f"Searched where {condition}.") if condition else ""
    return tag("figure", chart, caption)
