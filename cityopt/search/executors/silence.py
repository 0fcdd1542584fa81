"""How long a worker may say nothing before it counts as hung.

A training tells of each step and each validated image, so the longest silence that ended well says how fast this
study is on this device. Only time in which somebody listened counts: a machine or a coordinator that was suspended
holds nothing against a worker.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HangRule:
    """The limit is `factor` times the longest silence that ended well, and at least `limit_s`."""

    limit_s: float = 120.0
    factor: float = 10.0


class SilenceMeter:
    """Measures the silences of all workers of an executor."""

    def __init__(self, rule: HangRule) -> None:
        """Begin with no knowledge of how fast anything is."""
        self._rule = rule
        self._longest_s = 0.0

    def learn(self, silence_s: float) -> None:
        """Take a silence that ended with a message."""
        self._longest_s = max(self._longest_s, silence_s)

    def find_limit(self, *, has_epoch: bool) -> float:
        """Return the seconds of silence that nobody survives; `has_epoch`: the job has finished one in this worker.

        Before that, images may be decoded at a size of its own, and a step may take minutes.
        """
        longest_s = self._longest_s if has_epoch else max(self._longest_s, self._rule.limit_s)
        return max(self._rule.limit_s, self._rule.factor * longest_s)
