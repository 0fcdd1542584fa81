"""Cross-validation of a study's best settings: a training per fold -> mean ± std -> a model on all training images.

Every fold trains with the same settings, preprocessing and seed on its own images, keeps the epoch that is best on its
validation side by the study's objective, and is a run of its own (kind `fold`). The run that sums up (kind `crossval`)
has mean and sample standard deviation of every metric. The final model (kind `final`) trains on all training images, on
the same schedule, and stops after the mean of the folds' best epochs: so the folds chose how long to train, and val
judges once and chooses nothing. Whatever is killed goes on with the same command, in the folds and epochs it was in.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig
from cityopt.errors import ConfigError
from cityopt.image_set import ImageSet
from cityopt.runtime import share_threads
from cityopt.search.crossval_plan import (
    Choice,
    Plan,
    begin_crossed,
    build_plan,
    check_judgeable,
    divide_survey,
    open_crossed,
)
from cityopt.search.crossval_result import CrossValidation, read_crossval, write_summary
from cityopt.search.executors.slots import plan_slots
from cityopt.search.facts import StudyFacts
from cityopt.search.final_model import FinalModel, build_final, read_final, train_final
from cityopt.search.ledger import explaining_outages
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.requests import RequestBox, open_requests
from cityopt.search.single import SingleTraining
from cityopt.search.study_lock import lock_study
from cityopt.search.sweep import naming_interrupts, open_executor
from cityopt.search.tags import describe_dataset, describe_run
from cityopt.settings import replace_section
from cityopt.store import open_store, run_folder
from cityopt.tracking.curves import pick_epoch
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.mlflow_restore import restore_runs
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Status, read_records, read_status, take_over, write_dataset
from cityopt.training.crossval import BLOCKS_REMARK, Division
from cityopt.training.dataset import open_set

CROSSVALS = "cityopt:crossvals"


def run_crossval(
    name: str,
    *,
    begin: Callable[[Mapping[str, Any]], StudyConfig],
    store: Path,
    data: str | None,
    settings: Mapping[str, Any],
    folds: int,
    blocks: bool,
    workers: int | None,
    per_device: int | None = None,
    final: bool,
    device: str,
    observer: Observer,
) -> CrossValidation:
    """Cross-validate a study's best settings, or go on with that.

    `begin` reads a study that is not in the store yet, with settings that are the study's own rather than a training's.

    Raises ConfigError (fewer than 2 folds, no worker, an impossible setting), StudyError (it began with other images or
    another search), DataError (fewer cities than folds), StoreError (another process at work on the study),
    StoppedError (Ctrl-C), TrainingError.
    """
    if folds < 2:
        raise ConfigError(f"`--folds` must be at least 2, but got {folds}.")
    plan_slots(device, workers=workers, per_device=per_device)  # refuses impossible numbers before any work is done
    folder = open_store(store)
    observer.say(f"store {folder}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with explaining_outages(folder), lock_study(folder, name, "crossval"), naming_interrupts():
        RequestBox(folder, name).forget_stops()
        opened = open_crossed(folder, name, begin, data, settings, observer)
        division = divide_survey(opened.survey, opened.full, folds=folds, blocks=blocks)
        if final:
            check_judgeable(opened.survey)
        _announce(opened.choice, division, observer)
        study, facts = begin_crossed(opened, folder, data, observer)
        requests = open_requests(folder, study)
        slots = plan_slots(device, workers=workers and min(workers, folds), per_device=per_device)[:folds]
        threads = share_threads(facts.threads, len(slots))
        plan = build_plan(opened, facts, division, device=device, threads=threads, store=folder)
        open_set(opened.survey, ImageSet(), plan.runs[0], observer.reporter("decoding the training images"))
        mlflow = PatientStore(folder, on_wait=observer.say)
        restore_runs(mlflow, name)
        with (
            open_executor(folder, opened.config, threads=threads, slots=slots) as executor,
            open_parent(mlflow, opened.config, facts, observer) as (_, shipper),
        ):
            training = SingleTraining(folder, executor, shipper, observer, requests)
            return CrossValidator(study, plan, facts, mlflow, training).validate(with_final=final)


class CrossValidator:
    """One cross-validation in progress."""

    def __init__(
        self, study: optuna.Study, plan: Plan, facts: StudyFacts, mlflow: MlflowStore, training: SingleTraining
    ) -> None:
        self.study, self.plan, self.facts, self.mlflow, self.training = study, plan, facts, mlflow, training
        self.store, self.observer = training.store, training.observer
        self._entry: dict[str, Any] = {}

    def validate(self, *, with_final: bool) -> CrossValidation:
        """Train what is not trained yet, sum up, and train the final model, in steps that may each be repeated."""
        self.training.shipper.catch_up(self.study.study_name)
        run_id = self._open_entry()
        if self._is_done(run_id) and (not with_final or self._read_final() is not None):
            self.observer.say(f"{self._entry['name']} is complete already; its results:")
            return self._collect()
        self.mlflow.reopen_run(run_id)
        with self.training.holding(run_id) as folder:
            tracker = take_over(folder)
            self._train_folds()
            found = self._collect()
            write_summary(tracker, self.plan, found)
            if with_final and found.final is None:
                self._train_final(found)
                found = self._collect()
        self.training.complete(run_id, Status("complete", seconds=sum(fold.seconds for fold in found.folds)))
        return found

    def _open_entry(self) -> str:
        """Take up the cross-validation of this plan if there is one that has not failed, or begin it."""
        known: list[dict[str, Any]] = self.study.user_attrs.get(CROSSVALS, [])
        for entry in reversed(known):
            status = read_status(run_folder(self.store, entry["run_id"]))
            if entry["digest"] == self.plan.digest and (status is None or status.outcome == "complete"):
                self._entry = entry
                return str(entry["run_id"])
        name = f"crossval-{len(known) + 1:04d}"
        tags = {
            **describe_dataset(self.facts),
            "cityopt.folds": len(self.plan.runs),
            "cityopt.fold_grouping": self.plan.describe_division()["grouping"],
            "cityopt.settings_of": self.plan.choice.source,
            **describe_run(self.plan.runs[0]),
        }
        run_id = self.mlflow.find_or_create_run(self.study.study_name, name, "crossval", tags)
        self._entry = {
            "name": name,
            "run_id": run_id,
            "digest": self.plan.digest,
            "trial": self.plan.choice.trial,
            "settings": self.plan.choice.settings,
            "division": self.plan.describe_division(),
            "runs": {},
        }
        self._remember()
        return run_id

    def _remember(self) -> None:
        known: list[dict[str, Any]] = self.study.user_attrs.get(CROSSVALS, [])
        others = [entry for entry in known if entry["name"] != self._entry["name"]]
        self.study.set_user_attr(CROSSVALS, sorted([*others, self._entry], key=lambda entry: str(entry["name"])))

    def _open_run(self, run: RunConfig, part: str) -> str:
        """Return the run of a fold or of the final model, RUNNING."""
        runs: dict[str, str] = self._entry["runs"]
        if part in runs:
            self.mlflow.reopen_run(runs[part])
            return runs[part]
        tags = {
            **describe_dataset(self.facts),
            **describe_run(run),
            "cityopt.crossval": self._entry["name"],
            "cityopt.crossval_run": self._entry["run_id"],
        }
        run_id = self.mlflow.find_or_create_run(run.study, run.name, run.kind, tags)
        write_dataset(run_folder(self.store, run_id), run.study, self.facts.fingerprint, str(run.data.root))
        runs[part] = run_id
        self._remember()
        return run_id

    def _train_folds(self) -> None:
        """Train the folds that are not complete. Raises TrainingError of the first that fails."""
        waiting = [run for run in self.plan.runs if not self._is_done(self._entry["runs"].get(run.name))]
        if 0 < len(waiting) < len(self.plan.runs):
            done = len(self.plan.runs) - len(waiting)
            self.observer.say(f"{self._entry['name']} goes on: {done} of {len(self.plan.runs)} folds are complete")
        with ExitStack() as held:
            self.training.train_several(self._open_folds(waiting, held), self._end_fold)

    def _open_folds(self, waiting: list[RunConfig], held: ExitStack) -> Iterator[tuple[str, RunConfig]]:
        for fold in waiting:
            run = replace_section(fold, name=f"{self._entry['name']}-{fold.name}")
            run_id = self._open_run(run, fold.name)
            held.enter_context(self.training.holding(run_id))
            yield run_id, run

    def _end_fold(self, run_id: str, run: RunConfig, result: Mapping[str, Any]) -> None:
        self.training.complete(run_id, Status("complete", seconds=float(result["seconds"])))
        _, metrics = pick_epoch(read_records(run_folder(self.store, run_id))[0], run.metric, run.direction)
        self.observer.end_run(run.name, "complete", metrics[run.metric], "", is_best=False)

    def _collect(self) -> CrossValidation:
        """Read what the folds, all complete, and the final model, if it is, have brought."""
        return read_crossval(self.store, self.plan, self._entry, self._read_final())

    def _train_final(self, found: CrossValidation) -> None:
        name = f"{found.name}-final"
        run = build_final(self.plan.runs[0], name, [fold.epoch for fold in found.folds], threads=self.facts.threads)
        run_id = self._open_run(run, "final")
        spread = found.spreads[found.metric]
        told = f"{found.metric} {spread.mean:.4f}" + (f" ± {spread.std:.4f}" if spread.std is not None else "")
        origin = f"Cross-validated as {found.name} of study {found.study} ({told}), trained on all training images."
        tags = {"cityopt.crossval": found.name, "cityopt.crossval_score": told}
        train_final(self.training, self.mlflow, run, run_id, origin=origin, tags=tags)

    def _read_final(self) -> FinalModel | None:
        run_id = self._entry["runs"].get("final")
        return read_final(self.store, f"{self._entry['name']}-final", run_id) if run_id else None

    def _is_done(self, run_id: str | None) -> bool:
        status = read_status(run_folder(self.store, run_id)) if run_id else None
        return status is not None and status.outcome == "complete"


def _announce(choice: Choice, division: Division, observer: Observer) -> None:
    observer.say(f"settings: {choice.source}")
    if division.blocks:
        observer.say(f"folds of contiguous blocks of each city: {BLOCKS_REMARK}")
    for line in division.describe_gaps():
        observer.say(f"Warning: {line}")
