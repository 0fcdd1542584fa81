"""Finalists of a promotion: the best trials and trial 0 retrain with several seeds on more images; the seeds decide.

Stands before `promote.py`, which trains the winner in full. Each training is a run of its own (kind `finalist`) with
its own folder, which holds what is true: whatever is killed goes on with the same command, in the runs and epochs it
was in, and what was trained already is taken over. What came out is an attribute of the study, and on its parent run.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder
from cityopt.errors import TrainingError
from cityopt.runtime import share_threads
from cityopt.search.executors.slots import plan_slots
from cityopt.search.facts import StudyFacts
from cityopt.search.finalist_plan import FinalistPlan, digest_run, plan_finalists
from cityopt.search.finalist_result import (
    FINALISTS,
    Finalists,
    describe_finalists,
    name_metrics,
    read_finalists,
)
from cityopt.search.micro_batches import find_smaller
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.pretrained import fetch_weights
from cityopt.search.requests import Requests
from cityopt.search.single import SingleTraining
from cityopt.search.status import TrialStatus, describe_trials
from cityopt.search.sweep import open_executor
from cityopt.search.tags import describe_dataset, describe_run
from cityopt.settings import replace_section
from cityopt.store import run_folder
from cityopt.tracking.curves import pick_epoch
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Status, Tracker, read_records, read_status, write_dataset
from cityopt.training.dataset import open_set, survey_dataset

_LEAVES_OTHERS = ("nan", "oom")
"""Reasons that speak against a finalist's settings alone; after any other one the same command goes on."""
_COMES_AGAIN = ("crash", "hung")
"""Reasons that speak against them, too, when they have come `_MAX_FAILURES` times."""
_MAX_FAILURES = 2


def run_finalists(
    study: optuna.Study,
    config: StudyConfig,
    facts: StudyFacts,
    *,
    root: Path,
    device: str,
    workers: int,
    mlflow: MlflowStore,
    observer: Observer,
    requests: Requests | None = None,
) -> Finalists:
    """Train a study's finalists, or go on with that, and decide who wins.

    Raises ConfigError (an impossible number of workers), DataError (the dataset changed), StoppedError (Ctrl-C) and
    TrainingError.
    """
    slots = plan_slots(device, workers=workers)
    warn_of_sharing(slots, observer)
    store, cache = mlflow.store, cache_folder(mlflow.store)
    survey = survey_dataset(root, cache, observer.reporter("reading labels"))
    trials = describe_trials(study, live=False)
    threads = share_threads(facts.threads, len(slots))
    plan = plan_finalists(config, facts, trials, survey, device=device, threads=threads, store=store)
    fetch_weights(config, observer)
    names = ", ".join(candidate.name for candidate in plan.candidates)
    cost = describe_cost(plan, config, facts, trials, len(slots))
    observer.say(f"finalists: {names}, {config.promotion.seeds} seeds each, {plan.note}{cost}")
    run = plan.runs[0][0]
    open_set(survey, run.train_set, run, observer.reporter("decoding the finalists' images"))
    with (
        open_executor(store, config, threads=threads, slots=slots) as executor,
        open_parent(mlflow, config, facts, observer) as (parent, shipper),
    ):
        training = SingleTraining(store, executor, shipper, observer, requests)
        found = FinalistTrainer(study, config, facts, plan, mlflow, training).train(parent)
    observer.say(f"{found.reason}\n{found.trust.sentence}")
    return found


