"""What a cross-validation found: read from the folders of its runs, and written on the run that sums it up."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.search.crossval_plan import Choice, Plan
from cityopt.search.final_model import FinalModel
from cityopt.store import run_folder
from cityopt.tracking.curves import pick_epoch
from cityopt.tracking.run_folder import NOTE, RunFolder, read_records, read_status, write_atomically
from cityopt.training.crossval import BLOCKS_REMARK, Division, Fold
from cityopt.training.fold_scores import Spread, name_metrics, summarize_folds, write_table


@dataclass(frozen=True, slots=True)
class FoldResult:
    """One trained fold."""

    fold: Fold
    run_id: str
    epoch: int
    """The epoch that is kept: the best on its validation side."""
    metrics: dict[str, float]
    """Of that epoch."""
    seconds: float


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a cross-validation found."""

    study: str
    name: str
    run_id: str
    choice: Choice
    metric: str
    division: Division
    folds: tuple[FoldResult, ...]
    spreads: dict[str, Spread]
    """By the folds' metrics."""
    final: FinalModel | None
    store: Path


def read_crossval(store: Path, plan: Plan, entry: Mapping[str, Any], final: FinalModel | None) -> CrossValidation:
    """Read the folds, all of them complete; `entry` is what the study remembers of its cross-validation."""
    run = plan.runs[0]
    folds = []
    for fold in plan.division.folds:
        run_id = entry["runs"][f"fold-{fold.number}"]
        folder = run_folder(store, run_id)
        status = read_status(folder)
        epoch, metrics = pick_epoch(read_records(folder)[0], run.metric, run.direction)
        folds.append(FoldResult(fold, run_id, epoch, metrics, status.seconds if status else 0.0))
    return CrossValidation(
        study=run.study,
        name=entry["name"],
        run_id=entry["run_id"],
        choice=plan.choice,
        metric=run.metric,
        division=plan.division,
        folds=tuple(folds),
        spreads=summarize_folds([fold.metrics for fold in folds], run.metric),
        final=final,
        store=store,
    )


def write_summary(tracker: RunFolder, plan: Plan, found: CrossValidation) -> None:
    """Put means, spreads, the division and the settings on the run that sums up."""
    from cityopt.training.provenance import flatten_config

    shared = ("data.", "model.", "training.", "metric", "direction", "seed")
    settings = {key: value for key, value in flatten_config(plan.runs[0]).items() if key.startswith(shared)}
    tracker.log_params({**settings, "crossval.folds": len(found.folds), "crossval.blocks": found.division.blocks})
    tracker.log_metrics(name_metrics(found.spreads), step=1)
    tracker.write_artifact("crossval.csv", write_table(found.spreads, [fold.metrics for fold in found.folds]))
    tracker.write_artifact("division.json", json.dumps(plan.describe_division(), indent=1))
    write_atomically(tracker.folder / NOTE, describe_crossval(found).encode())


def describe_crossval(found: CrossValidation) -> str:
    """Return the folds' objective in Markdown, as the run's description in MLflow."""
    spread = found.spreads[found.metric]
    std = "–" if spread.std is None else f"{spread.std:.4f}"
    grouping = f"contiguous blocks ({BLOCKS_REMARK})" if found.division.blocks else "whole cities"
    rows = [f"| {fold.fold.number} | {fold.epoch} | {fold.metrics[found.metric]:.4f} |" for fold in found.folds]
    return "\n".join(
        [
            f"**{spread.mean:.4f} ± {std}** `{found.metric}`: mean and sample standard deviation (n - 1) of "
            f"{len(found.folds)} folds of {grouping}, each at its best epoch.",
            "",
            f"Settings: {found.choice.source}. Every metric: `crossval.csv` among the artifacts.",
            "",
            f"| fold | best epoch | `{found.metric}` |",
            "| --: | --: | --: |",
            *rows,
        ]
    )
