"""The trials in the report: leaderboard, learning curves, device time by outcome, reasons of failures."""

from collections.abc import Sequence
from itertools import groupby

from cityopt.report.charts import Kind, Line, draw_curves
from cityopt.report.findings import Findings, TrialRecord
from cityopt.report.markup import Markup, join, last_part, scalar, tag, void
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_seconds, format_value
from cityopt.report.verdict import describe_ground, format_setting_list, name_time

WIDE_PX, NARROW_PX = (980, 380), (344, 300)
_MAX_CURVES = 300
"""Beyond, only the best trials' curves are drawn: nobody tells a thousand lines apart."""
_STATES = ("complete", "pruned", "failed", "running", "waiting")


def write_leaderboard(findings: Findings) -> Markup:
    """Return the table of all trials, the best first; the script sorts it and hides the tail."""
    if not findings.trials:
        return tag("p", "No trial has begun yet.", class_="empty")
    keys = list(dict.fromkeys(key for trial in findings.trials for key in trial.status.params))
    headings = ["trial", "outcome", "score", *(last_part(key) for key in keys), "epochs", "time"]
    cells = [
        tag("th", tag("button", heading, type="button"), scope="col", title=key, class_=_cell_class(heading))
        for heading, key in zip(headings, [None, None, findings.status.metric, *keys, None, None], strict=True)
    ]
    rows = [_write_row(findings, findings.trials[status.number], keys) for status in findings.status.ranked]
    table = tag("table", tag("thead", tag("tr", *cells)), tag("tbody", *rows), class_="leaderboard sortable")
    note = (
        f"Score: {describe_metric(findings.status.metric)} {describe_ground(findings)}, at each trial’s best epoch. "
        "A pruned trial shows the best it had reached. Click a heading to sort, a row to follow it through the charts."
    )
    return join([tag("p", note, class_="note"), table])


def write_curves(findings: Findings) -> Markup:
    """Return the learning curves of the objective and, behind tabs, of AP50 and of the training loss."""
    metrics = [name for name in _list_curve_metrics(findings) if any(t.curve(name) for t in findings.trials)]
    if not metrics:
        return tag("p", "No epoch has ended yet.", class_="empty")
    drawn = [status.number for status in findings.status.ranked][:_MAX_CURVES]
    panels = []
    for place, metric in enumerate(metrics):
        lines = [_build_line(findings, findings.trials[number], metric) for number in drawn]
        panels.append(_write_panel(place, metric, lines))
    tabs = [
        void("input", type="radio", name="curve", id=f"curve-{i}", checked="checked" if i == 0 else None)
        for i in range(len(metrics))
    ]
    labels = [tag("label", describe_metric(metric), for_=f"curve-{i}") for i, metric in enumerate(metrics)]
    note = f"Validation scores are measured {describe_ground(findings)}. " if len(metrics) > 1 else ""
    if len(findings.trials) > _MAX_CURVES:
        note += f"Drawn are the best {_MAX_CURVES} of {len(findings.trials)} trials."
    return join(
        [
            tag("p", note, class_="note") if note else "",
            tag("div", *tabs, tag("div", *labels, class_="tabs"), *panels, class_="tabbed"),
            _write_legend(findings),
        ]
    )


def write_device_time(findings: Findings) -> Markup:
    """Return how the device's time divides among outcomes, as one bar and a list."""
    total = sum(trial.seconds for trial in findings.trials)
    if not total:
        return tag("p", "No device time has been recorded yet.", class_="empty")
    spans, items = [], []
    for state in _STATES:
        trials = [trial for trial in findings.trials if trial.status.state == state]
        seconds = sum(trial.seconds for trial in trials)
        if not trials:
            continue
        share = 100 * seconds / total
        text = f"{len(trials)} {state}: {format_seconds(seconds)}, {share:.0f} %"
        if seconds:
            spans.append(tag("span", "", class_=f"part {state}", style=f"flex-grow:{share:.4f}", data_tip=text))
        figures = [tag("td", len(trials)), tag("td", format_seconds(seconds)), tag("td", f"{share:.0f} %")]
        items.append(tag("tr", tag("th", tag("i", "", class_=f"key {state}"), state, scope="row"), *figures))
    head = tag("tr", *(tag("th", name, scope="col") for name in ("outcome", "trials", name_time(findings), "share")))
    bar = tag("div", *spans, class_="stack", role="img", aria_label=f"{name_time(findings)} by outcome")
    return join([bar, tag("table", tag("thead", head), tag("tbody", *items), class_="small-table")])


