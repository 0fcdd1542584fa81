"""What a sampler sees of a long study: some of its trials, so that the 10,000th proposal costs what the 1,000th does.

TPE models every trial that it sees, for each proposal anew. It looks for what sets the best 25 apart from the rest, and
counts old trials of the rest for little, so that it loses next to nothing by seeing, of very many trials,

- the best tenth of `size`,
- the latest tenth of those that say where not to go (NaN, out of memory),
- of the others the latest.

What is chosen depends on the trials alone, not on who asked before: a resumed study proposes as an undisturbed one.
"""

from collections.abc import Container, Sequence
from heapq import nsmallest
from typing import Any

from optuna import Study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_SEEN = (TrialState.COMPLETE, TrialState.PRUNED)


class History:
    """Chooses among a study's trials. It remembers the best of the long past, whose trials all have ended."""

    def __init__(self, size: int) -> None:
        self.size, self._num_kept = size, max(size // 10, 1)
        self._num_past = 0
        self._best: list[tuple[float, int]] = []
        self._bad: list[int] = []

    def view(self, study: Study) -> Study:
        """Return a study as the sampler is to see it: itself, while it has few trials."""
        trials = study._get_trials(deepcopy=False, use_cache=True)
        if len(trials) <= self.size:
            return study
        return StudyView(study, self.choose(trials, maximize=study.direction == StudyDirection.MAXIMIZE))  # type: ignore[return-value]

    def choose(self, trials: Sequence[FrozenTrial], *, maximize: bool) -> list[FrozenTrial]:
        """Return the trials to see, by number: `trials` are all of a study's, by number from 0."""
        self._learn_past(trials, -1.0 if maximize else 1.0)
        recent = trials[self._num_past :]
        sign = -1.0 if maximize else 1.0
        best = nsmallest(self._num_kept, [*self._best, *_rank(recent, sign)])
        bad = [*self._bad, *(trial.number for trial in recent if _is_bad(trial))]
        chosen = {number for _, number in best} | set(bad[-self._num_kept :])
        chosen |= {trial.number for trial in recent if trial.state == TrialState.RUNNING}
        for trial in reversed(trials):
            if len(chosen) >= self.size:
                break
            if trial.state in _SEEN:
                chosen.add(trial.number)
        return [trials[number] for number in sorted(chosen)]

    def _learn_past(self, trials: Sequence[FrozenTrial], sign: float) -> None:
        """Move on to the first trial that has not ended; what lies before it never changes again."""
        begin = self._num_past
        while self._num_past < len(trials) and trials[self._num_past].state.is_finished():
            self._num_past += 1
        new = trials[begin : self._num_past]
        self._best = nsmallest(self._num_kept, [*self._best, *_rank(new, sign)])
        self._bad = [*self._bad, *(trial.number for trial in new if _is_bad(trial))][-self._num_kept :]


class StudyView:
    """A study with some of its trials, for a sampler; all else is the study's own."""

    def __init__(self, study: Study, trials: list[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)


def _rank(trials: Sequence[FrozenTrial], sign: float) -> list[tuple[float, int]]:
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and not _is_bad(trial)]
    return [(sign * float(trial.value or 0.0), trial.number) for trial in complete]


def _is_bad(trial: FrozenTrial) -> bool:
    """Say whether a trial violates a constraint."""
    return any(amount > 0.0 for amount in trial.constraints.values())
