"""The model that a cross-validation ends with: trained on all training images, judged officially, registered.

It follows the folds' schedule and stops after the mean of their best epochs. On val it is judged twice: at the size of
its training after each epoch, as promotions are and as the registry compares, and once at full resolution by the
official protocols, under `official/val/…`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.config import RunConfig
from cityopt.image_set import ImageSet, choose_val
from cityopt.search.comparison import choose_judge
from cityopt.search.registration import register_result
from cityopt.search.single import SingleTraining
from cityopt.settings import replace_section
from cityopt.store import run_folder
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, Status, read_records, read_status

PREFIX = "official"
HEADLINES = ("semantic/miou", "cityscapes/ap", "coco/segm/ap")
"""The scores that stand for a model's others, behind the images that they are of."""


@dataclass(frozen=True, slots=True)
class FinalModel:
    """What the final training brought."""

    name: str
    run_id: str
    epochs: int
    official: dict[str, float]
    """Metrics of val at full resolution: `val/semantic/miou` and so on."""
    registered: str
    """`models:/cityopt-unet@champion (version 1): there was no champion`."""

    @property
    def model(self) -> str:
        """Return the reference that commands take."""
        return self.registered.partition(" ")[0]


def build_final(fold: RunConfig, name: str, best_epochs: Sequence[int], *, threads: int) -> RunConfig:
    """Return the training on all images that follows from the folds' settings and best epochs, from 1."""
    mean = sum(best_epochs) / len(best_epochs)
    return replace_section(
        fold,
        name=name,
        kind="final",
        threads=threads,
        train_set=ImageSet(split="train"),
        validation_set=choose_val(fold.data.val_halves),
        keep="last",
        stop_epoch=math.floor(mean + 0.5),
    )


def train_final(
    training: SingleTraining, mlflow: MlflowStore, run: RunConfig, run_id: str, *, origin: str, tags: dict[str, Any]
) -> FinalModel:
    """Train, judge and register, in steps that may each be repeated after a kill."""
    with training.holding(run_id) as folder:
        seconds = training.train(run, run_id)
        training.executor.close()
        official = _judge(training, run, run_id)
        records = read_records(folder)[0]
        metric, direction = choose_judge(run)
        found = register_result(
            mlflow,
            run,
            run_id,
            checkpoint=folder / BEST,
            metric=metric,
            direction=direction,
            value=next((r.metrics[metric] for r in reversed(records) if metric in r.metrics), None),
            origin=origin,
            tags={**tags, **_choose(official)},
            observer=training.observer,
        )
    training.complete(run_id, Status("complete", message=str(found), seconds=seconds))
    return FinalModel(run.name, run_id, run.last_epoch, official, str(found))


def read_final(store: Path, name: str, run_id: str) -> FinalModel | None:
    """Return a final model from its folder, None while it is not complete."""
    folder = run_folder(store, run_id)
    status = read_status(folder)
    if status is None or status.outcome != "complete":
        return None
    records = read_records(folder)[0]
    official = {
        metric.removeprefix(f"{PREFIX}/"): value
        for record in records
        for metric, value in record.metrics.items()
        if metric.startswith(f"{PREFIX}/")
    }
    return FinalModel(name, run_id, max(record.step for record in records), official, status.message)


def _judge(training: SingleTraining, run: RunConfig, run_id: str) -> dict[str, float]:
    """Evaluate at full resolution and put the numbers on the run."""
    from cityopt.training.evaluation import run_evaluation

    found = run_evaluation(
        str(run_folder(training.store, run_id) / BEST),
        store=training.store,
        data=run.data.root,
        split="val",
        device=run.device,
        on_progress=training.observer.show_preparation,
    )
    official = {name: value for name, value in found.metrics.items() if math.isfinite(value)}
    metrics = {f"{PREFIX}/{name}": value for name, value in official.items()}
    training.open_tracker(run_id).log_metrics(metrics, step=run.last_epoch)
    return official


def _choose(official: dict[str, float]) -> dict[str, float]:
    """Return the official numbers that the registry shows."""
    return {f"{PREFIX}.{name}": value for name, value in official.items() if name.partition("/")[2] in HEADLINES}