def write_failures(findings: Findings) -> Markup:
    """Return the failed trials by reason with what each said."""
    failed = sorted(
        (trial for trial in findings.trials if trial.status.state == "failed"),
        key=lambda trial: (trial.status.reason or "", trial.number),
    )
    if not failed:
        return tag("p", "None failed.", class_="empty")
    groups = []
    for reason, members in groupby(failed, key=lambda trial: trial.status.reason or "unknown"):
        trials = list(members)
        count = "1 trial" if len(trials) == 1 else f"{len(trials)} trials"
        said = [
            tag(
                "li",
                tag("b", f"Trial {trial.number}"),
                ": ",
                trial.status.message or "said nothing",
                data_trial=trial.number,
            )
            for trial in trials
        ]
        groups.append(tag("div", tag("h4", tag("code", reason), f" {count}"), tag("ul", *said), class_="failure"))
    return join(groups)


def kind_of(findings: Findings, trial: TrialRecord) -> Kind:
    """Return how a trial is drawn."""
    if findings.best is not None and trial.number == findings.best.number:
        return "best"
    if findings.baseline is not None and trial.number == 0 and trial.status.value is not None:
        return "baseline"
    return trial.status.state


def write_tip(findings: Findings, trial: TrialRecord) -> str:
    """Return what a trial's points and lines say when pointed at."""
    status = trial.status
    state = f"{status.state} ({status.reason})" if status.reason else status.state
    return f"Trial {trial.number}, {state}, {format_value(status.value)}\n{format_setting_list(trial)}"


def _write_row(findings: Findings, trial: TrialRecord, keys: Sequence[str]) -> Markup:
    status, kind = trial.status, kind_of(findings, trial)
    name = "baseline" if findings.baseline is not None and trial.number == 0 else ""
    chip = tag("span", status.state, class_=f"chip {status.state}")
    reason = tag("span", f" {status.reason}", class_="why") if status.reason else ""
    label = "best" if kind == "best" else name
    badge = tag("span", label, class_=f"badge {label}") if label else ""
    epochs = max((record.step for record in trial.records), default=0)
    settings = [_write_setting(key, status.params.get(key)) for key in keys]
    return tag(
        "tr",
        tag("td", tag("b", trial.number), " ", badge, class_="trial", data_sort=trial.number),
        tag("td", chip, reason, class_="outcome", data_sort=_STATES.index(status.state)),
        tag("td", format_value(status.value), class_="score", data_sort="" if status.value is None else status.value),
        *settings,
        tag("td", epochs, class_="epochs", data_sort=epochs, data_label="epochs"),
        tag("td", format_seconds(trial.seconds), class_="time", data_sort=f"{trial.seconds:.1f}", data_label="time"),
        class_=kind,
        data_trial=trial.number,
    )


def _write_setting(key: str, value: object) -> Markup:
    text = "" if value is None else scalar(value)
    return tag("td", text, class_="setting", data_sort="" if value is None else value, data_label=last_part(key))


def _cell_class(heading: str) -> str | None:
    return heading if heading in ("trial", "outcome", "score", "epochs", "time") else None


def _list_curve_metrics(findings: Findings) -> list[str]:
    objective = findings.status.metric
    usual = {"instance": ["val/coco/segm/ap", "val/coco/segm/ap50"], "semantic": ["val/semantic/miou"]}
    return list(dict.fromkeys([objective, *usual[findings.config.model.task], "train/loss/total"]))[:3]


def _build_line(findings: Findings, trial: TrialRecord, metric: str) -> Line:
    kind = kind_of(findings, trial)
    label = f"{trial.number} best" if kind == "best" else "0 baseline" if kind == "baseline" else ""
    return Line(trial.number, kind, trial.curve(metric), write_tip(findings, trial), label)


def _write_panel(place: int, metric: str, lines: Sequence[Line]) -> Markup:
    label = describe_metric(metric)
    title = f"{label} by epoch, one line per trial"
    charts = [
        tag("div", draw_curves(lines, width=width, height=height, y_label=label, title=title), class_=name)
        for name, (width, height) in (("wide", WIDE_PX), ("narrow", NARROW_PX))
    ]
    return tag("div", *charts, class_=f"panel panel-{place}")


def _write_legend(findings: Findings) -> Markup:
    present = {kind_of(findings, trial) for trial in findings.trials}
    items = [
        tag("li", tag("i", "", class_=f"key {kind}"), kind)
        for kind in ("best", "baseline", *_STATES)
        if kind in present
    ]
    return tag("ul", *items, class_="legend")
