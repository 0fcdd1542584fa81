"""Out of memory is information: a trial that met it is tried once more in smaller pieces, and what it needed is kept.

The second attempt halves the images that go through the network at once and doubles the micro-batches per optimiser
step, so that batch size, learning rate and order of the images stay. It is the same training but for what a network
takes from the images beside each one: a batch norm that learns sees smaller batches (`model.backbone_norm: frozen` and
group norm do not care), and detection losses are averaged over each micro-batch.
"""

from collections.abc import Mapping
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig, TrainingConfig
from cityopt.search.status import OUT_OF_MEMORY, TrialStatus
from cityopt.settings import replace_section
from cityopt.study_file import settle_training

ACCUMULATION = "training.accumulation"


def find_smaller(training: TrainingConfig) -> int | None:
    """Return the next accumulation with micro-batches of half the size or less; None when they hold one image."""
    least = 2 * training.accumulation
    return next((n for n in range(least, training.batch_size + 1) if training.batch_size % n == 0), None)


def plan_retry(trial: optuna.Trial, training: TrainingConfig, peak_gib: float | None) -> int | None:
    """Let a trial that ran out of memory go on with smaller micro-batches from now on; returns their images.

    None: that was done before, or they cannot be smaller.
    """
    accumulation = find_smaller(training)
    if accumulation is None or OUT_OF_MEMORY in trial.user_attrs:
        return None
    trial.set_user_attr(OUT_OF_MEMORY, {"peak_gib": peak_gib, "accumulation": accumulation})
    return training.batch_size // accumulation


def apply_retry(trial: optuna.Trial, config: RunConfig) -> RunConfig:
    """Return a trial's run with the micro-batches that it goes on with."""
    found = trial.user_attrs.get(OUT_OF_MEMORY)
    if found is None:
        return config
    return replace_section(config, training=replace_section(config.training, accumulation=found["accumulation"]))


def keep_pieces(
    config: StudyConfig, trial: TrialStatus, settings: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a trial's `settings` with `more` on top, for other trainings: in micro-batches no larger than its own.

    A trial that met an end of memory has smaller ones than its settings say. `more` may ask for others.
    """
    if trial.accumulation is None or ACCUMULATION in more:
        return {**settings, **more}
    most = settle_training(config, trial.params | {ACCUMULATION: 1}).training.batch_size // trial.accumulation
    found = {**settings, **more, ACCUMULATION: 1}
    size = settle_training(config, found).training.batch_size
    return found | {ACCUMULATION: next(n for n in range(1, size + 1) if size % n == 0 and size // n <= most)}


def describe_retry(trial: optuna.Trial) -> dict[str, Any]:
    """Return the tags of a trial that was tried again; its params tell of the first attempt."""
    found = trial.user_attrs.get(OUT_OF_MEMORY)
    if found is None:
        return {}
    return {"cityopt.oom_peak_gib": found["peak_gib"], "cityopt.accumulation_after_oom": found["accumulation"]}
