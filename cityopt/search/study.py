"""Studies in the store: create or resume one, refuse what would change its scores.

The database (`storage`) holds the trials. Beside them a study keeps its settings, the facts of its data and its
anchors as attributes, so that `status` and `promote` need neither the YAML nor the `--set` of old.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from cityopt.config import StudyConfig
from cityopt.errors import StoreError, StudyError
from cityopt.runtime import count_cores
from cityopt.search.facts import StudyFacts
from cityopt.search.pruning import build_pruner
from cityopt.search.sampling import build_sampler
from cityopt.search.storage import hold_lock, open_storage
from cityopt.settings import validate
from cityopt.store import find_store

_SETTINGS, _FACTS = "cityopt:settings", "cityopt:facts"
_FREE_TO_DIFFER = (
    *("search.trials", "search.hang_limit_s", "search.hang_factor"),
    *("search.max_failures", "search.patience", "search.max_hours", "search.max_device_hours"),
    *("data.root", "data.num_workers", "data.synthetic", "promotion"),
)


def find_facts(storage: RDBStorage, name: str) -> StudyFacts | None:
    """Return what a study fixed when it began, None for one that has not begun."""
    return load_stored_study(storage, name)[2] if is_begun(storage, name) else None


def find_threads(storage: RDBStorage, config: StudyConfig, *, num_workers: int, cores: int | None = None) -> int:
    """Return the CPU threads of each training: as fixed when the study began, else a worker's share of the cores.

    Those are this machine's by default.
    """
    if config.threads is not None:
        return config.threads
    facts = find_facts(storage, config.name)
    return facts.threads if facts else max(1, (cores or count_cores()) // num_workers)


def open_study(storage: RDBStorage, config: StudyConfig, facts: StudyFacts) -> tuple[optuna.Study, StudyFacts]:
    """Create a study or go on with it. Returns it with the facts that it keeps.

    Raises StudyError, naming each difference, when stored settings that change scores differ.
    """
    with _beginning(storage, config.name):
        if not is_begun(storage, config.name):
            return _create_study(storage, config, facts), facts
        study, stored, stored_facts = load_stored_study(storage, config.name)
        _check_same(config.name, describe_differences(stored, stored_facts, config, facts))
        study.set_user_attr(_SETTINGS, config.model_dump(mode="json"))
        return study, replace(stored_facts, root=facts.root)


@contextmanager
def _beginning(storage: RDBStorage, name: str) -> Iterator[None]:
    """Let one process at a time begin a study that several may sweep."""
    if storage.engine.dialect.name == "sqlite":
        yield
        return
    with hold_lock(storage.url, f"beginning of study {name}"):
        yield


def refuse_other_settings(storage: RDBStorage, config: StudyConfig, weights: Mapping[str, str]) -> None:
    """Refuse settings, and other contents of weights (hashes), before any work is done for them. Raises StudyError."""
    if is_begun(storage, config.name):
        _, stored, facts = load_stored_study(storage, config.name)
        new_facts = replace(facts, weights=dict(weights))
        _check_same(config.name, describe_differences(stored, facts, config, new_facts))


def is_begun(storage: RDBStorage, name: str) -> bool:
    """Say whether a study exists whole, not as what is left of one that was killed while it was made.

    Raises StoreError: something else than cityopt made it.
    """
    if name not in optuna.get_all_study_names(storage):
        return False
    study = optuna.load_study(study_name=name, storage=storage)
    if _SETTINGS in study.user_attrs:
        return True
    if any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False)):
        raise StoreError(f"study {name!r} was not made by cityopt. Use --name NEW.")
    return False


def load_stored_study(storage: RDBStorage, name: str) -> tuple[optuna.Study, StudyConfig, StudyFacts]:
    """Return a stored study, its settings and its facts. Raises StoreError when the store has no such study."""
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        known = ", ".join(sorted(optuna.get_all_study_names(storage))) or "none"
        raise StoreError(
            f"the store has no study {name!r} (studies: {known}). Begin it with: cityopt sweep --study {name}"
        ) from None
    attributes = study.user_attrs
    if _SETTINGS not in attributes:
        raise StoreError(f"study {name!r} was never begun whole. Begin it with: cityopt sweep --study {name}")
    config = validate(StudyConfig, _complete(attributes[_SETTINGS]), origin=f"study {name}")
    _equip(study, config)
    return study, config, StudyFacts(**attributes[_FACTS])


def recall_config(store: Path, name: str) -> StudyConfig | None:
    """Return the settings that a store keeps of a study, None where it knows none of this name; nothing is made.

    Raises StoreError: the study was never begun whole, or its database cannot be opened.
    """
    try:
        folder = find_store(store, name)
    except StoreError:
        return None
    storage = open_storage(folder)
    return load_stored_study(storage, name)[1] if name in optuna.get_all_study_names(storage) else None


def describe_differences(
    stored: StudyConfig, stored_facts: StudyFacts, new: StudyConfig, new_facts: StudyFacts
) -> list[str]:
    """List the settings and facts that change scores and differ, one line each."""
    old_flat, new_flat = _flatten(stored.model_dump(mode="json")), _flatten(new.model_dump(mode="json"))
    lines = [
        f"{key}: was {old_flat.get(key)!r}, now {new_flat.get(key)!r}"
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key) != new_flat.get(key) and not key.startswith(_FREE_TO_DIFFER)
    ]
    for name in ("fingerprint", "subset_hash", "holdout_hash"):
        old, now = getattr(stored_facts, name), getattr(new_facts, name)
        if old != now:
            what = name.replace("_", " ")
            lines.append(f"data {what}: was {old[:12]} ({stored_facts.root}), now {now[:12]} ({new_facts.root})")
    for path, old in stored_facts.weights.items():  # other paths are other settings
        if (now := new_facts.weights.get(path, old)) != old:
            lines.append(f"content of {path}: was {old[:12]}, now {now[:12]}")
    return lines


def _check_same(name: str, differences: list[str]) -> None:
    if differences:
        raise StudyError(
            f"study {name!r} was begun with other settings, and its scores would no longer compare:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nGive the settings of old, or begin another study with --name NEW."
        )


def _create_study(storage: RDBStorage, config: StudyConfig, facts: StudyFacts) -> optuna.Study:
    if config.name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=config.name, storage=storage)
    study = optuna.create_study(study_name=config.name, storage=storage, direction=config.search.direction)
    _equip(study, config)
    for baseline in config.search.baselines:
        study.enqueue_trial(dict(baseline))
    study.set_user_attr(_FACTS, asdict(facts))
    study.set_user_attr(_SETTINGS, config.model_dump(mode="json"))
    return study


def _equip(study: optuna.Study, config: StudyConfig) -> None:
    study.sampler = build_sampler(config.search.sampler, config.search.space, config.seed)
    study.pruner = build_pruner(config.search.pruner, config.training.epochs)


def _complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add to stored settings what was not there to be set when they were stored, as it was then.

    Heads of COCO's classes once started afresh in every study, and the best trial was promoted as it was.
    """
    model, promotion = settings["model"], settings.get("promotion") or {}
    found = {**settings, "promotion": {"finalists": 1, "seeds": 1, **promotion}}
    if "rider_from" not in model and model["weights"] not in ("none", "imagenet"):
        found["model"] = {**model, "rider_from": "none"}
    return found


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
    return flat
