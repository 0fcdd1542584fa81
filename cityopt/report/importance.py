"""Which searched settings mattered: PED-ANOVA over all trials that have a score.

It asks which settings tell the best quarter of the trials apart from all of them. Pruned trials count with the best
score they had reached: left out, only settings that survived would be compared with each other; and since nothing but
membership of the best quarter is looked at, it does no harm that theirs would have grown. No random numbers are
involved: the same trials give the same answer.

Source: Watanabe, Bansal and Hutter, "PED-ANOVA", IJCAI 2023, as implemented in Optuna.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cityopt.dimension import Dimension
from cityopt.search.status import TrialStatus

MIN_TRIALS = 12
"""The best quarter has three trials then; below, an importance would be a guess."""
BEST_SHARE = 0.25


@dataclass(frozen=True)
class Importance:
    """Shares of the settings in what made trials good, in falling order; they add up to 1, or there are none."""

    shares: dict[str, float]
    num_trials: int
    """Trials with a score."""
    reason: str = ""
    """Why there are no shares."""


def measure_importance(trials: Sequence[TrialStatus], space: Mapping[str, Dimension], direction: str) -> Importance:
    """Return the importance of every searched setting, or the reason why it cannot be told."""
    scored = [trial for trial in trials if trial.value is not None and trial.state in ("complete", "pruned")]
    count = len(scored)
    if not space:
        return Importance({}, count, "this study searches no setting")
    if count < MIN_TRIALS:
        return Importance({}, count, f"{count} trials have a score, and it takes {MIN_TRIALS} to tell")
    sign = -1.0 if direction == "maximize" else 1.0
    from optuna.importance import PedAnovaImportanceEvaluator  # brings in scikit-learn's forests, for another evaluator

    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of are equal shares, which the report says itself
        raw = evaluator.evaluate(_rebuild(scored, space), target=lambda trial: sign * float(trial.value or 0.0))
    total = sum(raw.values())
    if total <= 0:
        return Importance({}, count, "no setting tells the best trials apart from the others")
    return Importance({key: value / total for key, value in raw.items()}, count)


def _rebuild(trials: Sequence[TrialStatus], space: Mapping[str, Dimension]) -> optuna.Study:
    """Return a study in memory in which every trial with a score is complete."""
    study = optuna.create_study()
    for trial in trials:
        params = {key: value for key, value in trial.params.items() if key in space}
        study.add_trial(
            optuna.trial.create_trial(
                params=params,
                distributions={key: _build_distribution(space[key]) for key in params},
                value=trial.value,
            )
        )
    return study


def _build_distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices is not None:
        return CategoricalDistribution(list(dimension.choices))
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if dimension.type == "int":
        return IntDistribution(int(low), int(high), log=dimension.log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=dimension.log, step=dimension.step)
