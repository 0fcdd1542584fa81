"""What a cross-validation is going to train: settings, folds, and a run's config for each fold, before anything starts.

Two plans with the same `digest` are the same cross-validation, wherever and with however many workers it runs.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder, choose_root
from cityopt.dimension import Scalar
from cityopt.errors import DataError
from cityopt.image_set import ImageSet
from cityopt.promotion import is_heeded
from cityopt.runtime import derive_seed
from cityopt.search.facts import StudyFacts
from cityopt.search.micro_batches import keep_pieces
from cityopt.search.observer import Observer
from cityopt.search.plan import find_zoom
from cityopt.search.preparation import open_root, prepare_study
from cityopt.search.pretrained import fetch_weights, hash_files, hash_weights, settle_path, settle_paths
from cityopt.search.promote import pick_winner
from cityopt.search.single import strip_place
from cityopt.search.space import fix_anchors
from cityopt.search.status import describe_trials
from cityopt.search.storage import open_storage
from cityopt.search.study import find_threads, is_begun, load_stored_study, open_study, refuse_other_settings
from cityopt.search.sweep import build_facts, warn_of_frozen_noise, warn_of_ignored
from cityopt.search_config import check_comparable
from cityopt.settings import replace_section, replace_settings
from cityopt.study_file import settle_training
from cityopt.training.crossval import Division, divide_frames
from cityopt.training.dataset import Survey, check_fingerprint, survey_dataset
from cityopt.training.objective import check_objective


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings, and where they come from."""

    settings: dict[str, Any]
    source: str
    trial: int | None
    """Number of the trial, None for settings that are no trial's."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A study as the store or its YAML has it, with its dataset looked through."""

    study: optuna.Study | None
    """None before it is begun."""
    config: StudyConfig
    facts: StudyFacts | None
    root: Path
    survey: Survey
    choice: Choice
    full: StudyConfig
    """The config with the chosen settings in place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A cross-validation that is about to be trained."""

    choice: Choice
    division: Division
    runs: tuple[RunConfig, ...]
    """One for each fold, named `fold-1` and so on."""
    weights: str | None = None
    """Content hash of the file that the folds start from, None where they start from none."""

    @property
    def digest(self) -> str:
        """Return 16 hex digits that tell one cross-validation from another, also when settings are new to cityopt."""
        content: list[Any] = [strip_place(run.model_dump(mode="json", exclude_defaults=True)) for run in self.runs]
        content += [self.weights] if self.weights else []
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def describe_division(self) -> dict[str, Any]:
        """Return the folds as plain data."""
        folds = [{**asdict(fold), "spans": [str(span) for span in fold.spans]} for fold in self.division.folds]
        grouping = "blocks" if self.division.blocks else "cities"
        return {"grouping": grouping, "absent": list(self.division.absent), "folds": folds}


def open_crossed(
    store: Path,
    name: str,
    begin: Callable[[Mapping[str, Any]], StudyConfig],
    data: str | None,
    settings: Mapping[str, Any],
    observer: Observer,
) -> Opened:
    """Read a study, or what it would begin with, and its dataset; nothing is begun.

    Settings that full training heeds are added to the chosen ones. Others are the study's own: `begin` gets them, and
    a study that is begun must have them.

    Raises ConfigError (settings that cannot be, or lack the objective), StudyError (the study has other settings, or
    the content of its weights has changed), DataError (no dataset, or another than it began with).
    """
    extra = {key: value for key, value in settings.items() if is_heeded(key)}
    own = {key: value for key, value in settings.items() if not is_heeded(key)}
    storage, cache = open_storage(store), cache_folder(store)
    study, config, facts = load_stored_study(storage, name) if is_begun(storage, name) else (None, None, None)
    if config is not None:
        refuse_other_settings(storage, replace_settings(config, own), hash_files(config))
    config = config or settle_paths(begin(own))
    check_comparable(config.search.metric, extra, "--set")
    root = open_root(replace_settings(config, {"data.root": choose_root(data, config.data.root)}), cache, observer)
    survey = survey_dataset(root, cache, observer.reporter("reading labels"))
    check_fingerprint(survey, facts.fingerprint if facts else None)
    choice = choose_settings(study, config, extra)
    full = settle_training(config, choice.settings)
    check_objective(config.search.metric, full.model)
    return Opened(study, config, facts, root, survey, choice, full)


