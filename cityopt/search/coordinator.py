"""The coordinator: ask, dispatch, report, prune, tell, for the trials of one study that it owns.

On SQLite it owns them all, on PostgreSQL those that it has leases for (`ownership.py`).

The order of writes makes a kill at any moment harmless. A trial's MLflow run exists before its folder; its
metrics are on disk before Optuna hears of them; its end is in the folder (`status.json`) before Optuna is
told, and Optuna is told before MLflow shows it. What the next start finds half done, it finishes.
"""

import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder
from cityopt.dimension import Scalar
from cityopt.errors import CityoptError, ConfigError, DataError, StoreError, WeightsError
from cityopt.search.agenda import Agenda
from cityopt.search.attempts import RunningTrial, count_attempt, forgive_attempt, note_progress
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
from cityopt.search.ledger import AWAY, Ledger
from cityopt.search.micro_batches import apply_retry, plan_retry
from cityopt.search.observer import Observer, Standing
from cityopt.search.ownership import LeaseLostError, Ownership, SoleOwner
from cityopt.search.pretrained import check_searched_weights
from cityopt.search.pruning import RungPruner
from cityopt.search.reconciliation import end_stragglers, reconcile
from cityopt.search.requests import Request, Requests, open_requests
from cityopt.search.retries import enqueue_failed
from cityopt.search.scorekeeping import Scorekeeper
from cityopt.search.space import build_trial_config, sample_settings
from cityopt.search.status import RUN_ID
from cityopt.search.storage import name_cause
from cityopt.search.trial_run import TrialRuns
from cityopt.services import name_storage
from cityopt.store import run_folder
from cityopt.tracking.curves import sum_seconds
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import (
    FULL,
    Status,
    Tracker,
    read_attempt,
    read_records,
    tolerating_full_disk,
)

STOPS_STUDY: dict[str, type[CityoptError]] = {"data": DataError, "config": ConfigError}
"""Reasons that would fail every trial."""