class FinalistTrainer:
    """The finalists of one promotion in progress."""

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        facts: StudyFacts,
        plan: FinalistPlan,
        mlflow: MlflowStore,
        training: SingleTraining,
    ) -> None:
        self.study, self.config, self.facts, self.plan = study, config, facts, plan
        self.mlflow, self.training = mlflow, training
        self.store, self.observer = training.store, training.observer
        self._entry: dict[str, Any] = {}

    def train(self, parent: Tracker) -> Finalists:
        """Train what is not trained yet and decide, in steps that may each be repeated after a kill."""
        self.training.shipper.catch_up(self.config.name)
        self._open_entry()
        waiting = [run for seeds in self.plan.runs for run in seeds if not self._has_ended(run)]
        count = sum(map(len, self.plan.runs))
        if waiting:
            if len(waiting) < count:
                self.observer.say(f"{self._entry['name']} goes on: {count - len(waiting)} of {count} trainings ended")
            with ExitStack() as held:
                self.training.train_several(self._open_runs(waiting, held), self._end_run, self._drop_run)
        found = read_finalists(self.store, self.study, self.config, self._entry)
        if found is None:
            raise TrainingError("nan", f"{self._entry['name']}: no finalist has scores. {self._tell_failures()}")
        if "winner" not in self._entry:
            self._entry["winner"] = found.winner.name
            self._remember()
        self._publish(found, parent)
        return found

    def _open_entry(self) -> None:
        """Take up the finalists of this plan, or begin them."""
        known: list[dict[str, Any]] = self.study.user_attrs.get(FINALISTS, [])
        self._entry = next((entry for entry in reversed(known) if entry["digest"] == self.plan.digest), {})
        if self._entry:
            return
        self._entry = {
            "name": f"finalists-{len(known) + 1:04d}",
            "digest": self.plan.digest,
            "note": self.plan.note,
            "num_images": self.plan.num_images,
            "num_subset": self.facts.num_subset,
            "candidates": [
                {
                    "name": candidate.name,
                    "trial": candidate.trial.number,
                    "settings": candidate.settings,
                    "rescaled": list(candidate.rescaled),
                    "runs": [{"digest": digest_run(run), "run_id": self._find_trained(run)} for run in runs],
                }
                for candidate, runs in zip(self.plan.candidates, self.plan.runs, strict=True)
            ],
        }
        self._remember()

    def _remember(self) -> None:
        known: list[dict[str, Any]] = self.study.user_attrs.get(FINALISTS, [])
        others = [entry for entry in known if entry["name"] != self._entry["name"]]
        self.study.set_user_attr(FINALISTS, sorted([*others, self._entry], key=lambda entry: str(entry["name"])))

    def _find_trained(self, run: RunConfig) -> str | None:
        """Return the run of earlier finalists that was trained to its end with this very config."""
        digest = digest_run(run)
        for entry in reversed(self.study.user_attrs.get(FINALISTS, [])):
            for place in (place for candidate in entry["candidates"] for place in candidate["runs"]):
                if place["digest"] == digest and place["run_id"] is not None:
                    status = read_status(run_folder(self.store, place["run_id"]))
                    if status is not None and status.outcome == "complete":
                        return str(place["run_id"])
        return None

    def _find_place(self, run: RunConfig) -> dict[str, Any]:
        digest = digest_run(run)
        places = (place for candidate in self._entry["candidates"] for place in candidate["runs"])
        found: dict[str, Any] = next(place for place in places if place["digest"] == digest)
        return found

    def _has_ended(self, run: RunConfig) -> bool:
        """Say whether a run is complete, or has failed in a way that would come again."""
        run_id = self._find_place(run)["run_id"]
        return run_id is not None and read_status(run_folder(self.store, run_id)) is not None

    def _open_runs(self, waiting: Sequence[RunConfig], held: ExitStack) -> Iterator[tuple[str, RunConfig]]:
        for planned in waiting:
            run = _cut(
                replace_section(planned, name=f"{self._entry['name']}-{planned.name}"), self._find_place(planned)
            )
            run_id = self._open_run(run)
            held.enter_context(self.training.holding(run_id))
            yield run_id, run

    def _open_run(self, run: RunConfig) -> str:
        """Return the run of a finalist's training, RUNNING."""
        place = self._find_place(run)
        if place["run_id"] is not None:
            self.mlflow.reopen_run(place["run_id"])
            return str(place["run_id"])
        candidate = next(it for it in self._entry["candidates"] if place in it["runs"])
        tags = {
            **describe_dataset(self.facts),
            **describe_run(run),
            "cityopt.finalists": self._entry["name"],
            "cityopt.trial": candidate["trial"],
            "cityopt.rescaled": "; ".join(candidate["rescaled"]) or "nothing",
        }
        run_id = self.mlflow.find_or_create_run(run.study, run.name, run.kind, tags)
        write_dataset(run_folder(self.store, run_id), run.study, self.facts.fingerprint, str(run.data.root))
        place["run_id"] = run_id
        self._remember()
        return run_id

    def _end_run(self, run_id: str, run: RunConfig, result: Mapping[str, Any]) -> None:
        self.training.complete(run_id, Status("complete", seconds=float(result["seconds"])))
        _, metrics = pick_epoch(read_records(run_folder(self.store, run_id))[0], run.metric, run.direction)
        self.observer.end_run(run.name, "complete", metrics[run.metric], "", is_best=False)

    def _drop_run(self, run_id: str, run: RunConfig, reason: str, message: str) -> RunConfig | bool:
        """End a run whose settings failed: its finalist is out, and the others go on. Memory gets a second chance."""
        if reason == "oom" and (smaller := self._find_smaller(run)):
            size = smaller.training.batch_size // smaller.training.accumulation
            self.observer.say(f"{run.name}: {message}; it is tried again with {size} images at once.")
            return smaller
        if reason not in _LEAVES_OTHERS and not self._comes_again(run, reason):
            return False
        self.training.complete(run_id, Status("failed", reason, message))
        self.observer.end_run(run.name, "failed", None, reason, is_best=False)
        return True

    def _find_smaller(self, run: RunConfig) -> RunConfig | None:
        """Let a run go on in smaller micro-batches from now on; None where it did before, or they cannot be smaller."""
        place, accumulation = self._find_place(run), find_smaller(run.training)
        if accumulation is None or "accumulation" in place:
            return None
        place["accumulation"] = accumulation
        self._remember()
        return _cut(run, place)

    def _comes_again(self, run: RunConfig, reason: str) -> bool:
        """Count a failure that may be the machine's, and say whether it is the settings' after all."""
        if reason not in _COMES_AGAIN:
            return False
        place = self._find_place(run)
        place["failures"] = place.get("failures", 0) + 1
        self._remember()
        return bool(place["failures"] >= _MAX_FAILURES)

    def _tell_failures(self) -> str:
        statuses = [
            read_status(run_folder(self.store, place["run_id"]))
            for candidate in self._entry["candidates"]
            for place in candidate["runs"]
        ]
        return " ".join(dict.fromkeys(status.message for status in statuses if status and status.message))

    def _publish(self, found: Finalists, parent: Tracker) -> None:
        """Put what came out on the study's parent run."""
        parent.write_artifact("finalists.json", json.dumps(found.to_json(), indent=1))
        parent.log_metrics(name_metrics(found), step=int(found.name.rpartition("-")[2]))
        self.mlflow.log(self.mlflow.open_parent(self.config.name), tags=describe_finalists(found))


