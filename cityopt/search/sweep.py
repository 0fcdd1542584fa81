"""A sweep from start to end: data and workers made ready side by side, then the coordinator, then the summary."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import yaml

from cityopt.config import ModelConfig, StudyConfig
from cityopt.data.anchors import name_adopted
from cityopt.data.roots import choose_root
from cityopt.errors import StoppedError, StoreError
from cityopt.runtime import count_cores, resolve_device
from cityopt.search.coordinator import Coordinator
from cityopt.search.data_portrait import Describe, drawing_data
from cityopt.search.executors.base import Executor
from cityopt.search.executors.cluster import find_cluster
from cityopt.search.executors.local import LocalExecutor
from cityopt.search.executors.silence import HangRule
from cityopt.search.executors.slots import plan_slots
from cityopt.search.facts import StudyFacts
from cityopt.search.leased_owner import LEASE_S, open_ownership
from cityopt.search.ledger import explaining_outages
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.preparation import PreparedStudy, check_dataset_exists, prepare_study
from cityopt.search.pretrained import fetch_weights, hash_files, settle_paths
from cityopt.search.requests import RequestBox, open_requests
from cityopt.search.storage import open_storage
from cityopt.search.study import find_facts, find_threads, open_study, refuse_other_settings
from cityopt.search.study_lock import join_sweep
from cityopt.services import read_services
from cityopt.store import describe_option, open_store, place_store
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.run_folder import Tracker
from cityopt.training.objective import check_objective

if TYPE_CHECKING:
    from cityopt.search.executors.ray import RayCluster

INTERRUPTED = 130
STOPPED = "Stopped; nothing is lost. The same command goes on from the last finished epoch."
_LEFT_TO_OTHERS = (
    "Stopped; nothing is lost. Others that are at work on the study go on with its trial; the same command joins again."
)


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """How a sweep ended and what to do next."""

    store: Path
    exit_code: int
    advice: str
    is_over: bool = False
    """Whether nothing of the study is at work elsewhere, and nobody stopped it."""


def run_sweep(
    config: StudyConfig,
    *,
    store: Path,
    data: str | None,
    device: str,
    observer: Observer,
    workers: int | None = None,
    per_device: int | None = None,
    executor: str = "local",
    address: str | None = None,
    describe: Describe | None = None,
    lease_s: float = LEASE_S,
) -> SweepSummary:
    """Run a study's trials, or go on where the last sweep stopped, on as many workers as `plan_slots` says.

    With `executor` ray they run on the cluster at `address`, on as many of its nodes as have room.

    `describe` turns the statistics of the dataset into the files that a study's first start puts on its parent run.
    Where the store points to a server, other sweeps may be at work on the study; a trial of one that gives no sign of
    life for `lease_s` seconds is taken over.

    Raises CityoptError: no dataset, no such device, other settings than the study began with, another process at work
    on it, or a trial that failed for a reason that would fail every other.
    """
    began = time.monotonic()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_objective(config.search.metric, config.model)
    check_dataset_exists(choose_root(data, config.data.root))
    cluster = find_cluster(executor, address, device=device, workers=workers, per_device=per_device)
    slots = () if cluster else plan_slots(device, workers=workers, per_device=per_device)
    folder = open_store(store)
    observer.say(f"store {folder}")
    with explaining_outages(folder), join_sweep(folder, config.name), naming_interrupts():
        RequestBox(folder, config.name).forget_stops()
        storage = open_storage(folder)
        config = settle_paths(config)
        weights = hash_files(config)
        refuse_other_settings(storage, config, weights)
        warn_of_frozen_noise(config, observer)
        warn_of_ignored(config, observer)
        threads = find_threads(storage, config, num_workers=len(slots) or 1, cores=cluster.cores if cluster else None)
        warn_of_crowding(len(slots), threads, observer)
        with open_executor(folder, config, threads=threads, slots=slots, cluster=cluster) as workplace:
            fetch_weights(config, observer)
            begun = find_facts(storage, config.name)
            fitted = begun.anchors if begun else None
            prepared = prepare_study(config, folder, data=data, observer=observer, fitted=fitted)
            study, facts = open_study(storage, prepared.config, build_facts(prepared, threads, weights))
            announce_anchors(facts, observer)
            mlflow = PatientStore(folder, on_wait=observer.say)
            ownership = open_ownership(storage, study, lease_s)
            requests = open_requests(folder, study)  # a stop is heard from when others see this sweep
            with (
                ownership,
                open_parent(mlflow, config, facts, observer, ownership) as (parent, shipper),
            ):
                _describe_study(parent, prepared, facts)
                coordinator = Coordinator(
                    store=folder,
                    study=study,
                    config=prepared.config,
                    facts=facts,
                    device=device,
                    executor=workplace,
                    mlflow=mlflow,
                    shipper=shipper,
                    observer=observer,
                    parent=parent,
                    ownership=ownership,
                    requests=requests,
                )
                coordinator.budget.begun = began
                anchors = name_adopted(config.name, facts.anchors, config.data.size)
                with drawing_data(
                    parent, prepared.root, anchors, describe, observer, subset=prepared.subset
                ) as stop_drawing:
                    coordinator.run()
                    if coordinator.interrupt.is_set:
                        stop_drawing()
        return _sum_up(folder, config, coordinator)


def run_worker(
    config: StudyConfig,
    *,
    store: Path,
    data: str | None,
    device: str,
    observer: Observer,
    describe: Describe | None = None,
    lease_s: float = LEASE_S,
) -> SweepSummary:
    """Run a sweep of one worker that joins others, or is the first of them.

    Raises StoreError: the store does not point to a server, so that nobody could join. Raises what `run_sweep` raises.
    """
    if read_services(place_store(store)).storage is None:
        raise StoreError(
            f"a worker joins a study on a server, but the store {place_store(store)} has studies of its own. Name the "
            f"server with --storage, or work alone with: cityopt sweep --study {config.name}"
        )
    return run_sweep(
        config,
        store=store,
        data=data,
        device=device,
        observer=observer,
        workers=1,
        describe=describe,
        lease_s=lease_s,
    )


@contextmanager
def naming_interrupts() -> Iterator[None]:
    """Say how to go on when Ctrl-C comes where nothing special has to be done about it."""
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError(STOPPED) from None


def warn_of_frozen_noise(config: StudyConfig, observer: Observer) -> None:
    """Warn when stages may be frozen at random values, which nothing has trained."""
    searched = config.search.space.get("model.freeze_depth")
    deepest = max(config.model.freeze_depth, int(searched.high or 0) if searched else 0)
    if config.model.weights == "none" and deepest > 0:
        observer.say(
            f"Warning: up to {deepest} backbone stages are frozen at random values (`model.weights: none`). "
            "Set model.freeze_depth=0 and search.space.model.freeze_depth=null."
        )


def warn_of_ignored(config: StudyConfig, observer: Observer) -> None:
    """Warn of settings, given or searched, that nothing in the study's models heeds."""
    stages = config.promotion.trained
    losses = {*_list_choices(config, "model.loss"), *(str(stage.overrides.get("model.loss", "")) for stage in stages)}
    families = {*_list_choices(config, "model.family"), *(stage.model for stage in stages if stage.model)}
    weighed = any(term in loss for loss in losses for term in ("cross_entropy", "focal"))
    semantic = not families <= {"mask_rcnn", "point_rend"}
    unheeded = {
        "model.class_weights": (not semantic or not weighed, "cross-entropy and focal loss alone have class weights"),
        "model.focal_gamma": (not semantic or not any("focal" in loss for loss in losses), "`model.loss` has no focal"),
        "model.loss": (not semantic, "an instance model has losses of its own"),
    }
    for key in ("model.start_channels", "model.depth", "model.norm"):
        unheeded[key] = ("unet" not in families, "it is a setting of `model.family: unet`")
    for key, (ignored, why) in unheeded.items():
        given = getattr(config.model, key.removeprefix("model.")) != getattr(ModelConfig(), key.removeprefix("model."))
        if ignored and (given or key in config.search.space):
            observer.say(f"Warning: `{key}` changes nothing here: {why}.")


