"""The coordinator: ask, dispatch, report, prune, tell, for one study that it alone writes.

The order of writes makes a kill at any moment harmless. A trial's MLflow run exists before its folder; its
metrics are on disk before Optuna hears of them; its end is in the folder (`status.json`) before Optuna is
told, and Optuna is told before MLflow shows it. What the next start finds half done, it finishes.
"""

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder
from cityopt.dimension import Scalar
from cityopt.errors import CityoptError, ConfigError, DataError, StoreError, WeightsError
from cityopt.search.executors.base import (
    NEVER_BEGAN,
    EpochDone,
    Event,
    Executor,
    Job,
    JobEnded,
    Progressed,
    WorkerReady,
)
from cityopt.search.facts import StudyFacts
from cityopt.search.interrupts import Interrupt
from cityopt.search.note import NoteClock, describe_study
from cityopt.search.observer import Observer, Standing, TrialState
from cityopt.search.pretrained import check_searched_weights
from cityopt.search.pruning import RungPruner
from cityopt.search.space import build_trial_config, sample_settings
from cityopt.search.status import ENDING, RUN_ID, build_status, describe_trials, find_best_reported
from cityopt.search.study import name_cause
from cityopt.search.tags import describe_data, describe_run
from cityopt.store import run_folder
from cityopt.tracking.curves import sum_seconds
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore, RunEnd
from cityopt.tracking.run_folder import (
    FULL,
    LAST,
    NOTE,
    RunFolder,
    Status,
    read_records,
    read_status,
    tolerating_full_disk,
    write_atomically,
    write_dataset,
    write_status,
)

