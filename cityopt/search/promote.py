"""Promotion: the best trial's settings -> full training -> all of val -> the registry.

The promoted model trains on every training image, the trials' holdout included, for a fixed schedule whose last
epoch counts: val judges it once and chooses nothing. So that the result says what full training brought, the
trial's own checkpoint is judged on val beside it. A promotion that was killed goes on from its last epoch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import ImageSet, RunConfig, StudyConfig, check_promoted, settle_training
from cityopt.data.roots import cache_folder, choose_root
from cityopt.errors import StudyError
from cityopt.runtime import derive_seed
from cityopt.search.coordinator import run_folder
from cityopt.search.facts import StudyFacts
from cityopt.search.observer import Observer
from cityopt.search.preparation import open_root
from cityopt.search.pretrained import hash_files, settle_path
from cityopt.search.registration import register_result
from cityopt.search.single import SingleTraining
from cityopt.search.space import fix_anchors, trial_holdout
from cityopt.search.status import TrialStatus, describe_trials
from cityopt.search.study import load_stored_study, lock_study, open_storage, refuse_other_settings
from cityopt.search.sweep import naming_interrupts, open_executor, open_parent
from cityopt.search.tags import describe_data, describe_run
from cityopt.settings import replace_section, replace_settings
from cityopt.store import find_store, open_store
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, RunFolder, Status, read_records, read_status

PROMOTIONS = "cityopt:promotions"
VAL = ImageSet(split="val", part="all")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Trial and promoted model on the same images by the same protocol."""

    images: str
    metric: str
    trial: float | None
    promoted: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What a promotion brought."""

    study: str
    name: str
    run_id: str
    trial: int
    settings: dict[str, Any]
    comparisons: tuple[Comparison, ...]
    model: str
    """`models:/cityopt-demo@champion`."""
    version: int
    reason: str
    store: Path


def run_promotion(
    name: str, *, store: Path, data: str | None, settings: Mapping[str, Any], device: str, observer: Observer
) -> Promotion:
    """Train a study's best complete trial in full, or go on with that, judge it on val and register it.

    Raises ConfigError (a setting that a promotion does not heed), StoreError (no such study, another process at work
    on it), StudyError (no complete trial), StoppedError (Ctrl-C), DataError, TrainingError.
    """
    check_promoted(settings, "--set")
    folder = open_store(find_store(store, name))
    observer.say(f"store {folder}")
    with lock_study(folder, name, "promotion"), naming_interrupts():
        storage = open_storage(folder)
        study, config, facts = load_stored_study(storage, name)
        winner = pick_winner(study, config)
        refuse_other_settings(storage, config, hash_files(config))
        chosen = replace_settings(config, {"data.root": choose_root(data, config.data.root)})
        root = open_root(chosen, cache_folder(folder), observer)
        run = build_promotion_config(config, facts, winner, settings, root=root, device=device, store=folder)
        mlflow = PatientStore(folder, on_wait=observer.say)
        with (
            open_executor(folder, name, threads=facts.threads, device=device) as executor,
            open_parent(mlflow, config, facts, observer) as (_, shipper),
        ):
            training = SingleTraining(folder, executor, shipper, observer)
            return Promoter(folder, study, config, facts, mlflow, training, observer).promote(run, winner)


def pick_winner(study: optuna.Study, config: StudyConfig) -> TrialStatus:
    """Return the best complete trial. Raises StudyError: none is complete."""
    complete = [t for t in describe_trials(study, live=False) if t.state == "complete" and t.value is not None]
    if not complete:
        raise StudyError(
            f"promotion needs a complete trial, but study {config.name!r} has none. "
            f"Go on with: cityopt sweep --study {config.name}"
        )
    pick = max if config.search.direction == "maximize" else min
    return pick(complete, key=lambda trial: trial.value or 0.0)


def build_promotion_config(
    config: StudyConfig,
    facts: StudyFacts,
    winner: TrialStatus,
    settings: Mapping[str, Any],
    *,
    root: Path,
    device: str,
    store: Path,
) -> RunConfig:
    """Return the full training of a trial: its settings, then the study's `promotion.overrides`, then `--set`."""
    full = settle_training(config, {**winner.params, **config.promotion.overrides, **settle_path(settings)})
    return RunConfig(
        study=config.name,
        name="promotion",
        kind="promotion",
        seed=derive_seed(config.seed, "promotion", winner.number),
        threads=facts.threads,
        device=device,
        cache=str(cache_folder(store)),
        data=replace_section(full.data, root=str(root)),
        model=fix_anchors(full.model, facts),
        training=full.training,
        train_set=ImageSet(split="train", part="all", seed=config.seed),
        validation_set=VAL,
        metric=config.search.metric,
        direction=config.search.direction,
        keep="last",
        fingerprint=facts.fingerprint,
    )


