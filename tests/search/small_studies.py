"""Studies in a few lines, for the tests of the search floor: no data, no training, a database each."""

import math
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from cityopt.config import StudyConfig
from cityopt.search.facts import StudyFacts
from cityopt.search.sampling import build_sampler
from cityopt.search.space import sample_settings
from cityopt.settings import validate

RATE, DECAY, DEPTH = "training.learning_rate", "training.weight_decay", "model.freeze_depth"
OPTIMIZER, MOMENTUM = "training.optimizer", "training.momentum"
ROW = (0.5, 1.0, 2.0)
FACTS = StudyFacts(
    root="/nowhere",
    fingerprint="f" * 64,
    subset_hash="a" * 16,
    holdout_hash="b" * 16,
    num_subset=6,
    num_holdout=2,
    threads=1,
    anchors={
        "adopted": "kmeans",
        "sizes": [[float(size)] * 3 for size in (8, 16, 32, 64, 128)],
        "ratios": [list(ROW)] * 5,
    },
)
FLAT: dict[str, Any] = {
    RATE: {"type": "float", "low": 1e-5, "high": 1e-1, "log": True},
    DECAY: {"type": "float", "low": 0.0, "high": 0.1},
    DEPTH: {"type": "int", "low": 0, "high": 5},
}
CONDITIONAL: dict[str, Any] = {
    MOMENTUM: {"type": "float", "low": 0.5, "high": 0.99, "when": {OPTIMIZER: "sgd"}},
    RATE: FLAT[RATE],
    OPTIMIZER: {"type": "categorical", "choices": ["sgd", "adamw"]},
}


def make_config(**search: Any) -> StudyConfig:
    """Return a study of six epochs over learning rate, decay and depth; keywords replace keys of `search`."""
    tree = {
        "name": search.pop("name", "small"),
        "seed": search.pop("seed", 0),
        "threads": 1,
        "model": {"weights": "none", "freeze_depth": 0, **search.pop("model", {})},
        "training": {"epochs": 6, **search.pop("training", {})},
        "search": {"space": FLAT, "pruner": {"name": "none"}, "trials": 4, **search},
    }
    return validate(StudyConfig, tree, origin="test")


def play(study: optuna.Study, config: StudyConfig, count: int) -> list[dict[str, Any]]:
    """Run `count` more trials whose score is a smooth function of their settings; return those settings."""
    played = []
    for _ in range(count):
        trial = study.ask()
        settings = sample_settings(trial, config.search.space)
        study.tell(trial, score(settings))
        played.append(settings)
    return played


def score(settings: dict[str, Any]) -> float:
    """Return a score with a peak inside the space; settings that are not there count as nothing."""
    rate = math.log10(float(settings.get(RATE, 1e-3)))
    return (
        -((rate + 2.5) ** 2)
        - 10 * (float(settings.get(DECAY, 0.0)) - 0.03) ** 2
        - 0.1 * int(settings.get(DEPTH, 0))
        + float(settings.get(MOMENTUM, 0.0))
    )


def open_plain(path: Path, config: StudyConfig) -> optuna.Study:
    """Open a study in a database of its own, created or found again, with new objects throughout."""
    if not path.exists():
        shutil.copyfile(empty_database(), path)
    return optuna.create_study(
        study_name=config.name,
        storage=open_hasty(path),
        direction=config.search.direction,
        sampler=build_sampler(config.search.sampler, config.search.space, config.seed),
        load_if_exists=True,
    )


def open_hasty(path: Path, kind: type[RDBStorage] = RDBStorage) -> RDBStorage:
    """Open a database that has its tables, without looking."""
    return kind(f"sqlite:///{path}", skip_compatibility_check=True, skip_table_creation=True)


@cache
def empty_database() -> Path:
    """Return a database with Optuna's tables and nothing in them; making one takes longer than copying it."""
    path = Path(tempfile.mkdtemp(prefix="cityopt-tests-")) / "optuna.db"
    RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path