ATTEMPTS = "cityopt:attempts"
NO_ATTEMPT = {"number": 0, "epoch": 0, "stalled": 0}
FIRST_ATTEMPT = {"number": 1, "epoch": 0, "stalled": 1}
"""What stands for the first attempt at a trial, which is not written down: its run says that it began."""
MAX_STALLED = 3
"""Attempts without a finished epoch after which a trial that kills its worker fails."""
OPTUNA_SEES_PRUNED = ("nan", "oom")
"""Reasons that tell something about the settings: Optuna hears `pruned` with a violated constraint."""
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
    ) -> None:
        self.store, self.study, self.config, self.facts, self.device = store, study, config, facts, device
        self.executor, self.mlflow, self.shipper, self.observer = executor, mlflow, shipper, observer
        self.interrupt = Interrupt(observer)
        self.standing = Standing(config.name, config.search.metric, config.search.trials)
        self._maximize = config.search.direction == "maximize"
        self._running: dict[str, RunningTrial] = {}
        self._adopted: list[optuna.Trial] = []
        self._found_running: set[int] = set()
        self._curves: dict[int, dict[int, float]] = {}
        """What every trial reported, by epoch: to read it from the database each time costs more than a report."""
        self._parent: RunFolder | None = None
        self._note_clock = NoteClock()

    def run(self, parent: RunFolder) -> None:
        """Finish what an earlier coordinator left, then run trials to the end.

        Raises DataError or ConfigError when a trial failed for a reason that would fail every other, StoreError when
        the disk is full.
        """
        self._parent = parent
        try:
            with self.interrupt:
                self._reconcile()
                self.observer.begin_study(self.standing)
                while not self.interrupt.is_set and self._fill_slots():
                    for event in self.executor.poll(0.2):
                        self._handle(event)
            self._describe_study(is_last=True)
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
        """Start trials on free slots; say whether there is anything left to wait for."""
        while self.executor.num_free and (self._adopted or self._num_begun < self.standing.trials):
            if self._adopted:
                self._start(self._adopted.pop(0), resumed=True)
            else:
                self._start(self.study.ask(), resumed=False)
        return bool(self._running)

    @property
    def _num_begun(self) -> int:
        return self.standing.num_ended + len(self._running) + len(self._adopted)

    def _start(self, trial: optuna.Trial, *, resumed: bool) -> None:
        settings = sample_settings(trial, self.config.search.space)
        try:
            config = self._build_config(trial.number, settings)
        except ConfigError as error:  # each setting is valid, but not all of them together
            self._tell(trial, Status("failed", "config", str(error)))
            return
        begun = RUN_ID in trial.user_attrs
        run_id = self._open_run(trial, config, settings)
        running = RunningTrial(trial, run_id, config, self._curves.setdefault(trial.number, {}))
        try:
            check_searched_weights(self.config, config.model)
        except WeightsError as error:
            self._end(running, Status("failed", "config", str(error)))
            return
        if resumed and not self._may_try(running, begun=begun):
            self._end(running, Status("failed", "crash", f"{MAX_STALLED} attempts ended without a finished epoch"))
            return
        self._running[run_id] = running
        self.shipper.watch(run_id, self._folder(run_id))
        self.executor.submit(Job(run_id, self._folder(run_id), uuid.uuid4().hex, config))
        self._count()
        self.observer.begin_run(config.name, settings, resumed=resumed)

    def _build_config(self, number: int, settings: Mapping[str, Scalar]) -> RunConfig:
        cache = cache_folder(self.store)
        return build_trial_config(self.config, self.facts, number, settings, device=self.device, cache=cache)

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
            run_id = self.mlflow.create_run(self.config.name, config.name, "trial", tags)
        if RUN_ID not in trial.user_attrs:
            write_dataset(self._folder(run_id), self.config.name, self.facts.subset_hash, self.facts.root)
            trial.set_user_attr(RUN_ID, run_id)
        return run_id

    def _may_try(self, running: RunningTrial, *, begun: bool) -> bool:
        """Count an attempt at a trial that has `begun` or not; False after too many that did not finish an epoch."""
        epoch = max(running.reported, default=0)
        seen = self._freeze(running.trial).user_attrs.get(ATTEMPTS, FIRST_ATTEMPT if begun else NO_ATTEMPT)
        stalled = seen["stalled"] + 1 if seen["epoch"] == epoch else 1
        running.trial.set_user_attr(ATTEMPTS, {"number": seen["number"] + 1, "epoch": epoch, "stalled": stalled})
        return stalled <= MAX_STALLED

    def _forgive_attempt(self, trial: optuna.Trial) -> None:
        """Take back the count of an attempt that was stopped from outside: it says nothing against the trial."""
        seen: Mapping[str, int] = self._freeze(trial).user_attrs.get(ATTEMPTS, FIRST_ATTEMPT)
        trial.set_user_attr(ATTEMPTS, {**seen, "stalled": seen["stalled"] - 1})

    def _handle(self, event: Event) -> None:
        if isinstance(event, WorkerReady):
            self.observer.say(f"worker ready on {event.device} with {self.facts.threads} threads")
        elif isinstance(event, Progressed) and event.run_id in self._running:
            self.observer.show_progress(self._running[event.run_id].config.name, event.progress)
        elif isinstance(event, EpochDone) and event.run_id in self._running:
            self._report(self._running[event.run_id], event)
        elif isinstance(event, JobEnded) and event.run_id in self._running:
            self._take_end(self._running.pop(event.run_id), event)

    def _report(self, running: RunningTrial, event: EpochDone) -> None:
        """Tell Optuna an epoch's value and answer the worker. An epoch that was told before is only judged again."""
        epochs = running.config.training.epochs
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
            return pruner.stops(running.trial.number, epoch, self._curves, maximize=self._maximize)
        return running.trial.should_prune()

    def _take_end(self, running: RunningTrial, event: JobEnded) -> None:
        if event.outcome == "lost":
            if event.reason == NEVER_BEGAN:
                self._forgive_attempt(running.trial)
            self.observer.say(f"{running.config.name}: {event.message}; it is tried again from its last epoch.")
            self._adopted.insert(0, running.trial)
        elif event.reason == "disk":  # says nothing about the trial, and would fail every other
            self._running[running.run_id] = running
            raise StoreError(f"{running.config.name}: {event.message} {_KEPT}")
        elif event.outcome == "failed":
            seconds = sum_seconds(read_records(self._folder(running.run_id))[0])
            self._end(running, Status("failed", event.reason, event.message, seconds))
            if event.reason in STOPS_STUDY:
                raise STOPS_STUDY[event.reason](f"{running.config.name}: {event.message}")
        else:
            outcome: Literal["complete", "pruned"] = "complete" if event.outcome == "complete" else "pruned"
            self._end(running, Status(outcome, seconds=float(event.result["seconds"])))

    def _end(self, running: RunningTrial, status: Status) -> None:
        """End a trial: first in its folder, then in Optuna, then in MLflow."""
        write_status(self._folder(running.run_id), status)
        self._conclude(running.trial, running.run_id, status)

    def _conclude(self, trial: optuna.Trial, run_id: str, status: Status) -> None:
        """Do what is left to do when the folder says how a trial ended: nobody goes on from its last epoch now."""
        (self._folder(run_id) / LAST).unlink(missing_ok=True)
        self._tell(trial, status)
        end_shipping(self.shipper, run_id, status)

    def _tell(self, trial: optuna.Trial, status: Status) -> None:
        ending = {"state": status.outcome, **{k: v for k, v in asdict(status).items() if k != "outcome"}}
        trial.set_user_attr(ENDING, ending)
        value = find_best_reported(self._curves.get(trial.number, {}).values(), self._maximize)
        if status.outcome == "complete" and value is not None:
            self.study.tell(trial, value)
        elif status.outcome == "pruned":
            self.study.tell(trial, state=OptunaState.PRUNED)
        elif status.reason in OPTUNA_SEES_PRUNED:
            if status.reason not in trial.constraints:
                trial.set_constraint(status.reason, 1.0)
            self.study.tell(trial, state=OptunaState.PRUNED)
        else:
            self.study.tell(trial, state=OptunaState.FAIL)
        self._take_note(trial.number, status, value)

    def _take_note(self, number: int, status: Status, value: float | None) -> None:
        state: TrialState = status.outcome
        self.standing.counts[state] += 1
        is_best = state == "complete" and value is not None and self._is_better(value)
        if is_best:
            self.standing.best_number, self.standing.best_value = number, value
        self._count()
        self._log_best(number)
        self._describe_study()
        shown = None if state == "failed" else value
        self.observer.end_run(f"trial-{number:04d}", state, shown, status.reason, is_best=is_best)
        if status.message:
            self.observer.say(f"  {status.message}")

    def _log_best(self, number: int) -> None:
        """Let the parent run show the best score as it climbs, one point per ended trial."""
        if self._parent is not None and self.standing.best_value is not None:
            self._parent.log_metrics({f"best/{self.config.search.metric}": self.standing.best_value}, step=number)

    def _describe_study(self, *, is_last: bool = False) -> None:
        """Write the leaderboard as the parent run's description."""
        if self._parent is not None and (is_last or self._note_clock.is_due()):
            status = build_status(self.study, self.config, live=not is_last)
            text = describe_study(status, self.mlflow.open_experiment(self.config.name))
            write_atomically(self._parent.folder / NOTE, text.encode())

    def _is_better(self, value: float) -> bool:
        best = self.standing.best_value
        return best is None or (value > best if self._maximize else value < best)

    def _reconcile(self) -> None:
        """Finish what an earlier coordinator left half done; trials that it left running are taken up again."""
        trials = describe_trials(self.study, live=False)
        for found in trials:
            if found.state in ("complete", "pruned", "failed"):
                self.standing.counts[found.state] += 1
            if found.state == "complete" and found.value is not None and self._is_better(found.value):
                self.standing.best_number, self.standing.best_value = found.number, found.value
            if found.state in ("complete", "pruned", "failed"):
                self._log_best(found.number)
        running = self.study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        self._found_running = {frozen.number for frozen in running}
        self._curves = {t.number: dict(t.intermediate_values) for t in self.study.get_trials(deepcopy=False)}
        for frozen in running:
            self._adopt(frozen)
        self._count()
        self._end_stragglers()
        self.shipper.catch_up(self.config.name)

    def _adopt(self, frozen: FrozenTrial) -> None:
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        run_id = frozen.user_attrs.get(RUN_ID)
        status = read_status(self._folder(run_id)) if run_id else None
        if run_id:
            self.executor.end_survivor(self._folder(run_id))
            self._report_forgotten(trial, frozen, self._folder(run_id))
        if status is None:
            self._adopted.append(trial)
        else:
            self._conclude(trial, str(run_id), status)

    def _report_forgotten(self, trial: optuna.Trial, frozen: FrozenTrial, folder: Path) -> None:
        """Tell Optuna the epochs that the folder has and it lacks: a power cut may take a database's last commits."""
        metric = self.config.search.metric
        for record in read_records(folder)[0]:
            if metric in record.metrics and record.step not in frozen.intermediate_values:
                trial.report(record.metrics[metric], record.step)
                self._curves[trial.number][record.step] = record.metrics[metric]

    def _end_stragglers(self) -> None:
        """End MLflow runs that are RUNNING though their trial has ended, or never heard of them."""
        mine: set[str | None] = {trial.user_attrs.get(RUN_ID) for trial in self._adopted}
        mine |= {self.mlflow.find_run(self.config.name, f"trial-{trial.number:04d}") for trial in self._adopted}
        for run_id in self.mlflow.list_running(self.config.name):
            if run_id in mine:
                continue
            status = read_status(self._folder(run_id))
            if self._parent is not None and self._parent.folder.name == run_id:
                continue
            if status is not None:
                end_shipping(self.shipper, run_id, status)
            else:
                self.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})

    def _leave_running(self) -> None:
        """Leave trials that are still running to the next start; in MLflow nothing stays RUNNING meanwhile."""
        if self._running or self._adopted:
            self.executor.close()
        left = {running.run_id for running in self._running.values()}
        left |= {str(trial.user_attrs[RUN_ID]) for trial in self._adopted if RUN_ID in trial.user_attrs}
        for run_id in left:
            self.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})
        for running in self._running.values():
            self._forgive_attempt(running.trial)

    def _count(self) -> None:
        self.standing.counts["running"] = len(self._running)

    def _freeze(self, trial: optuna.Trial) -> FrozenTrial:
        return self.study._storage.get_trial(trial._trial_id)

    def _folder(self, run_id: str) -> Path:
        return run_folder(self.store, run_id)


def end_shipping(shipper: Shipper, run_id: str, status: Status) -> None:
    """Give a run its end in MLflow, after all that its folder holds."""
    ends: Mapping[Literal["complete", "pruned", "failed"], RunEnd] = {
        "complete": "FINISHED",
        "pruned": "KILLED",
        "failed": "FAILED",
    }
    tags: dict[str, object] = {"cityopt.state": status.outcome}
    if status.reason:
        tags |= {"cityopt.reason": status.reason, "cityopt.message": status.message}
    shipper.end(run_id, ends[status.outcome], tags)
