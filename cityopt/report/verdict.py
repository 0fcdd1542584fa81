"""The top of the report: what came out, in two sentences, what it cost, and the numbers behind them."""

import time
from dataclasses import dataclass

from cityopt.report.findings import Findings, TrialRecord
from cityopt.report.markup import Markup, last_part, scalar, signed, tag
from cityopt.report.protocols import describe_metric
from cityopt.report.tables import format_seconds, format_value


@dataclass(frozen=True)
class Verdict:
    """`headline` says what is best, `detail` what it beat and what that cost."""

    headline: str
    detail: str


def reach_verdict(findings: Findings) -> Verdict:
    """Return the two sentences for a study in any state."""
    best = findings.best
    if best is not None:
        return Verdict(
            _praise(findings, best), f"{_compare(findings, best)}, {describe_ground(findings)}; {_tell_cost(findings)}."
        )
    if not findings.num_ended:
        return Verdict("No trial has ended yet.", _tell_next(findings))
    return Verdict(_tell_failures(findings), f"So far {_tell_cost(findings)}. {_tell_next(findings)}")


def write_head(findings: Findings) -> Markup:
    """Return the page's header: study, verdict, state and key figures."""
    verdict = reach_verdict(findings)
    made = time.strftime("%Y-%m-%d\u00a0%H:%M\u00a0UTC", time.gmtime(findings.made_at))
    dot = tag("span", "", class_="dot")
    return tag(
        "header",
        tag("p", "cityopt report · ", tag("strong", findings.config.name), class_="eyebrow"),
        tag("h1", verdict.headline),
        tag("p", verdict.detail, class_="lead"),
        _write_promotion(findings),
        tag("p", dot, describe_state(findings), f" Made {made}.", class_=_state_class(findings)),
        tag("dl", *_list_figures(findings), class_="figures"),
    )


def describe_state(findings: Findings) -> str:
    """Return how far the study is, as a sentence."""
    ended, asked = findings.num_ended, findings.num_asked
    if findings.is_live:
        return f"At work: {ended} of {asked} trials have ended; this page shows the state so far."
    if ended < asked:
        return f"Stopped after {ended} of {asked} trials; the same command goes on."
    return f"Finished: all {ended} trials have ended." if ended != 1 else "Finished: its one trial has ended."


def describe_ground(findings: Findings) -> str:
    """Return where the objective is measured: size and images."""
    height, width = findings.config.data.size
    if findings.config.search.metric.startswith("train/"):
        return f"at {height} × {width} px on {findings.facts.num_subset} training images"
    return f"at {height} × {width} px on {findings.facts.num_holdout} images of held-out cities"


def format_setting_list(trial: TrialRecord) -> str:
    """Return a trial's settings in one line."""
    settings = trial.status.params.items()
    return ", ".join(f"{last_part(key)} {scalar(value)}" for key, value in settings) or "the study's own settings"


def name_time(findings: Findings) -> str:
    """Return what the time that trainings took is called; it is wall time either way."""
    return "GPU time" if findings.on_gpu else "training time"


def _praise(findings: Findings, best: TrialRecord) -> str:
    so_far = "So far trial" if findings.is_live or findings.num_ended < findings.config.search.trials else "Trial"
    score = f"{describe_metric(findings.config.search.metric)} {format_value(best.status.value)}"
    return f"{so_far} {best.number} is best: {score} with {format_setting_list(best)}."


def _compare(findings: Findings, best: TrialRecord) -> str:
    """Say what the best trial beat: the baseline, else the first trial."""
    first = findings.trials[0]
    what = "the baseline" if findings.baseline else "the first one"
    if len(findings.trials) == 1:
        return "It is the only trial, with nothing to compare it to, judged"
    if best is first:
        return f"It is {what}, and no other trial beat it"
    if first.status.value is None:
        end = f"{first.status.state} ({first.status.reason})" if first.status.reason else first.status.state
        return f"Trial 0, {what}, has no score to compare with ({end}); trial {best.number} was judged"
    gain = _measure_gain(findings, best, first.status.value)
    pruned, score = first.status.state == "pruned", format_value(first.status.value)
    if gain <= 0:  # only complete trials are ranked
        end = " before it was pruned" if pruned else ""
        return f"Trial 0, {what}, had reached {score}{end}; trial {best.number} was judged"
    return f"It beats trial 0, {what} ({score}{', pruned' if pruned else ''}), by {gain:.4f}"


