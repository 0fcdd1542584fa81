"""What full training brought: the promoted model and its trial's, judged side by side on the same images.

`promote.py` comes here when a training is done. The trial's own checkpoint is judged on val beside the promoted model,
and both on the trials' holdout, which the promoted model has seen.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from cityopt.config import RunConfig
from cityopt.image_set import ImageSet
from cityopt.search.plan import JUDGES
from cityopt.search.single import SingleTraining
from cityopt.store import run_folder
from cityopt.tracking.run_folder import BEST, read_records


@dataclass(frozen=True, slots=True)
class Comparison:
    """Trial and promoted model on the same images by the same protocol."""

    images: str
    metric: str
    trial: float | None
    promoted: float | None
    note: str = ""


def choose_judge(run: RunConfig) -> tuple[str, str]:
    """Return the metric, and its direction, that says whether a model is better: the objective, if val has it."""
    return (run.metric, run.direction) if run.metric.startswith("val/") else JUDGES[run.model.task]


def compare_with_trial(
    training: SingleTraining, run: RunConfig, run_id: str, trial: Path, *, metric: str, holdout: ImageSet
) -> tuple[Comparison, ...]:
    """Judge a trained promotion and the checkpoint of its trial, draw its pictures, and record all of it on its run.

    `metric` begins with `val/`. Returns a comparison on val, and one on the trials' holdout.
    """
    from cityopt.training.scoring import draw_checkpoint, score_checkpoint

    folder, observer = run_folder(training.store, run_id), training.observer
    tail = metric.removeprefix("val/")

    def score(checkpoint: Path, images: ImageSet, prefix: str) -> dict[str, float]:
        on_count = observer.reporter(f"judging {prefix.replace('/', ' on ')}")
        return score_checkpoint(checkpoint, run, images, prefix=prefix, on_count=on_count)

    found = score(trial, run.validation_set, "trial/val") | score(trial, holdout, "trial/holdout")
    found |= score(folder / BEST, holdout, "promoted/holdout")
    known = {name: value for name, value in found.items() if math.isfinite(value)}
    tracker = training.open_tracker(run_id)
    tracker.log_metrics(known, step=run.training.epochs)
    draw_checkpoint(folder / BEST, run, run.validation_set, tracker, on_count=observer.reporter("ranking val's images"))
    own = [record.metrics[metric] for record in read_records(folder)[0] if metric in record.metrics]
    note = "the promoted model has trained on these images"
    return (
        Comparison(run.validation_set.describe(), metric, known.get(f"trial/val/{tail}"), own[-1] if own else None),
        Comparison(
            "trials' holdout", metric, known.get(f"trial/holdout/{tail}"), known.get(f"promoted/holdout/{tail}"), note
        ),
    )
