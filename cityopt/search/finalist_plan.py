"""Who the finalists of a promotion are, and what each of them trains: pure, before anything is trained.

The best complete trials and trial 0, the standard recipe, train with several seeds each on a subset that holds the
trials' own (subsets of one seed are nested), and validate on the trials' holdout. Two plans with the same runs are the
same finalists, wherever and with however many workers they run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder
from cityopt.data.subset import hash_names
from cityopt.errors import DataError
from cityopt.image_set import ImageSet
from cityopt.runtime import derive_seed
from cityopt.search.facts import StudyFacts
from cityopt.search.micro_batches import keep_pieces
from cityopt.search.rescaling import Growth, rescale_settings
from cityopt.search.single import strip_place
from cityopt.search.space import build_trial_config, training_subset
from cityopt.search.status import TrialStatus, find_best_reported
from cityopt.settings import replace_section
from cityopt.study_file import settle_training
from cityopt.training.dataset import Survey, check_fingerprint, pick_facts

EPOCHS = "training.epochs"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that may be promoted."""

    trial: TrialStatus
    settings: dict[str, Any]
    """What would be promoted: the trial's, or what rules made of them."""
    rescaled: tuple[str, ...] = ()
    """What rules changed, in words; none for the trial's own settings."""

    @property
    def name(self) -> str:
        """Return what it is called among the finalists of its study."""
        return f"trial-{self.trial.number:04d}" + ("-rescaled" if self.rescaled else "")


@dataclass(frozen=True, slots=True)
class FinalistPlan:
    """Finalists that are about to be trained."""

    candidates: tuple[Candidate, ...]
    runs: tuple[tuple[RunConfig, ...], ...]
    """For each candidate one for each seed, named `trial-0003-seed-1` and so on."""
    num_images: int
    """That each trains on."""
    note: str
    """What is trained on what, in a sentence."""

    @property
    def digest(self) -> str:
        """Return 16 hex digits that tell these finalists from others."""
        return _digest([digest_run(run) for seeds in self.runs for run in seeds])


def choose_trials(trials: Sequence[TrialStatus], config: StudyConfig, count: int) -> list[TrialStatus]:
    """Return the best complete trials, the best first, and the standard recipe.

    Pruned trials are none: their scores are of fewer epochs. The recipe is one in whatever state, unless it failed.
    """
    sign = -1.0 if config.search.direction == "maximize" else 1.0
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    chosen = sorted(complete, key=lambda trial: (sign * (trial.value or 0.0), trial.number))[:count]
    recipe = find_recipe(trials, config)
    if recipe is not None and recipe.state != "failed" and recipe not in chosen:
        chosen.append(recipe)
    return chosen


def find_recipe(trials: Sequence[TrialStatus], config: StudyConfig) -> TrialStatus | None:
    """Return the standard recipe: trial 0 where a study begins with settings of its own, or the last retry of it."""
    if not trials or not config.search.baselines:
        return None
    found = trials[0]
    for trial in trials:  # a retry comes later than what it tries again
        found = trial if trial.retry_of == found.number else found
    return found


def plan_finalists(
    config: StudyConfig,
    facts: StudyFacts,
    trials: Sequence[TrialStatus],
    survey: Survey,
    *,
    device: str,
    threads: int,
    store: Path,
) -> FinalistPlan:
    """Return the finalists' trainings. Raises DataError: the dataset or its subset is not what the trials had."""
    rule, count, note = choose_images(config, facts, survey)
    given = {EPOCHS: config.promotion.finalist_epochs} if config.promotion.finalist_epochs else {}
    chosen = choose_trials(trials, config, config.promotion.finalists)
    candidates = tuple(
        it for trial in chosen for it in _list_rivals(config, trial, given, images=count / facts.num_subset)
    )
    runs = tuple(
        tuple(
            replace_section(
                _build_run(config, facts, candidate, seed, given, device=device, store=store),
                threads=threads,
                data=replace_section(settle_training(config, candidate.settings).data, root=str(survey.root)),
                train_set=rule,
            )
            for seed in range(1, config.promotion.seeds + 1)
        )
        for candidate in candidates
    )
    return FinalistPlan(candidates, runs, count, note)


def _list_rivals(
    config: StudyConfig, trial: TrialStatus, given: Mapping[str, Any], *, images: float
) -> list[Candidate]:
    """Return a trial's settings, and what rules make of them where its images grow that many times, or its epochs."""
    training = settle_training(config, {**trial.params, **given}).training
    epochs = settle_training(config, trial.params).training.epochs
    growth = Growth(images, images * training.epochs / epochs)
    changes = rescale_settings(training, config.promotion.rescale, growth)
    raw = Candidate(trial, dict(trial.params))
    if not changes:
        return [raw]
    rescaled = {change.key: change.after for change in changes}
    return [raw, Candidate(trial, {**trial.params, **rescaled}, tuple(map(str, changes)))]


def choose_images(config: StudyConfig, facts: StudyFacts, survey: Survey) -> tuple[ImageSet, int, str]:
    """Return the rule for the finalists' images, how many those are, and a sentence about them.

    Raises DataError: the dataset changed, or the trials' images are not among them.
    """
    check_fingerprint(survey, facts.fingerprint)
    own = training_subset(config)
    before = {fact.name for fact in pick_facts(survey, own)}
    everything = pick_facts(survey, replace_section(own, num_images=None))
    wanted = round(config.promotion.subset_factor * len(before))
    rule = replace_section(own, num_images=wanted if wanted < len(everything) else None)
    now = {fact.name for fact in pick_facts(survey, rule)}
    if hash_names(before) != facts.subset_hash or not before <= now:
        raise DataError(
            f"finalists must train on the trials' images and more, but the subset of the trials is "
            f"{hash_names(before)} now, where the study began with {facts.subset_hash}. Restore the dataset's files."
        )
    return rule, len(now), _describe_images(len(before), len(now), wanted, len(everything))


def digest_run(run: RunConfig) -> str:
    """Return 16 hex digits that tell one training from another, wherever it runs and whatever it is called."""
    return _digest(strip_place(run.model_dump(mode="json", exclude_defaults=True)))


def read_half_score(trial: optuna.trial.FrozenTrial, direction: str) -> float | None:
    """Return a trial's best score in the first half of the epochs that it reported; None if it reported under two."""
    steps = sorted(trial.intermediate_values)
    half = [trial.intermediate_values[step] for step in steps[: len(steps) // 2]]
    return find_best_reported(half, direction == "maximize")


def _describe_images(before: int, now: int, wanted: int, most: int) -> str:
    if now == before:
        return (
            f"on the trials' own {now} images, with other seeds: those are all outside the holdout, "
            "so that no larger subset is left to check the ranking on"
        )
    if wanted >= most:
        return f"on {now} images instead of {before}: all outside the holdout, where {wanted} were wanted"
    return f"on {now} images instead of {before}"


def _build_run(
    config: StudyConfig,
    facts: StudyFacts,
    candidate: Candidate,
    seed: int,
    given: dict[str, Any],
    *,
    device: str,
    store: Path,
) -> RunConfig:
    """Return a candidate's run on the trials' images."""
    number, settings = candidate.trial.number, keep_pieces(config, candidate.trial, candidate.settings, given)
    return replace_section(
        build_trial_config(config, facts, number, settings, device=device, cache=cache_folder(store)),
        name=f"{candidate.name}-seed-{seed}",
        kind="finalist",
        seed=derive_seed(config.seed, "finalist", candidate.name, seed),
    )


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