_PARTING_S = 10.0
"""How long MLflow may take to hear what is left, before others go on with it."""
_KEPT = "The study stops and keeps its trial: once that is mended, the same command goes on."


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
        parent: Tracker,
        ownership: Ownership | None = None,
        requests: Requests | None = None,
    ) -> None:
        self.store, self.study, self.config, self.facts, self.device = store, study, config, facts, device
        self.executor, self.mlflow, self.shipper, self.observer = executor, mlflow, shipper, observer
        self.interrupt = Interrupt(observer)
        self.keeper = Scorekeeper(
            store, study, config, mlflow=mlflow, shipper=shipper, observer=observer, parent=parent
        )
        self.budget = self.keeper.budget
        self.ownership = ownership or SoleOwner()
        self.ledger = Ledger(self.ownership, observer.say)
        self.requests = requests or open_requests(store, study)
        self._runs = TrialRuns(mlflow, shipper, config.name, facts, self.ownership, observer.say)
        self._streak = FailureStreak(config.search.max_failures)
        self._running: dict[str, RunningTrial] = {}
        self.agenda = Agenda(self.keeper, executor, self.ownership)
        self._postponed: list[JobEnded] = []
        """Ends that cannot be understood before the studies' database is back."""
        self._next_survey = 0.0

    @property
    def standing(self) -> Standing:
        """The score board."""
        return self.keeper.standing

    def run(self) -> None:
        """Finish what an earlier coordinator left, then run trials to the end.

        Raises DataError or ConfigError when a trial failed for a reason that would fail every other, StudyError when
        too many failed in a row, StoreError when the disk is full or the studies' database is away for too long.
        """
        try:
            with self.interrupt:
                self.agenda.waiting = reconcile(self.keeper, self.executor, self.ownership)
                self.observer.begin_study(self.standing)
                self.ledger.ask(lambda: self.requests.obey(self._obey), False)
                while not self._is_over() and self._has_work():
                    for event in self.executor.poll(0.2):
                        self._handle(event)
                    self._look_around()
            self.ledger.ask(self._close, None)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise StoreError(f"{self.store}: {error.strerror}. {_KEPT}") from error
        except (StorageInternalError, DBAPIError) as error:
            raise StoreError(f"{name_storage(self.store)} cannot be written: {name_cause(error)}. {_KEPT}") from error
        finally:
            with tolerating_full_disk(), suppress(*AWAY):  # the next start does without these notes
                self._leave_running()

    def _look_around(self) -> None:
        """Catch up with the studies' database, with what others ask for, and with other coordinators."""
        self.ledger.catch_up()
        if self._postponed and not self.ledger.is_away:
            self._handle(self._postponed.pop(0))
        self._drop_lost()
        if self.ledger.is_away:
            return
        self.ledger.ask(lambda: self.requests.obey(self._obey), False)
        if time.monotonic() >= self._next_survey:
            self._next_survey = time.monotonic() + self.ownership.look_interval_s
            self.ledger.ask(self._survey, None)

    def _survey(self) -> None:
        self.agenda.survey(self._in_hand)
        self._count()

    def _close(self) -> None:
        """Leave the study as it is to be seen, if no other coordinator goes on with it."""
        if self.ownership.is_last():
            self.shipper.drain(_PARTING_S)
            own = self._in_hand | {trial.number for trial in self.agenda.waiting}
            running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            with suppress(StoreError):  # MLflow is away: the next start ends them
                open_runs = self.mlflow.list_running(self.config.name)
                end_stragglers(self.keeper, open_runs, going_on=[t for t in running if t.number in own])
        self.keeper.describe_study(is_last=True)

    def _fill_slots(self) -> bool:
        """Start trials on free slots; say whether there is anything left to wait for, were it a slot."""
        while self.agenda.is_due and not self.ledger.is_away:
            if not self.executor.num_free:
                if self.agenda.has_more(self._in_hand):
                    return True
                break
            found = self.ledger.ask(lambda: self.agenda.find_next(self._in_hand), None)
            if found is None:
                break
            self.ledger.ask(partial(self._start_owned, *found), None)
        return bool(self._running) or self.ledger.is_away or self.ledger.ask(self.agenda.watches_others, True)

    def _has_work(self) -> bool:
        """Fill the slots; where nothing is left, look whether somebody asked for more before the sweep ends."""
        if self._fill_slots():
            return True
        has_more = self.ledger.ask(lambda: self.requests.obey(self._obey, at_once=True), True)
        return has_more and not self.interrupt.is_set and self._fill_slots()

    def _is_over(self) -> bool:
        """Say whether to leave what is running to the next sweep."""
        if self.budget.is_over and not self.interrupt.is_set:
            if self._running or self.agenda.waiting:
                self.observer.say("--max-hours are up: the trials at work go on with the next sweep.")
            elif self.agenda.count_begun(self._in_hand) < self.standing.trials:
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
    def _in_hand(self) -> set[int]:
        """Numbers of the trials that this coordinator is at."""
        return {running.trial.number for running in self._running.values()} | self.ledger.waiting

    def _start_owned(self, trial: optuna.Trial, resumed: bool) -> None:
        try:
            with self.ownership.writing(trial.number):
                self._start(trial, resumed=resumed)
        except LeaseLostError:
            self.ledger.lose(trial.number)
        except AWAY:
            self.agenda.waiting.insert(0, trial)
            raise

    def _start(self, trial: optuna.Trial, *, resumed: bool) -> None:
        settings = sample_settings(trial, self.config.search.space)
        try:
            config = self._build_config(trial, settings)
        except ConfigError as error:  # each setting is valid, but not all of them together
            status = Status("failed", "config", str(error))
            self.keeper.tell(trial, status)
            self.ownership.release(trial.number)
            self._streak.take(trial.number, settings, status)
            return
        begun = RUN_ID in trial.user_attrs
        run_id = self._runs.open(trial, config, resumed=resumed)
        running = RunningTrial(trial, run_id, config, self.keeper.curves.setdefault(trial.number, {}))
        try:
            check_searched_weights(self.config, config.model)
        except WeightsError as error:
            self._end(running, Status("failed", "config", str(error)))
            return
        if resumed:
            records = read_records(self._folder(run_id))[0]
            running.num_done = max((record.step for record in records), default=0)
            if message := count_attempt(trial, max(running.reported, default=0), begun=begun):
                self._end(running, Status("failed", "crash", message, sum_seconds(records)))
                return
        running.token = uuid.uuid4().hex
        self._running[run_id] = running
        self.budget.start(trial.number, config.training.epochs)
        self.shipper.watch(run_id, self._folder(run_id))
        self.executor.submit(Job(run_id, self._folder(run_id), running.token, config))
        self._count()
        self.observer.begin_run(config.name, settings, resumed=resumed)

    def _build_config(self, trial: optuna.Trial, settings: Mapping[str, Scalar]) -> RunConfig:
        cache, number = cache_folder(self.store), trial.number
        config = build_trial_config(self.config, self.facts, number, settings, device=self.device, cache=cache)
        return apply_retry(trial, config)

    def _handle(self, event: Event) -> None:
        if isinstance(event, WorkerReady):
            self.observer.say(f"worker ready on {event.device} with {self.facts.threads} threads")
            return
        if isinstance(event, Noticed):
            self.observer.say(event.message)
            return
        running = self._running.get(event.run_id)
        if running is None:
            return
        if isinstance(event, Progressed):
            self.observer.show_progress(running.config.name, event.progress)
        elif isinstance(event, EpochDone):
            self._report(running, event)
        elif not self.ledger.ask(lambda: self._take_end(running, event), False):
            self._postponed.append(event)

    def _report(self, running: RunningTrial, event: EpochDone) -> None:
        """Tell Optuna an epoch's value and answer the worker. An epoch that was told before is only judged again."""
        epochs = running.config.training.epochs
        self.budget.take_epoch(running.trial.number, event.metrics.get("system/epoch_s", 0.0))
        if event.epoch not in running.reported:
            value = running.reported[event.epoch] = event.metrics[self.config.search.metric]
            self.ledger.write(running.trial.number, lambda: running.trial.report(value, event.epoch))
        elif event.epoch > running.num_done:
            running.num_done = epochs  # once is enough
            self.ledger.write(running.trial.number, lambda: note_progress(running.trial))
        stop = event.epoch < epochs and self._is_pruned(running, event.epoch)
        self.executor.answer(event.run_id, "stop" if stop else "continue")
        self.observer.show_epoch(running.config.name, event.epoch, epochs, event.metrics)

    def _is_pruned(self, running: RunningTrial, epoch: int) -> bool:
        pruner = self.study.pruner
        if isinstance(pruner, RungPruner):
            return pruner.stops(running.trial.number, epoch, self.keeper.curves, maximize=self.keeper.maximize)
        return not self.ledger.is_away and self.ledger.ask(running.trial.should_prune, False)

    def _end(self, running: RunningTrial, status: Status) -> None:
        """End a trial. Raises StudyError when too many failed in a row."""
        status = self.keeper.write_down(running.run_id, status)
        self.ledger.write(running.trial.number, lambda: self._conclude(running, status))
        self._streak.take(running.trial.number, running.trial.params, status)

    def _conclude(self, running: RunningTrial, status: Status) -> None:
        self.keeper.conclude(running.trial, running.run_id, status)
        self.ownership.release(running.trial.number)

    def _take_end(self, running: RunningTrial, event: JobEnded) -> bool:
        """Do what follows from the end of a job. True: it is done."""
        try:
            size = self._plan_retry(running, event)
        except LeaseLostError:
            self.ledger.lose(running.trial.number)
            return True
        del self._running[running.run_id]
        self.agenda.look_soon()
        if event.outcome == "lost" or event.reason == "oom":
            self.budget.leave(running.trial.number)
        if event.outcome == "lost":
            if event.reason == NEVER_BEGAN:
                self.ledger.write(running.trial.number, lambda: forgive_attempt(running.trial))
            self.observer.say(f"{running.config.name}: {event.message}; it is tried again from its last epoch.")
            self.agenda.waiting.insert(0, running.trial)
        elif event.reason == "disk":  # says nothing about the trial, and would fail every other
            self._running[running.run_id] = running
            raise StoreError(f"{running.config.name}: {event.message} {_KEPT}")
        elif size is not None:
            self.observer.say(f"{running.config.name}: {event.message}; it is tried again with {size} images at once.")
            self.agenda.waiting.insert(0, running.trial)
        elif event.outcome == "failed":
            seconds = sum_seconds(read_records(self._folder(running.run_id))[0])
            self._end(running, Status("failed", event.reason, event.message, seconds))
            if event.reason in STOPS_STUDY:
                raise STOPS_STUDY[event.reason](f"{running.config.name}: {event.message}")
        else:
            outcome: Literal["complete", "pruned"] = "complete" if event.outcome == "complete" else "pruned"
            self._end(running, Status(outcome, seconds=float(event.result["seconds"])))
        return True

    def _plan_retry(self, running: RunningTrial, event: JobEnded) -> int | None:
        """Return with how many images at once a run that ran out of memory is tried again, None for all others."""
        attempt = read_attempt(self._folder(running.run_id))
        if attempt is not None and attempt.token != running.token:  # another coordinator is at it, in the same store
            raise LeaseLostError(running.trial.number)
        if event.reason != "oom":
            return None
        with self.ownership.writing(running.trial.number):
            return plan_retry(running.trial, running.config.training, event.peak_gib)

    def _drop_lost(self) -> None:
        """Let go of trials that are another coordinator's: their workers end, and nothing is written about them."""
        for number in self.ledger.take_lost():
            self.observer.say(f"Trial {number} is another coordinator's: this one gave no sign of life for too long.")
            self.agenda.drop(number)
            for running in [running for running in self._running.values() if running.trial.number == number]:
                del self._running[running.run_id]
                self.executor.abandon(running.run_id)
                self.shipper.forget(running.run_id)
                self.budget.leave(number)

    def _leave_running(self) -> None:
        """Leave trials that are still running to the next start; in MLflow nothing stays RUNNING meanwhile."""
        if self._running or self.agenda.waiting:
            self.executor.close()
        left = {running.run_id for running in self._running.values()}
        left |= {str(trial.user_attrs[RUN_ID]) for trial in self.agenda.waiting if RUN_ID in trial.user_attrs}
        for run_id in left:
            self.shipper.end(run_id, "KILLED", {"cityopt.state": "interrupted"})
        for running in self._running.values():
            with suppress(LeaseLostError), self.ownership.writing(running.trial.number):
                forgive_attempt(running.trial)
        self.ownership.hand_over(lambda: self._stop_shipping(left))

    def _stop_shipping(self, run_ids: set[str]) -> None:
        """Let MLflow have runs as they are before others go on with them."""
        self.shipper.drain(_PARTING_S)
        for run_id in run_ids:
            self.shipper.forget(run_id)

    def _count(self) -> None:
        self.standing.counts["running"] = len(self._running) + len(self.agenda.elsewhere)

    def _folder(self, run_id: str) -> Path:
        return run_folder(self.store, run_id)
