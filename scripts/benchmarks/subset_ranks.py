"""Measure whether a stratified subset ranks settings better than a random one, on a study's own space and images.

Settings are drawn from the study's space. Each trains on stratified subsets (as trials do) and on random ones of the
same size, and, as what is to be predicted, on all images outside the holdout; everything validates on the trials'
holdout. A way of picking is as good as Spearman's coefficient between its scores and the means on all images. Every way
and the reference have as many seeds as are asked for; a seed draws another subset and trains with another seed.
"""

import argparse
import json
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from scipy.stats import spearmanr

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.cityscapes import FrameFacts
from cityopt.data.roots import cache_folder
from cityopt.data.subset import pick_images
from cityopt.image_set import ImageSet, Span
from cityopt.search.observer import Observer
from cityopt.search.preparation import prepare_study
from cityopt.search.ranks import check_ranks
from cityopt.search.space import build_trial_config, sample_settings, training_subset
from cityopt.search.sweep import build_facts
from cityopt.settings import replace_section
from cityopt.study_file import load_study
from cityopt.tracking.run_folder import NullTracker
from cityopt.training.dataset import survey_dataset
from cityopt.training.run import run_training

_DRAWS = 2000
Pick = Callable[[int], list[str]]
"""Returns the names of a subset's images, given its seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison and print one JSON document."""
    options = parse_arguments(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study(options.study, settings=[f"training.epochs={options.epochs}", *options.set])
    found = compare_ways(
        study, options.store, images=options.images, num_settings=options.settings, seeds=options.seeds
    )
    print(json.dumps(found, indent=1))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/rank-subsets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--study", default="demo")
    parser.add_argument("--images", type=int, default=32, help="size of the subsets")
    parser.add_argument("--settings", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--store", type=Path, default=Path("mlruns"))
    return parser.parse_args(arguments)


def compare_ways(study: StudyConfig, store: Path, *, images: int, num_settings: int, seeds: int) -> dict[str, Any]:
    """Train everything and return the coefficients of each way, with the scores that they are of."""
    prepared = prepare_study(study, store, data=None, observer=Observer())
    facts = build_facts(prepared, study.threads or 1, {})
    survey = survey_dataset(prepared.root, cache_folder(store))
    whole = pick_images(survey.facts, replace_section(training_subset(study), num_images=None))
    settings = draw_settings(study, num_settings)
    ways: dict[str, Pick] = {
        "stratified": lambda seed: pick_stratified(survey.facts, whole, images, seed),
        "random": lambda seed: sorted(random.Random(seed).sample(whole, images)),
        "all": lambda seed: whole,
    }
    scores: dict[str, list[list[float]]] = {}
    for way, pick in ways.items():
        scores[way] = []
        for seed in range(seeds):
            spans = tuple(Span(city=name.split("_")[0], first=name, last=name) for name in pick(seed))
            chosen = ImageSet(part="fold", spans=spans)
            runs = [
                replace_section(
                    build_trial_config(study, facts, number, some, device="cpu", cache=cache_folder(store)),
                    train_set=chosen,
                    seed=1000 * seed + number,
                )
                for number, some in enumerate(settings)
            ]
            scores[way].append([train(run, f"{way}, seed {seed}") for run in runs])
    return {"images": images, "of": len(whole), "settings": settings, **summarize(scores, study.search.direction)}


def summarize(scores: Mapping[str, Sequence[Sequence[float]]], direction: str) -> dict[str, Any]:
    """Return each way's coefficients: against the means on all images, one for each seed, and their mean."""
    sign = 1.0 if direction == "maximize" else -1.0
    signed = {way: [[sign * value for value in row] for row in rows] for way, rows in scores.items()}
    means = [statistics.fmean(column) for column in zip(*signed["all"], strict=True)]
    spearman: dict[str, Any] = {}
    for way in ("stratified", "random"):
        found = [check_ranks(row, means) for row in signed[way]]
        values = [ranks.spearman.value for ranks in found if ranks is not None]
        spearman[way] = {"by_seed": values, "mean": statistics.fmean(values) if values else None}
    interval = resample_lead(signed["stratified"], signed["random"], means)
    return {"spearman": spearman, "lead_of_stratified_95": interval, "scores": scores}


def resample_lead(
    stratified: Sequence[Sequence[float]], rivals: Sequence[Sequence[float]], reference: Sequence[float]
) -> tuple[float, float] | None:
    """Return a 95 % interval of the first way's lead in mean Spearman: a percentile bootstrap over the settings.

    Draws in which something has no order are left out; None where that is all of them.
    """
    draws, leads = np.random.default_rng(0), list[float]()
    ways, truth = [np.asarray(rows) for rows in (stratified, rivals)], np.asarray(reference)
    for _ in range(_DRAWS):
        chosen = draws.integers(0, len(truth), len(truth))
        drawn = [*ways[0][:, chosen], *ways[1][:, chosen], truth[chosen]]
        if any(np.ptp(row) == 0 for row in drawn):
            continue
        first, second = ([spearmanr(row[chosen], truth[chosen]).statistic for row in rows] for rows in ways)
        leads.append(float(np.mean(first) - np.mean(second)))
    if not leads:
        return None
    low, high = np.percentile(leads, (2.5, 97.5))
    return float(low), float(high)


def pick_stratified(facts: Sequence[FrameFacts], whole: Sequence[str], images: int, seed: int) -> list[str]:
    """Return a subset as trials have it, in which every class is and cities share alike, of the images in `whole`."""
    names = set(whole)
    return pick_images([fact for fact in facts if fact.name in names], ImageSet(num_images=images, seed=seed))


def draw_settings(study: StudyConfig, count: int) -> list[dict[str, Any]]:
    """Return the study's baselines and random settings of its space, always the same ones."""
    search = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=study.seed))
    drawn = [dict(sample_settings(search.ask(), study.search.space)) for _ in range(count)]
    return [dict(baseline) for baseline in study.search.baselines][:count] + drawn[len(study.search.baselines) :]


def train(run: RunConfig, where: str) -> float:
    """Return the best objective of one training."""
    result = run_training(run, NullTracker(), lambda *_: "continue")
    print(f"{where}, {run.name}: {result.best_value:.4f} in {result.seconds:.0f} s", file=sys.stderr, flush=True)
    return result.best_value
