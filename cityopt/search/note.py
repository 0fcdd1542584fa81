"""A study in Markdown, as the description of its run in MLflow: whoever opens the run reads the leaderboard first."""

import html
import time
from urllib.parse import quote, urlencode

from cityopt.dimension import Scalar
from cityopt.search.status import StudyStatus, TrialStatus

MAX_TRIALS = 15
"""MLflow keeps a description of some thousand characters."""
_INTERVAL_S = 5.0
_MARKUP = str.maketrans({char: f"\\{char}" for char in "\\`*_[]|#~"})


class NoteClock:
    """Says when a description is due again: after each trial, but not several times in a few seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def is_due(self) -> bool:
        """Say whether some seconds have gone by since this said so last."""
        now = time.monotonic()
        if now - self._last < _INTERVAL_S:
            return False
        self._last = now
        return True


def describe_study(status: StudyStatus, experiment_id: str) -> str:
    """Return a study's standing and leaderboard; trials link to their runs of the experiment."""
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items() if count) or "no trial yet"
    lines = [f"**{_escape(status.study)}**: {counts}.", ""]
    if status.best is not None and status.best.value is not None:
        settings = ", ".join(f"{_name(key)} {_format(value)}" for key, value in status.best.params.items())
        lines += [f"Best is trial {status.best.number} with {settings or 'the settings of the study'}:"]
        lines += [
            f"`{status.metric}` **{status.best.value:.4f}**. The whole story: `report.html` among the artifacts.",
            "",
        ]
    if status.trials:
        table, charts = link_trials(status, experiment_id)
        lines += [f"[All trials by score]({table}) · [Their curves side by side]({charts})", ""]
        lines += _list_trials(status, experiment_id)
    return "\n".join(lines)


def link_trials(status: StudyStatus, experiment_id: str) -> tuple[str, str]:
    """Return the addresses, within MLflow, of the trials as a table and as charts.

    MLflow folds trials under their study's run as long as it sorts by time; sorted by score they stand side by side.
    """
    query = {
        "searchFilter": "tags.`cityopt.kind` = 'trial'",
        "orderByKey": f"metrics.`{status.metric}`",
        "orderByAsc": "false" if status.direction == "maximize" else "true",
    }
    table = f"#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"
    return table, f"{table}&compareRunsMode=CHART"


def _list_trials(status: StudyStatus, experiment_id: str) -> list[str]:
    keys = list(dict.fromkeys(key for trial in status.trials for key in trial.params))
    lines = [_row(["trial", "outcome", f"`{status.metric}`", *map(_name, keys)])]
    lines += [_row([":--", ":--", "--:", *("--:" for _ in keys)])]
    for trial in status.ranked[:MAX_TRIALS]:
        value = "–" if trial.value is None else f"{trial.value:.4f}"
        settings = [_format(trial.params[key]) if key in trial.params else "" for key in keys]
        lines.append(_row([_link(trial, experiment_id), _state(trial), value, *settings]))
    if len(status.trials) > MAX_TRIALS:
        lines += ["", f"and {len(status.trials) - MAX_TRIALS} more."]
    return lines


def _link(trial: TrialStatus, experiment_id: str) -> str:
    return f"[{trial.number}](#/experiments/{experiment_id}/runs/{trial.run_id})" if trial.run_id else str(trial.number)


def _state(trial: TrialStatus) -> str:
    return _escape(f"{trial.state} ({trial.reason})" if trial.reason else trial.state)


def _format(value: Scalar) -> str:
    return _escape(f"{value:.3g}" if isinstance(value, float) else str(value))


def _name(key: str) -> str:
    return _escape(key.rsplit(".", 1)[-1])


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    return html.escape(" ".join(text.split()), quote=False).translate(_MARKUP)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