def _measure_gain(findings: Findings, best: TrialRecord, other: float) -> float:
    """Return by how much the best trial is better than a score: negative if it is worse, whatever the direction."""
    difference = (best.status.value or 0.0) - other
    return difference if findings.config.search.direction == "maximize" else -difference


def _tell_cost(findings: Findings) -> str:
    total = sum(trial.seconds for trial in findings.trials)
    lost = [
        f"{round(100 * seconds / total)} % of it {state}"
        for state in ("pruned", "failed")
        if total and (seconds := sum(t.seconds for t in findings.trials if t.status.state == state))
    ]
    count = findings.num_begun
    trials = "1 trial" if count == 1 else f"{count} trials"
    return f"{trials} took {format_seconds(total)} of {name_time(findings)}" + "".join(f", {part}" for part in lost)


def _tell_failures(findings: Findings) -> str:
    counts = findings.status.counts
    ended = [f"{counts[state]} {state}" for state in ("pruned", "failed") if counts[state]]
    num = findings.num_ended
    whose = (
        "The one trial that ended is not complete" if num == 1 else f"None of the {num} trials that ended is complete"
    )
    return f"{whose}: {', '.join(ended)}."


def _tell_next(findings: Findings) -> str:
    if findings.is_live:
        return "Make the report again later for more."
    return f"Go on with: cityopt sweep --study {findings.config.name}."


def _write_promotion(findings: Findings) -> Markup:
    promotion = findings.promotion
    if promotion is None:
        return Markup("")
    metric = findings.config.search.metric
    own, before = promotion.metrics.get(metric), promotion.metrics.get(f"trial/{metric}")
    if promotion.outcome != "complete" or own is None:
        done = promotion.records[-1].step if promotion.records else 0
        state = "failed" if promotion.outcome == "failed" else "is not finished"
        text = f"The promotion of trial {promotion.trial} {state} after {done} of {promotion.epochs} epochs."
    else:
        where = f" on {promotion.ground}" if metric.startswith("val/") else ""
        reached = f"{describe_metric(metric)} {own:.4f}{where}"
        text = f"Trained in full, trial {promotion.trial}’s settings reach {reached}"
        text += f"; the trial’s own model reaches {before:.4f} there." if before is not None else "."
    return tag("p", text, class_="lead")


def _list_figures(findings: Findings) -> list[Markup]:
    best, metric = findings.best, describe_metric(findings.config.search.metric)
    figures = [_write_figure(metric, format_value(best.status.value if best else None), "best complete trial")]
    first = findings.trials[0].status if findings.trials else None
    if best is not None and first is not None and first.value is not None and best.number != 0:
        better = _measure_gain(findings, best, first.value) > 0
        what = "trial 0, the baseline" if findings.baseline else "trial 0"
        difference = signed((best.status.value or 0.0) - first.value)
        figures.append(_write_figure("Gain" if better else "Difference", difference, f"over {what}"))
    counts = ", ".join(f"{count} {state}" for state, count in findings.status.counts.items() if count)
    figures.append(_write_figure("Trials", str(findings.num_begun), counts or "none yet"))
    total = sum(trial.seconds for trial in findings.trials)
    figures.append(_write_figure(name_time(findings), format_seconds(total), "all trials together"))
    if findings.promotion is not None and findings.promotion.outcome == "complete":
        name = findings.config.search.metric
        place = findings.promotion.ground if name.startswith("val/") else "all training images"
        figures.append(_write_figure(f"{metric}, promoted", format_value(findings.promotion.metrics.get(name)), place))
    return figures


def _write_figure(name: str, value: str, note: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", note)))


def _state_class(findings: Findings) -> str:
    if findings.is_live:
        return "state live"
    return "state" if findings.best is not None else "state bad"