def begin_crossed(opened: Opened, store: Path, data: str | None, observer: Observer) -> tuple[optuna.Study, StudyFacts]:
    """Return a study to write to, begun as a sweep begins it where it is not in the store, with its weights at hand."""
    warn_of_frozen_noise(opened.full, observer)
    warn_of_ignored(opened.full, observer)
    fetch_weights(opened.full, observer)
    if opened.study is not None and opened.facts is not None:
        return opened.study, opened.facts
    storage = open_storage(store)
    threads = find_threads(storage, opened.config, num_workers=1)
    prepared = prepare_study(opened.config, store, data=data, observer=observer, decode=False)
    return open_study(storage, prepared.config, build_facts(prepared, threads, hash_files(opened.config)))


def choose_settings(study: optuna.Study | None, config: StudyConfig, extra: Mapping[str, Any]) -> Choice:
    """Return the settings of the best complete trial, else of the first baseline, else the study's own, then `extra`.

    `study` is None for one that was never begun.
    """
    trials = [] if study is None else describe_trials(study, live=False)
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    params: Mapping[str, Scalar] = {}
    if study is not None and complete:
        winner = pick_winner(study, config)
        params, source = (
            keep_pieces(config, winner, winner.params, extra),
            f"trial {winner.number}, the best of {len(complete)} complete",
        )
    elif config.search.baselines:
        params, source = config.search.baselines[0], "the study's first baseline, since no trial is complete"
    else:
        source = "the study's own, since no trial is complete"
    if extra:
        source += ", with --set " + " ".join(f"{key}={value}" for key, value in extra.items())
    return Choice({**params, **settle_path(extra)}, source, winner.number if complete else None)


def divide_survey(survey: Survey, config: StudyConfig, *, folds: int, blocks: bool) -> Division:
    """Divide a dataset's training images. Raises ConfigError, DataError: as `divide_frames`."""
    facts = [fact for fact in survey.facts if fact.split == "train"]
    return divide_frames(facts, folds=folds, seed=config.seed, task=config.model.task, blocks=blocks)


def check_judgeable(survey: Survey) -> None:
    """Check that a final model can be judged. Raises DataError: there is no val."""
    if not any(fact.split == "val" for fact in survey.facts):
        raise DataError(
            f"the final model is judged on val, but {survey.root} has none. "
            "Unpack it there, or leave the final model out with --no-final."
        )


def build_plan(
    opened: Opened, facts: StudyFacts, division: Division, *, device: str, threads: int, store: Path
) -> Plan:
    """Return the plan: the same settings and seed for every fold."""
    config, full = opened.config, opened.full
    data = replace_section(full.data, root=str(opened.root))
    model = fix_anchors(full.model, facts, zoom=find_zoom(config, full))
    runs = tuple(
        RunConfig(
            study=config.name,
            name=f"fold-{fold.number}",
            kind="fold",
            seed=derive_seed(config.seed, "crossval"),
            threads=threads,
            device=device,
            cache=str(cache_folder(store)),
            data=data,
            model=model,
            training=full.training,
            train_set=ImageSet(part="rest", spans=fold.spans),
            validation_set=ImageSet(part="fold", spans=fold.spans),
            metric=config.search.metric,
            direction=config.search.direction,
            fingerprint=facts.fingerprint,
        )
        for fold in division.folds
    )
    return Plan(opened.choice, division, runs, hash_weights(full.model.weights))
