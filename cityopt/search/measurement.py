"""The story of `cityopt plan`: as many workers as a sweep will have measure its trainings, before anything is spent.

They measure side by side (`training/measurement.py`): with the settings of trial 0, and where dimensions of the search
space change what a step costs, at both of their ends. `forecast.py` makes of it what the sweep will cost.
"""

import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder, choose_root
from cityopt.dimension import Scalar
from cityopt.errors import TrainingError
from cityopt.search.executors.base import Executor, Job, JobEnded, Progressed
from cityopt.search.executors.slots import plan_slots
from cityopt.search.facts import StudyFacts
from cityopt.search.finalist_plan import choose_images
from cityopt.search.forecast import Forecast, build_forecast
from cityopt.search.observer import Observer
from cityopt.search.plan import plan_promotion
from cityopt.search.preparation import PreparedStudy, check_dataset_exists, prepare_study
from cityopt.search.pretrained import fetch_weights, hash_files, settle_paths
from cityopt.search.space import build_trial_config
from cityopt.search.status import TrialStatus
from cityopt.search.storage import open_storage
from cityopt.search.study import find_facts, find_threads, refuse_other_settings
from cityopt.search.sweep import build_facts, naming_interrupts, open_executor, warn_of_crowding
from cityopt.store import open_store
from cityopt.training.costs import TrainingCosts
from cityopt.training.dataset import pick_facts, survey_dataset, survey_images
from cityopt.training.objective import check_objective

COSTLESS = (
    *("training.learning_rate", "training.weight_decay", "training.momentum", "training.schedule"),
    *("training.warmup_fraction", "training.milestones", "training.clip_norm", "training.optimizer"),
    *("data.hflip", "model.focal_gamma", "model.class_weights"),
)
"""Settings that a step costs the same with, whatever their value."""


def run_plan(
    config: StudyConfig,
    *,
    store: Path,
    data: str | None,
    device: str,
    observer: Observer,
    workers: int | None = None,
    per_device: int | None = None,
) -> Forecast:
    """Measure what a study's sweep would cost; its data is made ready, and nothing else is begun.

    Raises CityoptError: as `run_sweep`, and TrainingError where a measurement fails, for lack of memory say.
    """
    check_objective(config.search.metric, config.model)
    check_dataset_exists(choose_root(data, config.data.root))
    slots = plan_slots(device, workers=workers, per_device=per_device)
    folder = open_store(store)
    with naming_interrupts():
        storage = open_storage(folder)
        config = settle_paths(config)
        weights = hash_files(config)
        refuse_other_settings(storage, config, weights)
        threads = find_threads(storage, config, num_workers=len(slots))
        warn_of_crowding(len(slots), threads, observer)
        with open_executor(folder, config, threads=threads, slots=slots) as executor:
            fetch_weights(config, observer)
            begun = find_facts(storage, config.name)
            prepared = prepare_study(
                config, folder, data=data, observer=observer, fitted=begun.anchors if begun else None
            )
            facts = replace(begun or build_facts(prepared, threads, weights), root=str(prepared.root))
            variants = list_variants(config)
            runs = [
                build_trial_config(prepared.config, facts, 0, settings, device=slots[0], cache=cache_folder(folder))
                for settings in variants
            ]
            costs = [_measure(executor, run, len(slots), folder, observer) for run in runs]
        growth = _find_growth(prepared, facts, folder)
        promotion_s = _forecast_promotion(prepared, facts, variants[0], costs[0], runs[0], folder)
    return build_forecast(
        config,
        costs,
        num_workers=len(slots),
        threads=threads,
        device=slots[0],
        promotion_s=promotion_s,
        growth=growth,
    )


def list_variants(config: StudyConfig) -> list[dict[str, Scalar]]:
    """Return the settings to measure: trial 0's, then both ends of what changes the cost of a step."""
    space, baselines = config.search.space, config.search.baselines
    first: dict[str, Scalar] = dict(baselines[0]) if baselines else {}
    costly = {key: dimension.examples() for key, dimension in space.items() if key not in COSTLESS}
    found = [first]
    for end in (0, -1):
        values = first | {key: examples[end] for key, examples in costly.items()}
        met = {k: v for k, v in values.items() if all(values.get(p) == w for p, w in space[k].when.items())}
        found += [met] if met not in found else []
    return found


def _measure(executor: Executor, run: RunConfig, num_workers: int, store: Path, observer: Observer) -> TrainingCosts:
    """Measure a training on all workers at once and return the mean of what they say, of memory the most."""
    found: list[TrainingCosts] = []
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=store) as folder:
        for number in range(num_workers):
            name = f"measurement-{number + 1}"
            observer.begin_run(name, {}, resumed=False)
            executor.submit(Job(name, Path(folder) / name, uuid.uuid4().hex, run, measures_costs=True))
        while len(found) < num_workers:
            for event in executor.poll(0.2):
                if isinstance(event, Progressed):
                    observer.show_progress(event.run_id, event.progress)
                elif isinstance(event, JobEnded) and event.outcome != "complete":
                    raise TrainingError(event.reason, f"the measurement failed ({event.reason}): {event.message}")
                elif isinstance(event, JobEnded):
                    found.append(TrainingCosts(**event.result))
    return replace(
        found[0],
        step_s=fmean(costs.step_s for costs in found),
        image_s=fmean(costs.image_s for costs in found),
        begin_s=fmean(costs.begin_s for costs in found),
        save_s=fmean(costs.save_s for costs in found),
        end_s=fmean(costs.end_s for costs in found),
        cold_s=max(costs.cold_s for costs in found),
        memory_gib=max(costs.memory_gib for costs in found),
    )


def _find_growth(prepared: PreparedStudy, facts: StudyFacts, store: Path) -> float:
    """Return on how many times the trials' images finalists train."""
    survey = survey_dataset(prepared.root, cache_folder(store))
    return choose_images(prepared.config, facts, survey)[1] / facts.num_subset


def _forecast_promotion(
    prepared: PreparedStudy,
    facts: StudyFacts,
    settings: Mapping[str, Scalar],
    costs: TrainingCosts,
    measured: RunConfig,
    store: Path,
) -> float | None:
    """Return the seconds of a promotion by what an image of a trial costs, None where a stage has another model."""
    winner = TrialStatus(0, "complete", None, 0.0, dict(settings), None, None)
    plan = plan_promotion(prepared.config, facts, winner, {}, root=prepared.root, device=measured.device, store=store)
    if any(stage.run.model.family != measured.model.family for stage in plan):
        return None
    fine, total = survey_dataset(prepared.root, cache_folder(store)), 0.0
    for stage in plan:
        run, pixels = stage.run, stage.run.data.size[0] * stage.run.data.size[1]
        trained = len(pick_facts(survey_images(fine, run.train_set, cache_folder(store)), run.train_set))
        validated = len(pick_facts(fine, run.validation_set))
        epoch_s = trained * costs.step_s / costs.batch_size + validated * costs.image_s
        total += costs.begin_s + costs.end_s + run.last_epoch * (epoch_s * pixels / costs.pixels + costs.save_s)
    return total
