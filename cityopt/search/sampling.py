"""Samplers: Optuna's, seeded anew for every trial, so that stopping and resuming changes nothing."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from cityopt.dimension import Dimension
from cityopt.runtime import derive_seed
from cityopt.search.history import History
from cityopt.search_config import SamplerConfig

DRAWN = "cityopt:drawn"


class SeededSampler(BaseSampler):
    """A sampler whose proposals depend on (study seed, trial number, finished trials) alone.

    Each trial gets a sampler of its own, and each setting that is drawn independently another, so a
    trial that was killed while its settings were drawn gets the same ones the second time. What all
    trials have in common is found by one sampler, which remembers it (`keep_space`); not for groups.
    With a `history` the samplers see what it chooses of a long study.
    """

    def __init__(
        self, build: Callable[[int], BaseSampler], seed: int, *, keep_space: bool, history: History | None = None
    ) -> None:
        self._build, self._seed, self._history = build, seed, history
        self._relative: tuple[int, BaseSampler] = (-1, build(0))
        self._space = build(0) if keep_space else None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the settings that are drawn together."""
        if self._space is not None:
            return self._space.infer_relative_search_space(study, trial)
        return self._sampler_of(trial).infer_relative_search_space(self._view(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw settings together, or return those that the trial drew before it was killed.

        They are written down because a second draw may differ: GP would see the first one as a rival at work.
        """
        drawn: dict[str, Any] | None = trial.system_attrs.get(DRAWN)
        if drawn is None:
            drawn = self._sampler_of(trial).sample_relative(self._view(study), trial, search_space)
            if drawn:
                study._storage.set_trial_system_attr(trial._trial_id, DRAWN, drawn)
        return drawn

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one setting on its own."""
        sampler = self._build(self._derive_seed(trial.number, param_name))
        return sampler.sample_independent(self._view(study), trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let the sampler keep what it learned from a finished trial."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constraints have been set")  # CMA-ES skips such trials anyway
            self._sampler_of(trial).after_trial(study, trial, state, values)

    def _view(self, study: Study) -> Study:
        return study if self._history is None else self._history.view(study)

    def _derive_seed(self, *parts: int | str) -> int:
        return derive_seed(self._seed, "ask", *parts) % 2**32

    def _sampler_of(self, trial: FrozenTrial) -> BaseSampler:
        if self._relative[0] != trial.number:
            self._relative = (trial.number, self._build(self._derive_seed(trial.number)))
        return self._relative[1]


def build_sampler(config: SamplerConfig, space: Mapping[str, Dimension], seed: int) -> BaseSampler:
    """Return the sampler of a study; conditional settings make TPE model them in groups."""
    conditional = any(dimension.when for dimension in space.values())

    def build(trial_seed: int) -> BaseSampler:
        if config.name == "random":
            return RandomSampler(seed=trial_seed)
        if config.name == "cmaes":
            return CmaEsSampler(
                seed=trial_seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False
            )
        if config.name == "gp":
            return GPSampler(seed=trial_seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Argument ``group`` is an experimental feature")
            return TPESampler(seed=trial_seed, n_startup_trials=config.startup_trials, group=conditional)

    history = History(config.history) if config.name == "tpe" else None
    return SeededSampler(build, seed, keep_space=not conditional, history=history)
