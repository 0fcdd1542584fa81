"""Studies that never trained, with all that a sweep leaves in a store: trials in Optuna, a folder for each run."""

import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from PIL import Image

from cityopt.config import StudyConfig
from cityopt.labels import THING_NAMES
from cityopt.search.facts import StudyFacts
from cityopt.search.promote import PROMOTIONS
from cityopt.search.space import sample_settings
from cityopt.search.status import ENDING, RUN_ID
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.settings import validate

AP, AP50, LOSS = "val/coco/segm/ap", "val/coco/segm/ap50", "train/loss/total"
RATE, DECAY, OPTIMIZER = "training.learning_rate", "training.weight_decay", "training.optimizer"
SPACE: dict[str, Any] = {
    RATE: {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    DECAY: {"type": "float", "low": 0.0, "high": 0.1},
    OPTIMIZER: {"type": "categorical", "choices": ["sgd", "adamw"]},
}
RECALL = {"num_boxes": 90, "mean_best_iou": 0.612, "recall_50": 0.8125, "recall_70": 0.3}
REPORT = {
    "adopted": "kmeans",
    "reason": "higher mean best IoU",
    "sizes": [[7.0 * 2**level, 8.0 * 2**level, 9.0 * 2**level] for level in range(5)],
    "ratios": [[0.5, 1.0, 2.1]] * 5,
    "kmeans": {**RECALL, "bins": dict.fromkeys(("small", "medium", "large"), RECALL)},
    "default": {**RECALL, "recall_50": 0.7031, "bins": dict.fromkeys(("small", "medium", "large"), RECALL)},
}
FACTS = StudyFacts(
    root="/data/streets",
    fingerprint="f" * 16,
    subset_hash="a" * 16,
    holdout_hash="b" * 16,
    num_subset=200,
    num_holdout=32,
    threads=2,
    anchors=REPORT,
)
ENVIRONMENT = {
    "environment.device": "NVIDIA H200",
    "environment.cuda": "13.0",
    "environment.torch": "2.15.0",
    "environment.git_commit": "0123456789abcdef",
    "environment.git_dirty": "false",
}
EPOCH_S = 30.0
VAL = {"split": "val"}


@dataclass(frozen=True)
class Fate:
    """How a trial goes: the objective by epoch, then its end; `open` ones never end."""

    curve: Sequence[float]
    state: str = "complete"
    reason: str = ""
    message: str = ""


def make_config(**changes: Any) -> StudyConfig:
    """Return a study over three settings with a baseline; keywords replace keys of `search`, `name` the name."""
    baseline = {RATE: 1e-3, DECAY: 0.01, OPTIMIZER: "adamw"}
    search = {"space": SPACE, "pruner": {"name": "none"}, "sampler": {"name": "random"}, "trials": 4}
    tree = {
        "name": changes.pop("name", "streets"),
        "data": {"size": [128, 256], "root": "/data/streets"},
        "training": {"epochs": 6},
        "search": {**search, "baselines": [baseline], **changes},
    }
    return validate(StudyConfig, tree, origin="test")


def make_study(store: Path, fates: Sequence[Fate], *, pictures: bool = False, **changes: Any) -> StudyConfig:
    """Write a study whose trials had these fates into a store."""
    config = make_config(**changes)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, _ = open_study(open_storage(store), config, FACTS)
    for fate in fates:
        trial = study.ask()
        sample_settings(trial, config.search.space)
        run_id = name_run(config.name, trial.number)
        for epoch, value in enumerate(fate.curve, start=1):
            trial.report(value, epoch)
        trial.set_user_attr(RUN_ID, run_id)
        write_run(store / "runs" / run_id, fate.curve, pictures=pictures)
        end(study, trial, fate)
    return config


def name_run(study: str, number: int) -> str:
    """Return the id of a trial's run."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"{study}/{number}").hex


def end(study: optuna.Study, trial: optuna.Trial, fate: Fate) -> None:
    if fate.state == "open":
        return
    ending = {"state": fate.state, "reason": fate.reason, "message": fate.message}
    trial.set_user_attr(ENDING, {**ending, "seconds": EPOCH_S * len(fate.curve)})
    if fate.state == "complete":
        study.tell(trial, max(fate.curve))
    else:
        pruned = fate.state == "pruned"
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL)


def write_run(folder: Path, curve: Sequence[float], *, pictures: bool, prefixes: Sequence[str] = ("val/",)) -> None:
    """Write what a worker records: an epoch a line, params, and pictures if wanted."""
    (folder / "artifacts" / "overlays").mkdir(parents=True)
    lines = []
    for epoch, value in enumerate(curve, start=1):
        metrics = {LOSS: 2.0 / epoch, "system/epoch_s": EPOCH_S}
        for prefix in prefixes:
            metrics |= {f"{prefix}{name}": score for name, score in invent_scores(value).items()}
        lines.append(json.dumps({"step": epoch, "time_ms": epoch, "metrics": metrics}) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "params.json").write_text(json.dumps(ENVIRONMENT))
    for name in ("bochum_000000_000019", "krefeld_000000_000316") if pictures and curve else ():
        draw_picture(folder / "artifacts" / "overlays" / f"{name}.jpg", round(255 * curve[-1]))


def invent_scores(ap: float) -> dict[str, float]:
    """Return scores of which no two are equal; no train is in the images."""
    scores = {"coco/segm/ap": ap, "coco/segm/ap50": 1.5 * ap}
    scores |= {
        f"coco/segm/ap_{size}": factor * ap for size, factor in (("small", 0.3), ("medium", 1.1), ("large", 1.7))
    }
    for place, name in enumerate(THING_NAMES):
        if name != "train":
            scores[f"coco/segm/ap/class/{name}"] = ap * (1.4 - 0.13 * place)
            scores[f"coco/segm/ap50/class/{name}"] = ap * (1.9 - 0.17 * place)
    return scores


def draw_picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    slope = np.linspace(0, 255, 1542, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(slope, (410, 1)), np.full((410, 1542), level, np.uint8), np.tile(slope[::-1], (410, 1))], 2
    )
    Image.fromarray(pixels).save(path, quality=80)


def add_promotion(
    store: Path,
    config: StudyConfig,
    *,
    trial: int,
    ap: float,
    outcome: str = "complete",
    finalists: str | None = None,
    validation_set: Any = None,
) -> Path:
    """Write a promotion of a trial, maybe that of some finalists, with its comparison; returns its run's folder."""
    folder = store / "runs" / ("e" * 32)
    write_run(folder, [ap / 2, ap], pictures=True, prefixes=("val/",))
    extra = {
        "trial/val/coco/segm/ap": ap - 0.05,
        "promoted/holdout/coco/segm/ap": ap + 0.1,
        "trial/holdout/coco/segm/ap": ap - 0.02,
    }
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "time_ms": 3, "metrics": extra}) + "\n")
    if outcome != "unfinished":
        status = {
            "outcome": outcome,
            "reason": "",
            "message": f"models:/cityopt-{config.name}@champion",
            "seconds": 60.0,
        }
        (folder / "status.json").write_text(json.dumps(status))
    entry = {"name": "promotion-0001", "run_id": folder.name, "trial": trial}
    entry |= {"finalists": finalists} if finalists else {}
    entry["config"] = {"data": {"size": [128, 256]}, "training": {"epochs": 2}, "validation_set": validation_set or VAL}
    optuna.load_study(study_name=config.name, storage=open_storage(store)).set_user_attr(PROMOTIONS, [entry])
    return folder


def grow(final: float, epochs: int = 6) -> list[float]:
    """Return a learning curve that ends at `final`."""
    return [final * (1 - math.exp(-epoch / 2)) / (1 - math.exp(-epochs / 2)) for epoch in range(1, epochs + 1)]


MIXED = (
    Fate(grow(0.2080)),
    Fate(grow(0.1100)[:2], "pruned"),
    Fate(grow(0.2441)),
    Fate([0.05], "failed", "nan", "the loss is <script>alert(1)</script> & not finite"),
    Fate(grow(0.1931)),
    Fate(grow(0.2312)),
    Fate([], "failed", "oom", "memory ran out. Lower training.batch_size."),
    Fate(grow(0.0931)[:2], "pruned"),
)
"""Complete, pruned and failed trials; trial 2 is best, trial 0 the baseline."""