def _list_choices(config: StudyConfig, key: str) -> tuple[str, ...]:
    """Return the values that a setting of the model has in a study's trials."""
    searched = config.search.space.get(key)
    own = str(getattr(config.model, key.removeprefix("model.")))
    return (own,) if searched is None else tuple(str(value) for value in searched.choices or ())


def warn_of_crowding(num_workers: int, threads: int, observer: Observer) -> None:
    """Warn when workers have more threads than the machine has cores: a study that has begun keeps its count."""
    cores = count_cores()
    if num_workers > 1 and num_workers * threads > cores:
        observer.say(
            f"Warning: {num_workers} workers with {threads} threads each share {cores} cores, which slows them all. "
            "The study keeps the thread count that it began with, since scores depend on it; use fewer workers."
        )


def open_executor(
    store: Path, config: StudyConfig, *, threads: int, slots: Sequence[str], cluster: "RayCluster | None" = None
) -> Executor:
    """Return the executor of a study: workers on this machine, or on a cluster, which finds slots of its own.

    Raises ConfigError: there is no such device.
    """
    if cluster is not None:
        return cluster.open_executor(store, config, threads=threads)
    for device in set(slots) - {"auto", "cpu"}:
        resolve_device(device)
    rule = HangRule(config.search.hang_limit_s, config.search.hang_factor)
    return LocalExecutor(devices=slots, threads=threads, log_folder=store / "logs" / config.name, hang_rule=rule)


