"""Promotion: the winner's settings -> full training, in one go or in stages -> all of val -> the registry.

Which trial wins, finalists decide, who retrain with several seeds on more images (`finalists.py`); without them it is
the best one. The promoted model trains on every training image, the trials' holdout included, for a fixed schedule
whose last epoch counts: val judges it once and chooses nothing. So that the result says what full training brought,
the trial's own checkpoint is judged on val beside it. A promotion that was killed goes on from the last epoch of the
stage that it was in. Its own run is the last stage's; those before have runs of their own, which a later promotion
takes over where it would train the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import RunConfig, StudyConfig
from cityopt.data.roots import cache_folder, choose_root
from cityopt.errors import ConfigError, StudyError, TrainingError
from cityopt.promotion import check_promoted
from cityopt.search.comparison import Comparison, choose_judge, compare_with_trial
from cityopt.search.devices import check_devices, count_devices, share_out
from cityopt.search.facts import StudyFacts
from cityopt.search.finalist_plan import choose_trials
from cityopt.search.finalist_result import Finalists
from cityopt.search.finalists import run_finalists
from cityopt.search.ledger import explaining_outages
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.plan import PlannedStage, check_plan, pin_plan, plan_promotion
from cityopt.search.preparation import open_root
from cityopt.search.pretrained import hash_files
from cityopt.search.registration import register_result
from cityopt.search.requests import RequestBox, open_requests
from cityopt.search.single import RunFailedError, SingleTraining, strip_place
from cityopt.search.space import trial_holdout
from cityopt.search.status import TrialStatus, describe_trials
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study, refuse_other_settings
from cityopt.search.study_lock import lock_study
from cityopt.search.sweep import naming_interrupts, open_executor
from cityopt.search.tags import describe_dataset, describe_run
from cityopt.settings import replace_section, replace_settings, validate
from cityopt.store import find_store, open_store, run_folder
from cityopt.study_file import PINS, complete_run
from cityopt.tracking.mlflow_patience import PatientStore
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.tracking.mlflow_restore import restore_runs
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, LAST, Status, read_status, write_dataset

PROMOTIONS = "cityopt:promotions"


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
    finalists: Finalists | None = None
    """Who competed for being promoted; None where the best trial is promoted as it is."""


def run_promotion(
    name: str,
    *,
    store: Path,
    data: str | None,
    settings: Mapping[str, Any],
    device: str,
    observer: Observer,
    devices: str = "1",
    workers: int = 1,
    force: bool = False,
) -> Promotion:
    """Let finalists compete, train the winner in full, or go on with that, judge it on val and register it.

    `workers` finalists train at once. For the winner `devices`, a number or `auto`, train together; it may change from
    one call to the next. `force` makes the model the champion whatever the registry's gate says.

    Raises ConfigError (a setting that a promotion does not heed, or devices that do not divide the batch), StoreError
    (no such study, another process at work on it), StudyError (no complete trial), StoppedError (Ctrl-C), DataError,
    TrainingError.
    """
    how = {key: value for key, value in settings.items() if key.startswith("promotion.")}
    settings = {key: value for key, value in settings.items() if key not in how}
    check_promoted(settings, "--set")
    num_devices = count_devices(devices, device)
    folder = open_store(find_store(store, name))
    observer.say(f"store {folder}")
    with explaining_outages(folder), lock_study(folder, name, "promotion"), naming_interrupts():
        RequestBox(folder, name).forget_stops()
        storage = open_storage(folder)
        study, config, facts = load_stored_study(storage, name)
        requests = open_requests(folder, study)
        best = pick_winner(study, config)
        refuse_other_settings(storage, config, hash_files(config))
        config = replace_settings(config, how)
        chosen = replace_settings(config, {"data.root": choose_root(data, config.data.root)})
        root = open_root(chosen, cache_folder(folder), observer)
        plan = plan_promotion(config, facts, best, settings, root=root, device=device, store=folder)
        check_devices(plan, num_devices)
        if config.promotion.stages:
            check_plan(plan, observer)
        mlflow = PatientStore(folder, on_wait=observer.say)
        restore_runs(mlflow, name)
        winner, finalists = best, None
        if needs_finalists(study, config, observer):
            for trial in choose_trials(describe_trials(study, live=False), config, config.promotion.finalists):
                rival = plan_promotion(config, facts, trial, settings, root=root, device=device, store=folder)
                check_devices(rival, num_devices, f"trial {trial.number}, which may win")
            finalists = run_finalists(
                study,
                config,
                facts,
                root=root,
                device=device,
                workers=workers,
                mlflow=mlflow,
                observer=observer,
                requests=requests,
            )
            winner = take_winner(finalists, describe_trials(study, live=False), folder)
            plan = plan_promotion(config, facts, winner, settings, root=root, device=device, store=folder)
            if config.promotion.stages and winner.params != best.params:
                check_plan(plan, observer)
        plan = share_out(pin_plan(plan), num_devices, observer)
        with (
            open_executor(folder, config, threads=facts.threads, slots=(device,)) as executor,
            open_parent(mlflow, config, facts, observer) as (_, shipper),
        ):
            training = SingleTraining(folder, executor, shipper, observer, requests)
            parts = (folder, study, config, facts, mlflow, training, observer)
            return Promoter(*parts, finalists=finalists, force=force).promote(plan, winner)


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


def needs_finalists(study: optuna.Study, config: StudyConfig, observer: Observer) -> bool:
    """Say whether there is something to decide: finalists are wanted, and more than one candidate is there."""
    promotion = config.promotion
    if not promotion.has_finalists:
        return False
    rivals = choose_trials(describe_trials(study, live=False), config, promotion.finalists)
    if len(rivals) > 1 or promotion.rescale:
        return True
    observer.say(f"trial {rivals[0].number} is the only candidate: it is promoted without finalists")
    return False


def take_winner(found: Finalists, trials: Sequence[TrialStatus], store: Path) -> TrialStatus:
    """Return the trial that won, with the settings that won.

    Its run is the trial's, if that has a checkpoint to compare the promoted model with, else the finalist's first.
    """
    trial = trials[found.winner.trial]
    own = trial.run_id and (run_folder(store, trial.run_id) / BEST).is_file()
    return replace(trial, params=found.winner.settings, run_id=trial.run_id if own else found.winner.runs[0])


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
        *,
        finalists: Finalists | None = None,
        force: bool = False,
    ) -> None:
        self.store, self.study, self.config, self.facts = store, study, config, facts
        self.mlflow, self.training, self.observer = mlflow, training, observer
        self.finalists, self.force = finalists, force

    def promote(self, plan: tuple[PlannedStage, ...], winner: TrialStatus) -> Promotion:
        """Train, judge, register, in steps that may each be repeated after a kill."""
        trial = resolve_checkpoint(self.store, winner.run_id or "")  # now: after the training it would be too late
        run, run_id = self._open_run(plan, winner)
        with self.training.holding(run_id):
            self.training.shipper.catch_up(self.config.name)  # with the end of a stage that a kill kept from MLflow
            run = self._train_stages(plan, run)
            seconds = self.training.train(run, run_id)
            self.training.executor.close()
            metric, direction = choose_judge(run)
            holdout = trial_holdout(self.config)
            comparisons = compare_with_trial(self.training, run, run_id, trial, metric=metric, holdout=holdout)
            found = register_result(
                self.mlflow,
                run,
                run_id,
                checkpoint=run_folder(self.store, run_id) / BEST,
                metric=metric,
                direction=direction,
                value=comparisons[0].promoted,
                origin=self._describe_origin(plan, winner),
                tags={"cityopt.trial": winner.number},
                observer=self.observer,
                force=self.force,
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
            finalists=self.finalists,
        )

    def _describe_origin(self, plan: tuple[PlannedStage, ...], winner: TrialStatus) -> str:
        why = f" {self.finalists.name}: {self.finalists.reason}" if self.finalists else ""
        return f"Trial {winner.number} of study {self.config.name}, trained in full{_name_stages(plan)}.{why}"

    def _open_run(self, plan: tuple[PlannedStage, ...], winner: TrialStatus) -> tuple[RunConfig, str]:
        """Return the promotion that was begun with this very plan and not ended, or a new one."""
        run = plan[-1].run
        known: list[dict[str, Any]] = self.study.user_attrs.get(PROMOTIONS, [])
        last = known[-1] if known else None
        if last and read_status(run_folder(self.store, last["run_id"])) is None:
            if is_same_promotion(last, plan):
                run_id = str(last["run_id"])
                self.mlflow.reopen_run(run_id)
                self.observer.say(f"{last['name']} goes on from its last finished epoch")
                return replace_section(run, name=last["name"]), run_id
            self._end_superseded(last)
        run = replace_section(run, name=f"promotion-{len(known) + 1:04d}")
        tags = {"cityopt.trial": winner.number, "cityopt.trial_run": winner.run_id}
        if self.finalists is not None:
            rescaled = "; ".join(self.finalists.winner.rescaled) or "nothing"
            tags |= {"cityopt.finalists": self.finalists.name, "cityopt.rescaled": rescaled}
        run_id = self._create_run(run, tags | ({"cityopt.stage": plan[-1].name} if plan[-1].name else {}))
        stages = [{"name": stage.name, "config": stage.run.model_dump(mode="json")} for stage in plan[:-1]]
        entry = {"name": run.name, "run_id": run_id, "trial": winner.number, "config": run.model_dump(mode="json")}
        entry |= {"finalists": self.finalists.name} if self.finalists else {}
        self.study.set_user_attr(PROMOTIONS, [*known, entry | ({"stages": stages} if stages else {})])
        return run, run_id

    def _end_superseded(self, entry: Mapping[str, Any]) -> None:
        """End the runs of a promotion that nobody will go on with, but for stages that are done."""
        for run in (*entry.get("stages", []), entry):
            if "run_id" in run and read_status(run_folder(self.store, run["run_id"])) is None:
                self.training.shipper.end(run["run_id"], "KILLED", {"cityopt.state": "superseded"})
                (run_folder(self.store, run["run_id"]) / LAST).unlink(missing_ok=True)

    def _create_run(self, run: RunConfig, tags: Mapping[str, object]) -> str:
        all_tags = describe_dataset(self.facts) | describe_run(run) | dict(tags)
        run_id = self.mlflow.find_or_create_run(run.study, run.name, run.kind, all_tags)
        write_dataset(run_folder(self.store, run_id), run.study, self.facts.fingerprint, str(run.data.root))
        return run_id

    def _train_stages(self, plan: tuple[PlannedStage, ...], last: RunConfig) -> RunConfig:
        """Train what comes before a promotion's last stage, and return that one with the weights to start from."""
        from cityopt.training.stages import hand_over

        folders: dict[str, Path] = {}
        for stage in plan:
            run = stage.run if stage is not plan[-1] else last
            if stage.start is not None:
                weights = str(hand_over(folders[stage.start], whole=stage.whole))
                run = replace_section(run, model=replace_section(run.model, weights=weights))
            if stage is plan[-1]:
                return run
            folders[stage.name] = run_folder(self.store, self._train_stage(stage, run, last.name))
        raise AssertionError("a plan has a last stage")

    def _train_stage(self, stage: PlannedStage, run: RunConfig, promotion: str) -> str:
        """Train a stage unless that is done, and return the id of its run."""
        run = replace_section(run, name=f"{promotion}-{stage.name}")
        run_id = self._open_stage(stage, run, promotion)
        status = read_status(run_folder(self.store, run_id))
        if status is not None and status.outcome == "complete":
            self.observer.say(f"stage {stage.name} is trained already (run {run_id})")
            return run_id
        if status is not None:  # a kill came before the promotion itself was ended for the same reason
            raise TrainingError(status.reason, status.message)
        try:
            with self.training.holding(run_id):
                self.mlflow.reopen_run(run_id)
                seconds = self.training.train(run, run_id)
        except RunFailedError as error:  # a promotion has failed with its stage, and ends for the same reason
            raise TrainingError(error.reason, str(error)) from error
        self.training.complete(run_id, Status("complete", seconds=seconds))
        return run_id

    def _open_stage(self, stage: PlannedStage, run: RunConfig, promotion: str) -> str:
        """Return the run of a stage: its own, that of an earlier promotion that trained the same, or a new one."""
        known: list[dict[str, Any]] = self.study.user_attrs[PROMOTIONS]
        own = next(entry for entry in known[-1]["stages"] if entry["name"] == stage.name)
        if "run_id" not in own:
            tags = {"cityopt.promotion": promotion, "cityopt.stage": stage.name}
            own["run_id"] = self._find_trained(known[:-1], run) or self._create_run(run, tags)
            own["trained"] = run.model_dump(mode="json")
            self.study.set_user_attr(PROMOTIONS, known)
        return str(own["run_id"])

    def _find_trained(self, known: list[dict[str, Any]], run: RunConfig) -> str | None:
        """Return the run of an earlier promotion's stage that was trained to its end with this very config."""
        wanted = strip_place(run.model_dump(mode="json"))
        for entry in (stage for promotion in reversed(known) for stage in promotion.get("stages", [])):
            if "run_id" not in entry or any(getattr(run, pin) and pin not in entry["trained"] for pin in PINS):
                continue  # nobody knows from which content it was trained
            if _recall(entry["trained"], run) == wanted:
                folder = run_folder(self.store, entry["run_id"])
                status = read_status(folder)
                if status is not None and status.outcome == "complete" and (folder / BEST).is_file():
                    return str(entry["run_id"])
        return None


def _name_stages(plan: tuple[PlannedStage, ...]) -> str:
    return f" in {len(plan)} stages ({', '.join(stage.name for stage in plan)})" if len(plan) > 1 else ""


def is_same_promotion(entry: Mapping[str, Any], plan: tuple[PlannedStage, ...]) -> bool:
    """Say whether a promotion was begun with this plan."""
    begun = [*(stage["config"] for stage in entry.get("stages", [])), entry["config"]]
    return len(begun) == len(plan) and all(
        _recall(config, stage.run) == strip_place(stage.run.model_dump(mode="json"))
        for config, stage in zip(begun, plan, strict=True)
    )


def _recall(config: Mapping[str, Any], wanted: RunConfig) -> dict[str, Any] | None:
    """Return a stored training as `strip_place` has one that is planned now; None where it can be none any more.

    When it was stored there may have been fewer settings than now.
    """
    try:
        known = validate(RunConfig, complete_run(config, wanted), origin="a promotion")
    except ConfigError:
        return None
    return strip_place(known.model_dump(mode="json"))