class Promoter:
    """One promotion in progress."""

    def __init__(
        self,
        store: Path,
        study: optuna.Study,
        config: StudyConfig,
        facts: StudyFacts,
        mlflow: MlflowStore,
        training: SingleTraining,
        observer: Observer,
    ) -> None:
        self.store, self.study, self.config, self.facts = store, study, config, facts
        self.mlflow, self.training, self.observer = mlflow, training, observer

    def promote(self, run: RunConfig, winner: TrialStatus) -> Promotion:
        """Train, judge, register, in steps that may each be repeated after a kill."""
        run, run_id = self._open_run(run, winner)
        with self.training.holding(run_id):
            seconds = self.training.train(run, run_id)
            self.training.executor.close()
            comparisons = self._compare(run, run_id, winner)
            found = register_result(
                self.mlflow,
                run,
                run_id,
                checkpoint=run_folder(self.store, run_id) / BEST,
                value=comparisons[0].promoted,
                origin=f"Trial {winner.number} of study {run.study}, trained in full.",
                tags={"cityopt.trial": winner.number},
            )
        status = Status("complete", message=str(found), seconds=seconds)
        self.training.complete(run_id, status)
        return Promotion(
            study=self.config.name,
            name=run.name,
            run_id=run_id,
            trial=winner.number,
            settings=winner.params,
            comparisons=comparisons,
            model=found.model,
            version=found.version,
            reason=found.reason,
            store=self.store,
        )

    def _open_run(self, run: RunConfig, winner: TrialStatus) -> tuple[RunConfig, str]:
        """Return the promotion that was begun with this very config and not ended, or a new one."""
        known: list[dict[str, Any]] = self.study.user_attrs.get(PROMOTIONS, [])
        last = known[-1] if known else None
        if last and read_status(run_folder(self.store, last["run_id"])) is None:
            same = _without_place(last["config"]) == _without_place(run.model_dump(mode="json"))
            if same:
                run_id = str(last["run_id"])
                self.mlflow.reopen_run(run_id)
                self.observer.say(f"{last['name']} goes on from its last finished epoch")
                return replace_section(run, name=last["name"]), run_id
            self.training.shipper.end(last["run_id"], "KILLED", {"cityopt.state": "superseded"})
        run = replace_section(run, name=f"promotion-{len(known) + 1:04d}")
        tags = describe_data(self.facts) | describe_run(run)
        tags |= {
            "cityopt.trial": winner.number,
            "cityopt.trial_run": winner.run_id,
        }
        run_id = self.mlflow.find_run(run.study, run.name) or self.mlflow.create_run(
            run.study, run.name, "promotion", tags
        )
        self.mlflow.log_dataset(run_id, run.study, self.facts.fingerprint, str(run.data.root))
        entry = {"name": run.name, "run_id": run_id, "trial": winner.number, "config": run.model_dump(mode="json")}
        self.study.set_user_attr(PROMOTIONS, [*known, entry])
        return run, run_id

    def _compare(self, run: RunConfig, run_id: str, winner: TrialStatus) -> tuple[Comparison, ...]:
        """Judge trial and promoted model on val and on the trials' holdout, and record it on the promotion's run."""
        from cityopt.training.scoring import draw_checkpoint, score_checkpoint

        promoted, trial = (run_folder(self.store, i) / BEST for i in (run_id, winner.run_id or ""))

        def score(checkpoint: Path, images: ImageSet, prefix: str) -> dict[str, float]:
            what = f"judging {prefix.replace('/', ' on ')}"
            return score_checkpoint(
                checkpoint,
                run,
                images,
                prefix=prefix,
                on_count=lambda done, total: self.observer.show_preparation(what, done, total),
            )

        records = read_records(run_folder(self.store, run_id))[0]
        own_val = next(r.metrics for r in reversed(records) if run.metric in r.metrics)
        trial_val = score(trial, VAL, "trial/val")
        holdout = trial_holdout(self.config)
        on_holdout = score(trial, holdout, "trial/holdout") | score(promoted, holdout, "promoted/holdout")
        extra = {name: v for name, v in {**trial_val, **on_holdout}.items() if math.isfinite(v)}
        tracker = RunFolder(run_folder(self.store, run_id), _token(run_folder(self.store, run_id)))
        tracker.log_metrics(extra, step=run.training.epochs)
        draw_checkpoint(
            promoted,
            run,
            VAL,
            tracker,
            on_count=lambda done, total: self.observer.show_preparation("ranking val's images", done, total),
        )
        tail = run.metric.removeprefix("val/")
        return (
            Comparison("val", run.metric, extra.get(f"trial/val/{tail}"), own_val.get(run.metric)),
            Comparison(
                "trials' holdout",
                run.metric,
                extra.get(f"trial/holdout/{tail}", winner.value if run.data.size == self.config.data.size else None),
                extra.get(f"promoted/holdout/{tail}"),
                "the promoted model has trained on these images",
            ),
        )


def _without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes two promotions the same training, wherever they run."""
    places = ("name", "device", "cache")
    rest = {key: value for key, value in config.items() if key not in places}
    return rest | {"data": {k: v for k, v in config["data"].items() if k not in ("root", "num_workers")}}


def _token(folder: Path) -> str:
    from cityopt.tracking.run_folder import read_attempt

    attempt = read_attempt(folder)
    return attempt.token if attempt else ""