def build_facts(prepared: PreparedStudy, threads: int, weights: Mapping[str, str]) -> StudyFacts:
    """Return what a study that begins now would fix for good."""
    return StudyFacts(
        root=str(prepared.root),
        fingerprint=prepared.fingerprint,
        subset_hash=prepared.subset_hash,
        holdout_hash=prepared.holdout_hash,
        num_subset=len(prepared.subset),
        num_holdout=len(prepared.holdout),
        threads=threads,
        anchors=prepared.anchor_report,
        weights=dict(weights),
        class_counts=prepared.class_counts,
    )


def announce_anchors(facts: StudyFacts, observer: Observer) -> None:
    """Say which images and anchors the trials have in common."""
    report = facts.anchors or {"adopted": "none, for a semantic model"}
    recalls = [
        f"{name} recall at IoU .5 {report[name]['recall_50']:.2f}"
        for name in ("kmeans", "default")
        if report.get(name) and report[name].get("recall_50") is not None
    ]
    recall = f" ({', '.join(recalls)})" if recalls else ""
    observer.say(
        f"trials train on {facts.num_subset} images (subset {facts.subset_hash}) and validate on {facts.num_holdout} "
        f"of other cities; anchors: {report['adopted']}{recall}"
    )


def _describe_study(parent: Tracker, prepared: PreparedStudy, facts: StudyFacts) -> None:
    """Put the study's settings, images and anchors on its parent run."""
    parent.write_artifact("study.yaml", yaml.safe_dump(prepared.config.model_dump(mode="json"), sort_keys=False))
    parent.write_artifact("subset.txt", "".join(f"{name}\n" for name in prepared.subset))
    parent.write_artifact("holdout.txt", "".join(f"{name}\n" for name in prepared.holdout))
    parent.write_artifact("anchors.json", json.dumps(facts.anchors, indent=1, allow_nan=False))


def _sum_up(store: Path, config: StudyConfig, coordinator: Coordinator) -> SweepSummary:
    store_option = describe_option(store)
    if (left := len(coordinator.agenda.elsewhere)) and not coordinator.interrupt.is_set:
        look = f"cityopt status --study {config.name}{store_option}"
        others = "a trial is" if left == 1 else f"{left} trials are"
        return SweepSummary(store, 0, f"Nothing is left to do here; {others} at work elsewhere. Look: {look}")
    if coordinator.interrupt.is_set:
        is_shared = read_services(store).storage is not None
        return SweepSummary(store, INTERRUPTED, _LEFT_TO_OTHERS if is_shared else STOPPED)
    if coordinator.standing.best_value is None:
        reasons = "No trial is complete. The reasons are above; each run's log is in its folder."
        return SweepSummary(store, 1, reasons, is_over=True)
    advice = f"Next: cityopt promote --study {config.name}{store_option}\nLook: cityopt ui{store_option}"
    return SweepSummary(store, 0, advice, is_over=True)
