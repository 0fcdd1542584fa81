"""Pruners: Optuna's own where they only read, and successive halving that only reads.

Optuna's successive halving writes down each rung that a trial passed and asks differently the
second time. A coordinator that dies between the question and the pruning would then let the trial
go on. Here the decision is a pure function of the reported values: asked again, it is the same.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), algorithm 2;
Li et al., "Hyperband", algorithm 1, for the shares of the brackets.
"""

import math
from collections.abc import Mapping, Sequence

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

from cityopt.search_config import PrunerConfig


class RungPruner(BasePruner):
    """Asynchronous successive halving in one bracket (ASHA) or several (Hyperband).

    Bracket b has its rungs at `min_epochs * factor ** (b + i)`, i = 0, 1, …, below `max_epochs`. A trial goes on
    past a rung when its value is among the best 1 / factor of all values reported there in its bracket;
    while fewer than `factor` are known, only the best goes on. A trial's bracket follows from its number.
    """

    def __init__(self, min_epochs: int, max_epochs: int, factor: int, *, brackets: bool) -> None:
        self.min_epochs, self.factor = min_epochs, factor
        highest = int(math.log(max_epochs / min_epochs, factor) + 1e-9)
        num_brackets = highest + 1 if brackets else 1
        self.shares = [math.ceil(num_brackets * factor**s / (s + 1)) for s in reversed(range(num_brackets))]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Say whether a trial that just reported is stopped at its last epoch."""
        if trial.last_step is None or not self.is_rung(self.bracket_of(trial.number), trial.last_step):
            return False
        curves = {other.number: other.intermediate_values for other in study.get_trials(deepcopy=False)}
        maximize = study.direction == optuna.study.StudyDirection.MAXIMIZE
        return self.stops(trial.number, trial.last_step, curves, maximize=maximize)

    def stops(self, number: int, epoch: int, curves: Mapping[int, Mapping[int, float]], *, maximize: bool) -> bool:
        """Say whether a trial is stopped at an epoch that it reported, given what every trial reported by then."""
        bracket = self.bracket_of(number)
        if not self.is_rung(bracket, epoch):
            return False
        value = curves[number][epoch]
        if math.isnan(value):
            return True
        rivals = [
            curve[epoch]
            for other, curve in curves.items()
            if other != number and not math.isnan(curve.get(epoch, math.nan)) and self.bracket_of(other) == bracket
        ]
        return not self._goes_on(value, rivals, maximize)

    def is_rung(self, bracket: int, epoch: int) -> bool:
        """Say whether a bracket decides at an epoch."""
        step = self.min_epochs * self.factor**bracket
        while step < epoch:
            step *= self.factor
        return bool(step == epoch)

    def bracket_of(self, number: int) -> int:
        """Return the bracket of a trial: brackets take turns in proportion to their shares, the strictest first."""
        place = number % sum(self.shares)
        for bracket, share in enumerate(self.shares):
            place -= share
            if place < 0:
                return bracket
        raise AssertionError("the shares add up to their sum")

    def _goes_on(self, value: float, rivals: Sequence[float], maximize: bool) -> bool:
        values = sorted([*rivals, value], reverse=maximize)
        last = values[max(len(values) // self.factor - 1, 0)]
        return value >= last if maximize else value <= last


def build_pruner(config: PrunerConfig, max_epochs: int) -> BasePruner:
    """Return the pruner of a study whose trials have `max_epochs` epochs."""
    if config.name == "none":
        return NopPruner()
    if config.name == "median":
        return MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=config.min_epochs)
    return RungPruner(config.min_epochs, max_epochs, config.reduction_factor, brackets=config.name == "hyperband")
