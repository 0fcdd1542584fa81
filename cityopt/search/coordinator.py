"""The coordinator: ask, dispatch, report, prune, tell, for one study that it alone writes.

The order of writes makes a kill at any moment harmless. A trial's MLflow run exists before its folder; its
metrics are on disk before Optuna hears of them; its end is in the folder (`status.json`) before Optuna is
told, and Optuna is told before MLflow shows it. What the next start finds half done, it finishes.
"""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder
from cityopt.dimension import Scalar
from cityopt.errors import CityoptError, ConfigError, DataError, StoreError, WeightsError
from cityopt.search.attempts import MAX_STALLED, forgive_attempt, may_try
from cityopt.search.executors.base import (
    NEVER_BEGAN,
    EpochDone,
    Event,
    Executor,
    Job,
    JobEnded,
    Noticed,
    Progressed,
    WorkerReady,
)
from cityopt.search.facts import StudyFacts
from cityopt.search.failures import FailureStreak
from cityopt.search.interrupts import Interrupt
from cityopt.search.micro_batches import apply_retry, plan_retry
from cityopt.search.observer import Observer, Standing
from cityopt.search.pretrained import check_searched_weights
from cityopt.search.pruning import RungPruner
from cityopt.search.reconciliation import reconcile
from cityopt.search.requests import Request, RequestBox
from cityopt.search.retries import enqueue_failed
from cityopt.search.scorekeeping import Scorekeeper
from cityopt.search.space import build_trial_config, sample_settings
from cityopt.search.status import RETRY_OF, RUN_ID
from cityopt.search.storage import name_cause
from cityopt.search.tags import describe_data, describe_run
from cityopt.store import run_folder
from cityopt.tracking.curves import sum_seconds
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import (
    FULL,
    RunFolder,
    Status,
    read_records,
    tolerating_full_disk,
    write_dataset,
)

STOPS_STUDY: dict[str, type[CityoptError]] = {"data": DataError, "config": ConfigError}
"""Reasons that would fail every trial."""

_KEPT = "The study stops and keeps its trial: once that is mended, the same command goes on."


@dataclass(slots=True)
class RunningTrial:
    """A trial in a worker's hands."""

    trial: optuna.Trial
    run_id: str
    config: RunConfig
    reported: dict[int, float]
    """The values that Optuna has heard of, by epoch."""


