"""Where memory ended: which of the tried settings fitted the device and which did not, with what they needed.

What decides is how many images go through the network at once, their size, and what is searched of the model. A trial
that ran out of memory and went on in smaller pieces counts on both sides of the edge.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cityopt.errors import ConfigError
from cityopt.report.findings import Findings, TrialRecord
from cityopt.report.markup import Markup, tag
from cityopt.search.micro_batches import ACCUMULATION
from cityopt.study_file import settle_training

OOM = "oom"
_PEAKS = ("system/gpu_memory_gib", "system/rss_gib")


@dataclass
class Side:
    """The attempts at some settings that ended alike."""

    count: int = 0
    peaks: list[float] = field(default_factory=list)

    def add(self, peak_gib: float | None) -> None:
        """Take an attempt; its peak may not be known."""
        self.count += 1
        self.peaks += [] if peak_gib is None else [peak_gib]

    def describe(self) -> str:
        """Return the number of attempts, and the most that one needed."""
        return f"{self.count} (up to {max(self.peaks):.2f} GiB)" if self.peaks else str(self.count or "–")


def write_memory_edge(findings: Findings) -> Markup | None:
    """Return a table of settings, the heaviest first; None where memory never ended."""
    trials = [trial for trial in findings.trials if trial.status.state in ("complete", "pruned", "failed")]
    if not any(trial.status.reason == OOM or trial.status.accumulation for trial in trials):
        return None
    rows: dict[tuple[str, ...], tuple[Side, Side]] = {}
    weights: dict[tuple[str, ...], float] = {}
    for trial in trials:
        for weight, settings, fits, peak in _list_attempts(trial, findings):
            weights[settings] = weight
            rows.setdefault(settings, (Side(), Side()))[0 if fits else 1].add(peak)
    names = ["images at once", "size", *_searched(findings), "fitted", "ran out of memory"]
    head = tag("tr", *(tag("th", name, scope="col") for name in names))
    body = [
        tag("tr", *(tag("td", text) for text in (*settings, *(side.describe() for side in rows[settings]))))
        for settings in sorted(rows, key=lambda settings: (-weights[settings], settings))
    ]
    return tag("table", tag("thead", head), tag("tbody", *body), class_="small-table")


def _list_attempts(
    trial: TrialRecord, findings: Findings
) -> Iterator[tuple[float, tuple[str, ...], bool, float | None]]:
    """Return weight, settings, whether they fitted and the peak of a trial's attempts that tell something."""
    status = trial.status
    if status.accumulation is not None:
        yield *_describe(findings, status.params), False, status.oom_peak_gib
    own = status.params if status.accumulation is None else {**status.params, ACCUMULATION: status.accumulation}
    if status.reason == OOM:
        yield *_describe(findings, own), False, None
    elif trial.records:
        yield *_describe(findings, own), True, _find_peak(trial)


def _describe(findings: Findings, params: Mapping[str, Any]) -> tuple[float, tuple[str, ...]]:
    try:
        config = settle_training(findings.config, params)
    except ConfigError:  # of an older version, which had other settings
        return 0.0, ("?", "?", *("?" for _ in _searched(findings)))
    images = config.training.batch_size // config.training.accumulation
    height, width = config.data.size
    searched = (str(params.get(key, "")) for key in _searched(findings))
    return float(images * height * width), (str(images), f"{height} x {width}", *searched)


def _searched(findings: Findings) -> list[str]:
    return [key for key in findings.config.search.space if key.startswith("model.")]


def _find_peak(trial: TrialRecord) -> float | None:
    for name in _PEAKS:
        if curve := trial.curve(name):
            return max(value for _, value in curve)
    return None