def _cut(run: RunConfig, place: Mapping[str, Any]) -> RunConfig:
    """Return a run in the micro-batches that it goes on with, where memory ran out before."""
    if "accumulation" not in place:
        return run
    return replace_section(run, training=replace_section(run.training, accumulation=place["accumulation"]))


def describe_cost(
    plan: FinalistPlan, config: StudyConfig, facts: StudyFacts, trials: Sequence[TrialStatus], num_slots: int
) -> str:
    """Return what the finalists take by what the study's whole trials took; empty where those say nothing."""
    whole = [trial.seconds for trial in trials if trial.state == "complete" and trial.seconds]
    if not whole:
        return ""
    epochs = (config.promotion.finalist_epochs or config.training.epochs) / config.training.epochs
    count = sum(map(len, plan.runs))
    trial_s = statistics.median(whole) * epochs * plan.num_images / facts.num_subset
    return f"; about {trial_s * count / min(num_slots, count) / 60:.1f} min, {count} trainings in all"


def warn_of_sharing(slots: Sequence[str], observer: Observer) -> None:
    """Warn when workers share the memory of a GPU."""
    most = max(slots.count(slot) for slot in slots)
    if most > 1 and slots[0] != "cpu":
        observer.say(
            f"Warning: up to {most} finalists share the memory of a device. Use fewer --workers if it runs out."
        )
