"""The gate before the champion's alias: a paired test over images, and what is known about where the models come from.

`registration.py` comes here when a study has a champion on the same ground (dataset, split, size, metric). Both models
see the same images now, in this environment, and the images are drawn with replacement: the newcomer passes if the 95 %
interval of its lead leaves zero out. A lead on fewer than `MIN_IMAGES` images proves nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cityopt.config import RunConfig
from cityopt.errors import StoreError
from cityopt.evaluation.image_scores import Rows
from cityopt.evaluation.paired import CONFIDENCE, DRAWS, MIN_IMAGES, PairedDifference, compare_scores
from cityopt.search.observer import Observer
from cityopt.tracking.mlflow_registry import ModelVersion, resolve_checkpoint
from cityopt.tracking.mlflow_store import MlflowStore

_ENVIRONMENT = ("torch", "torchvision", "numpy", "python", "platform", "device", "cuda")


@dataclass(frozen=True, slots=True)
class Contest:
    """How a newcomer did beside the champion on the same images."""

    metric: str
    champion: float
    newcomer: float
    paired: PairedDifference
    """Of newcomer minus champion."""

    def is_won(self, direction: str) -> bool:
        """Say whether the newcomer is better than chance explains."""
        return self.paired.low > 0 if direction == "maximize" else self.paired.high < 0

    def __str__(self) -> str:
        paired = self.paired
        numbers = f"{self.metric} {self.newcomer:.4f} against {self.champion:.4f}, {paired.difference:+.4f}"
        if math.isnan(paired.low):
            few = f"under {MIN_IMAGES}" if paired.num_images < MIN_IMAGES else "few show what is scored"
            return f"{numbers} on {paired.num_images} images, too few images to prove anything ({few})"
        interval = f"{CONFIDENCE:.0%} interval {paired.low:+.4f} to {paired.high:+.4f}"
        images = f"paired bootstrap over {paired.num_images} images"
        return f"{numbers}, {interval}, p {paired.p_bootstrap:.3f}, {images}"


def hold_contest(
    mlflow: MlflowStore, run: RunConfig, checkpoint: Path, champion: ModelVersion, metric: str, observer: Observer
) -> Contest:
    """Judge a newcomer and the champion on the run's validation images.

    Raises DataError (the dataset is missing or changed), StoreError (the champion cannot be judged), TrainingError
    (memory ran out), WeightsError (a checkpoint cannot be read).
    """
    from cityopt.training.scoring import judge_images

    old = resolve_checkpoint(mlflow.store, f"models:/{champion.name}/{champion.version}")
    name, scores = metric.removeprefix("val/"), []
    for who, file in (("the champion", old), ("the newcomer", checkpoint)):
        found = judge_images(file, run, run.validation_set, on_count=observer.reporter(f"judging {who} image by image"))
        scores.append(found)
    if scores[0].names != scores[1].names:
        raise StoreError("champion and newcomer must be judged on the same images, but the dataset changed meanwhile.")
    try:
        first, second = (found.prepare([name]) for found in scores)
    except KeyError:
        raise StoreError(
            f"no paired test is known for {metric}, so the champion stays. See `promote --force`."
        ) from None

    def score(rows: Rows) -> tuple[float, float]:
        return first(rows)[0], second(rows)[0]

    count = len(scores[0].names)
    return Contest(metric, *score(np.arange(count)), compare_scores(score, count, draws=DRAWS))


def describe_origins(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Return what speaks against where two models come from, given their runs' params: for the verdict to name.

    The contest itself is held in one environment and on one dataset, whatever stands here.
    """
    found = []
    for who, params in (("this model", mine), ("the champion", theirs)):
        commit = params.get("environment.git_commit", "")[:8]
        if params.get("environment.git_dirty") == "true":
            found.append(f"{who} was trained from uncommitted code (on {commit or 'no commit'}; see git.diff)")
    for key in _ENVIRONMENT:
        old, new = theirs.get(f"environment.{key}"), mine.get(f"environment.{key}")
        if old is not None and new is not None and old != new:
            found.append(f"the champion was trained with another {key}: {old}, not {new}")
    return found
