"""Failures in a row: they stop a study before it burns hours, and it says what they have in common."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cityopt.dimension import Scalar
from cityopt.errors import StudyError
from cityopt.tracking.run_folder import Status

Settings = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed trial."""

    number: int
    settings: Settings
    reason: str
    message: str


class FailureStreak:
    """Counts failures in a row. `limit` None never stops a study."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._failures: list[Failure] = []
        self._good: list[Settings] = []

    def take(self, number: int, settings: Settings, status: Status) -> None:
        """Take the end of a trial. Raises StudyError: too many failed in a row."""
        if status.outcome != "failed":
            self._failures.clear()
            self._good.append(settings)
            return
        self._failures.append(Failure(number, settings, status.reason, status.message))
        if self._limit is not None and len(self._failures) >= self._limit:
            raise StudyError(
                f"{len(self._failures)} trials failed in a row (search.max_failures), and the study stops.\n"
                + "\n".join(f"  {line}" for line in describe_common(self._failures, self._good))
                + "\nMend it and give the same command to go on; `cityopt retry` tries their settings again."
            )


def describe_common(failures: Sequence[Failure], good: Sequence[Settings]) -> list[str]:
    """Say what failures have in common: reasons, words, settings, and ranges in which no trial of `good` lies."""
    reasons = Counter(failure.reason for failure in failures)
    lines = ["reasons: " + ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())]
    words = {re.sub(r"[\d.]+", "#", failure.message) for failure in failures}
    lines.append(f"{'all said' if len(words) == 1 else 'the last one said'}: {failures[-1].message}")
    keys = [key for key in failures[0].settings if all(key in failure.settings for failure in failures)]
    for key in keys:
        text = _describe_setting([failure.settings[key] for failure in failures], [s[key] for s in good if key in s])
        lines += [f"{key} {text}"] if text else []
    return lines


def _describe_setting(bad: list[Scalar], good: list[Scalar]) -> str:
    if len(set(bad)) == 1:
        return f"= {bad[0]!r} in all of them" if len(bad) > 1 and set(good) != set(bad) else ""
    numbers = [value for value in (*bad, *good) if isinstance(value, int | float) and not isinstance(value, bool)]
    if not good or len(numbers) < len(bad) + len(good):
        return ""
    low, high = min(numbers[: len(bad)]), max(numbers[: len(bad)])
    best, worst = max(numbers[len(bad) :]), min(numbers[len(bad) :])
    if low > best:
        return f">= {low:.3g} in all of them, and <= {best:.3g} in those that did not fail"
    if high < worst:
        return f"<= {high:.3g} in all of them, and >= {worst:.3g} in those that did not fail"
    return ""