class Coordinator:
    """Runs a study's trials until there are `trials` of them, or until it is told to stop."""

    def __init__(
        self,
        *,
        store: Path,
        study: optuna.Study,
        config: StudyConfig,
        facts: StudyFacts,
        device: str,
        executor: Executor,
        mlflow: MlflowStore,
        shipper: Shipper,
        observer: Observer,
        parent: RunFolder,
    ) -> None:
        self.store, self.study, self.config, self.facts, self.device = store, study, config, facts, device
        self.executor, self.mlflow, self.shipper, self.observer = executor, mlflow, shipper, observer
        self.interrupt = Interrupt(observer)
        self.keeper = Scorekeeper(
            store, study, config, mlflow=mlflow, shipper=shipper, observer=observer, parent=parent
        )
        self.budget = self.keeper.budget
        self.requests = RequestBox(store, config.name)
        self._streak = FailureStreak(config.search.max_failures)
        self._running: dict[str, RunningTrial] = {}
        self._adopted: list[optuna.Trial] = []
        self._found_running: set[int] = set()

    @property
    def standing(self) -> Standing:
        """The score board."""
        return self.keeper.standing

    def run(self) -> None:
        """Finish what an earlier coordinator left, then run trials to the end.

        Raises DataError or ConfigError when a trial failed for a reason that would fail every other, StudyError when
        too many failed in a row, StoreError when the disk is full.
        """
        try:
            with self.interrupt:
                self._adopted = reconcile(self.keeper, self.executor)
                self._found_running = {trial.number for trial in self._adopted}
                self.observer.begin_study(self.standing)
                self.requests.obey(self._obey)
                while not self._is_over() and self._has_work():
                    for event in self.executor.poll(0.2):
                        self._handle(event)
                    self.requests.obey(self._obey)
            self.keeper.describe_study(is_last=True)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise StoreError(f"{self.store}: {error.strerror}. {_KEPT}") from error
        except StorageInternalError as error:
            raise StoreError(f"{self.store / 'optuna.db'} cannot be written: {name_cause(error)}. {_KEPT}") from error
        finally:
            with tolerating_full_disk(), suppress(StorageInternalError):  # the next start does without these notes
                self._leave_running()

    def _fill_slots(self) -> bool:
        """Start trials on free slots; say whether there is anything left to wait for, were it a slot."""
        while self._adopted or self._num_begun < self.standing.trials:
            if not self.executor.num_free:
                return True
            if self._adopted:
                self._start(self._adopted.pop(0), resumed=True)
            elif objection := self.budget.find_objection():
                if not self._running:
                    self.observer.say(f"No more trials: {objection}.")
                break
            else:
                self._start(self.study.ask(), resumed=False)
        return bool(self._running)

    def _has_work(self) -> bool:
        """Fill the slots; where nothing is left, look whether somebody asked for more before the sweep ends."""
        if self._fill_slots():
            return True
        has_more = self.requests.obey(self._obey, at_once=True)
        return has_more and not self.interrupt.is_set and self._fill_slots()

    def _is_over(self) -> bool:
        """Say whether to leave what is running to the next sweep."""
        if self.budget.is_over and not self.interrupt.is_set:
            if self._running or self._adopted:
                self.observer.say("--max-hours are up: the trials at work go on with the next sweep.")
            elif self._num_begun < self.standing.trials:
                self.observer.say("--max-hours are up: no more trials.")
            return True
        return self.interrupt.is_set

    def _obey(self, request: Request) -> None:
        """Do what another command asks for."""
        if request.verb == "stop":
            self.observer.say("Asked to stop: what is finished is kept.")
            self.interrupt.is_set = True
        else:
            numbers = enqueue_failed(self.study, request.reason)
            self.standing.superseded += len(numbers)
            self.observer.say(f"Asked to try failed trials again ({request.reason}): {numbers or 'there are none'}.")

    @property
    def _num_begun(self) -> int:
        return self.standing.num_ended + len(self._running) + len(self._adopted)

    def _start(self, trial: optuna.Trial, *, resumed: bool) -> None:
        settings = sample_settings(trial, self.config.search.space)
        try:
            config = self._build_config(trial, settings)
        except ConfigError as error:  # each setting is valid, but not all of them together
            status = Status("failed", "config", str(error))
            self.keeper.tell(trial, status)
            self._streak.take(trial.number, settings, status)
            return
        begun = RUN_ID in trial.user_attrs
        run_id = self._open_run(trial, config, settings)
        running = RunningTrial(trial, run_id, config, self.keeper.curves.setdefault(trial.number, {}))
        try:
            check_searched_weights(self.config, config.model)
        except WeightsError as error:
            self._end(running, Status("failed", "config", str(error)))
            return
        if resumed and not may_try(trial, max(running.reported, default=0), begun=begun):
            seconds = sum_seconds(read_records(self._folder(run_id))[0])
            message = f"{MAX_STALLED} attempts ended without a finished epoch"
            self._end(running, Status("failed", "crash", message, seconds))
            return
        self._running[run_id] = running
        self.budget.start(trial.number, config.training.epochs)
        self.shipper.watch(run_id, self._folder(run_id))
        self.executor.submit(Job(run_id, self._folder(run_id), uuid.uuid4().hex, config))
        self._count()
        self.observer.begin_run(config.name, settings, resumed=resumed)

    def _build_config(self, trial: optuna.Trial, settings: Mapping[str, Scalar]) -> RunConfig:
        cache, number = cache_folder(self.store), trial.number
        config = build_trial_config(self.config, self.facts, number, settings, device=self.device, cache=cache)
        return apply_retry(trial, config)

    def _open_run(self, trial: optuna.Trial, config: RunConfig, settings: Mapping[str, Scalar]) -> str:
        """Return the trial's MLflow run, found again or made."""
        known = trial.user_attrs.get(RUN_ID) or (
            self.mlflow.find_run(self.config.name, config.name) if trial.number in self._found_running else None
        )
        if known:
            run_id = str(known)
            self.mlflow.reopen_run(run_id)
        else:
            tags = describe_data(self.facts) | describe_run(config) | {"cityopt.trial": trial.number}
            if RETRY_OF in trial.user_attrs:
                tags["cityopt.retry_of"] = trial.user_attrs[RETRY_OF]
            run_id = self.mlflow.create_run(self.config.name, config.name, "trial", tags)
        if RUN_ID not in trial.user_attrs:
            write_dataset(self._folder(run_id), self.config.name, self.facts.subset_hash, self.facts.root)
            trial.set_user_attr(RUN_ID, run_id)
        return run_id

    def _handle(self, event: Event) -> None:
        if isinstance(event, WorkerReady):
            self.observer.say(f"worker ready on {event.device} with {self.facts.threads} threads")
        elif isinstance(event, Noticed):
            self.observer.say(event.message)
        elif isinstance(event, Progressed) and event.run_id in self._running:
            self.observer.show_progress(self._running[event.run_id].config.name, event.progress)
        elif isinstance(event, EpochDone) and event.run_id in self._running:
            self._report(self._running[event.run_id], event)
        elif isinstance(event, JobEnded) and event.run_id in self._running:
            self._take_end(self._running.pop(event.run_id), event)

    def _report(self, running: RunningTrial, event: EpochDone) -> None:
        """Tell Optuna an epoch's value and answer the worker. An epoch that was told before is only judged again."""
        epochs = running.config.training.epochs
        self.budget.take_epoch(running.trial.number, event.metrics.get("system/epoch_s", 0.0))
        if event.epoch not in running.reported:
            value = event.metrics[self.config.search.metric]
            running.trial.report(value, event.epoch)
            running.reported[event.epoch] = value
        stop = event.epoch < epochs and self._is_pruned(running, event.epoch)
        self.executor.answer(event.run_id, "stop" if stop else "continue")
        self.observer.show_epoch(running.config.name, event.epoch, epochs, event.metrics)

    def _is_pruned(self, running: RunningTrial, epoch: int) -> bool:
        pruner = self.study.pruner
        if isinstance(pruner, RungPruner):
            return pruner.stops(running.trial.number, epoch, self.keeper.curves, maximize=self.keeper.maximize)
        return running.trial.should_prune()

    def _end(self, running: RunningTrial, status: Status) -> None:
        """End a trial. Raises StudyError when too many failed in a row."""
        self.keeper.end(running.trial, running.run_id, status)
        self._streak.take(running.trial.number, running.trial.params, status)

    def _take_end(self, running: RunningTrial, event: JobEnded) -> None:
        if event.outcome == "lost" or event.reason == "oom":
            self.budget.leave(running.trial.number)
        if event.outcome == "lost":
            if event.reason == NEVER_BEGAN:
                forgive_attempt(running.trial)
            self.observer.say(f"{running.config.name}: {event.message}; it is tried again from its last epoch.")
            self._adopted.insert(0, running.trial)
        elif event.reason == "disk":  # says nothing about the trial, and would fail every other
            self._running[running.run_id] = running
            raise StoreError(f"{running.config.name}: {event.message} {_KEPT}")
        elif event.reason == "oom" and (size := plan_retry(running.trial, running.config.training, event.peak_gib)):
            self.observer.say(f"{running.config.name}: {event.message}; it is tried again with {size} images at once.")
            self._adopted.insert(0, running.trial)
        elif event.outcome == "failed":
            seconds = sum_seconds(read_records(self._folder(running.run_id))[0])
            self._end(running, Status("failed", event.reason, event.message, seconds))
            if event.reason in STOPS_STUDY:
                raise STOPS_STUDY[event.reason](f"{running.config.name}: {event.message}")
        else:
            outcome: Literal["complete", "pruned"] = "complete" if event.outcome == "complete" else "pruned"
            self._end(running, Status(outcome, seconds=float(event.result["seconds"])))

    def _leave_running(self) -> None:
        """Leave trials that are still running to the next start; in MLflow nothing stays RUNNING meanwhile."""
        if self._running or self._adopted:
            self.executor.close()
        left = {running.run_id for running in self._running.values()}
        left |= {str(trial.user_attrs[RUN_ID]) for trial in self._adopted if RUN_ID in trial.user_attrs}
        for run_id in left:
            self.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})
        for running in self._running.values():
            forgive_attempt(running.trial)

    def _count(self) -> None:
        self.standing.counts["running"] = len(self._running)

    def _folder(self, run_id: str) -> Path:
        return run_folder(self.store, run_id)
