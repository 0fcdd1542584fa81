"""The scores of a cross-validation: mean and spread of the folds' metrics, each fold's at the epoch that it keeps.

`std` is the sample standard deviation (over n - 1): the folds are a sample of how else the images might have been
divided. A metric that a fold does not have (such as of a class that is neither there nor predicted) is left out of its
mean, and `num_folds` says of how many folds a mean is. A class that is predicted where a fold shows none has an IoU of
0 there, as in the official script; crossval.py names such folds. Names say the protocol, as everywhere:
`val/semantic/miou` of the folds becomes `crossval/semantic/miou/mean` and `…/std`.
"""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over folds."""

    mean: float
    std: float | None
    """Sample standard deviation; None of a single fold."""
    num_folds: int


def summarize_folds(scores: Sequence[Mapping[str, float]], metric: str) -> dict[str, Spread]:
    """Return mean and spread of every validation metric of the folds, and of their objective, by the folds' names."""
    names = dict.fromkeys(name for fold in scores for name in fold if name.startswith("val/") or name == metric)
    return {name: _measure_spread([fold[name] for fold in scores if name in fold]) for name in names}


def name_metrics(spreads: Mapping[str, Spread]) -> dict[str, float]:
    """Return the metrics of the run that sums a cross-validation up."""
    found: dict[str, float] = {}
    for name, spread in spreads.items():
        stem = f"crossval/{name.removeprefix('val/')}"
        found[f"{stem}/mean"] = spread.mean
        if spread.std is not None:
            found[f"{stem}/std"] = spread.std
    return found


def write_table(spreads: Mapping[str, Spread], scores: Sequence[Mapping[str, float]]) -> str:
    """Return CSV, a row for each metric: mean, std, number of folds, and each fold's value, empty where it has none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["metric", "mean", "std", "num_folds", *(f"fold_{number}" for number in range(1, len(scores) + 1))])
    for name, spread in spreads.items():
        std = "" if spread.std is None else spread.std
        writer.writerow([name, spread.mean, std, spread.num_folds, *(fold.get(name, "") for fold in scores)])
    return text.getvalue()


def _measure_spread(values: Sequence[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))
