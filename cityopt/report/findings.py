"""What the report says, as plain values: read once from a store, before anything is drawn.

Optuna's database tells how trials ended, their run folders hold curves, times and pictures. Nothing here needs MLflow,
a dataset or a device, so that a report can be made of any store, also while a sweep is at work on it.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna

from cityopt.config import StudyConfig
from cityopt.image_set import ImageSet
from cityopt.report.importance import Importance, measure_importance
from cityopt.report.trainings import CrossvalRecord, StageRecord, read_last_crossval, read_stages
from cityopt.search.facts import StudyFacts
from cityopt.search.finalist_result import Finalists, find_decided
from cityopt.search.promote import PROMOTIONS
from cityopt.search.status import StudyStatus, TrialStatus, build_status
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study
from cityopt.search.study_lock import find_sweep
from cityopt.store import find_store, run_folder
from cityopt.tracking.curves import merge_metrics, pick_epoch, sum_seconds
from cityopt.tracking.run_folder import PARAMS, Record, read_json, read_records, read_status

Curve = list[tuple[int, float]]
"""Points (epoch from 1, value)."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial with all that it recorded."""

    status: TrialStatus
    records: tuple[Record, ...]
    folder: Path | None

    @property
    def number(self) -> int:
        """Its number in the study."""
        return self.status.number

    @cached_property
    def seconds(self) -> float:
        """Time on the device: as the worker told, else the sum of its finished epochs."""
        return self.status.seconds or sum_seconds(self.records)

    def curve(self, metric: str) -> Curve:
        """Return a metric by epoch; empty where it was never recorded."""
        return [(record.step, record.metrics[metric]) for record in self.records if metric in record.metrics]

    def metrics_at_best(self, metric: str, direction: str) -> dict[str, float]:
        """Return all metrics of the epoch at which one of them is best; empty where it was never recorded."""
        return pick_epoch(self.records, metric, direction)[1] if self.curve(metric) else {}


@dataclass(frozen=True)
class PromotionRecord:
    """The last promotion of a study."""

    name: str
    trial: int
    outcome: Literal["complete", "pruned", "failed", "unfinished"]
    message: str
    finalists: str | None
    """Whose winner it promoted; None where no finalists were trained."""
    records: tuple[Record, ...]
    folder: Path
    size: tuple[int, int]
    epochs: int
    ground: str
    """The images that it is judged on: all of val, or which half of it."""
    stages: tuple[StageRecord, ...] = ()

    @cached_property
    def metrics(self) -> dict[str, float]:
        """All metrics of its last epoch, the comparison with the trial among them."""
        return merge_metrics(self.records, self.records[-1].step) if self.records else {}

    @property
    def seconds(self) -> float:
        """Time on the device."""
        return sum_seconds(self.records)


@dataclass(frozen=True)
class Findings:
    """A study as the report shows it."""

    store: Path
    status: StudyStatus
    config: StudyConfig
    facts: StudyFacts
    trials: tuple[TrialRecord, ...]
    promotion: PromotionRecord | None
    finalists: Finalists | None
    crossval: CrossvalRecord | None
    importance: Importance
    environment: Mapping[str, Any]
    """Params of one trial: versions, machine, commit (`environment.…`) and image counts (`data.…`)."""
    is_live: bool
    """Whether a process is at work on the study."""
    made_at: float
    """Seconds since 1970."""

    @property
    def best(self) -> TrialRecord | None:
        """The best complete trial."""
        return None if self.status.best is None else self.trials[self.status.best.number]

    @property
    def baseline(self) -> TrialRecord | None:
        """Trial 0, where the study begins with settings of its own."""
        return self.trials[0] if self.trials and self.config.search.baselines else None

    @property
    def num_ended(self) -> int:
        """Trials that ended, in whatever way."""
        return sum(trial.status.state in ("complete", "pruned", "failed") for trial in self.trials)

    @property
    def num_begun(self) -> int:
        """Trials that ended or have a run: not those that wait in line."""
        return sum(trial.status.state != "waiting" or trial.status.run_id is not None for trial in self.trials)

    @property
    def num_asked(self) -> int:
        """Trials that the study was to have, or more if it has them."""
        return max(self.config.search.trials, self.num_begun)

    @property
    def on_gpu(self) -> bool:
        """Whether trials ran on CUDA."""
        return bool(self.environment.get("environment.cuda"))

    @property
    def best_metrics(self) -> dict[str, float]:
        """All metrics of the best trial at its best epoch."""
        search = self.config.search
        return {} if self.best is None else self.best.metrics_at_best(search.metric, search.direction)


def read_findings(store: Path, name: str) -> Findings:
    """Read a study. Raises StoreError: no such store or study, or a broken file in it."""
    store = find_store(store, name)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, config, facts = load_stored_study(open_storage(store), name)
    sweep = find_sweep(store, name)
    status = build_status(study, config, live=sweep.live if sweep else False)
    trials = tuple(_read_trial(store, trial) for trial in status.trials)
    return Findings(
        store=store,
        status=status,
        config=config,
        facts=facts,
        trials=trials,
        promotion=_read_promotion(store, study.user_attrs.get(PROMOTIONS, [])),
        finalists=find_decided(store, study, config),
        crossval=read_last_crossval(store, study.user_attrs, config.search.metric, config.search.direction),
        importance=measure_importance(status.trials, config.search.space, config.search.direction),
        environment=_read_environment(trials),
        is_live=sweep is not None,
        made_at=time.time(),
    )


def _read_trial(store: Path, status: TrialStatus) -> TrialRecord:
    if status.run_id is None:
        return TrialRecord(status, (), None)
    folder = run_folder(store, status.run_id)
    return TrialRecord(status, tuple(read_records(folder)[0]), folder)


def _read_promotion(store: Path, entries: list[dict[str, Any]]) -> PromotionRecord | None:
    """Return the last complete promotion, or the last one where none is complete."""
    found = [_describe_promotion(store, entry) for entry in entries]
    complete = [promotion for promotion in found if promotion.outcome == "complete"]
    return (complete or found)[-1] if found else None


def _describe_promotion(store: Path, entry: dict[str, Any]) -> PromotionRecord:
    folder = run_folder(store, entry["run_id"])
    status = read_status(folder)
    height, width = entry["config"]["data"]["size"]
    return PromotionRecord(
        name=entry["name"],
        trial=entry["trial"],
        outcome=status.outcome if status else "unfinished",
        message=status.message if status else "",
        finalists=entry.get("finalists"),
        records=tuple(read_records(folder)[0]),
        folder=folder,
        size=(height, width),
        epochs=entry["config"]["training"]["epochs"],
        ground=_name_ground(ImageSet.model_validate(entry["config"]["validation_set"])),
        stages=read_stages(store, entry),
    )


def _name_ground(images: ImageSet) -> str:
    return "all of val" if images.describe() == "val" else images.describe()


def _read_environment(trials: tuple[TrialRecord, ...]) -> dict[str, Any]:
    """Return the params of the latest trial that wrote any."""
    for trial in reversed(trials):
        params = read_json(trial.folder / PARAMS) if trial.folder else None
        if params and any(key.startswith("environment.") for key in params):
            return params
    return {}
