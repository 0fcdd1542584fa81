"""The coordinator with scripted workers and a real MLflow: every way a trial ends, and a kill at every write."""

import errno
import os
import signal
import sqlite3
import time
import uuid
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState
from scripted_executor import (
    AP,
    Killed,
    Life,
    MortalExecutor,
    MortalShipper,
    MortalStorage,
    MortalStore,
    Script,
    ScriptedExecutor,
    ScriptedSlots,
)
from small_studies import FACTS, RATE, empty_database, make_config, open_hasty

from cityopt.errors import ConfigError, DataError, StoppedError, StoreError, StudyError
from cityopt.runtime import derive_seed
from cityopt.search import coordinator
from cityopt.search import scorekeeping as module
from cityopt.search.budget import Budget
from cityopt.search.coordinator import Coordinator
from cityopt.search.executors.base import JobEnded, Noticed
from cityopt.search.observer import Observer
from cityopt.search.ownership import SoleOwner
from cityopt.search.parent_run import open_parent
from cityopt.search.requests import Request, RequestBox
from cityopt.search.status import ENDING, RETRY_OF, RUN_ID, describe_trials
from cityopt.search.study import open_study
from cityopt.settings import replace_settings
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import RunFolder, Status, begin_attempt, read_status, write_status

RUNGS = {"name": "asha", "min_epochs": 1, "reduction_factor": 2}


class Bench:
    """One study in one database, with the real MLflow of the session; each `live` is a coordinator's life."""

    def __init__(self, store: Path, database: Path, **search) -> None:
        self.store, self.database = store, database
        database.write_bytes(empty_database().read_bytes())
        search = {"training": {"epochs": 3}, "trials": 3, **search}
        self.config = make_config(name=f"study-{uuid.uuid4().hex[:12]}", **search)
        self.said: list[str] = []

    def live(self, play, *, life: Life | None = None, trials: int | None = None, kind=MortalExecutor):
        """Run a coordinator to its end, or until its life is over (Killed)."""
        config = self.config if trials is None else make_trials(self.config, trials)
        storage = open_hasty(self.database, MortalStorage)
        study, facts = open_study(storage, config, FACTS)
        mlflow, executor = MortalStore(self.store), kind(play)
        observer = Observer()
        observer.say = self.said.append

        def run(parent: RunFolder, shipper) -> None:
            Coordinator(
                store=self.store,
                study=study,
                config=config,
                facts=facts,
                device="cpu",
                executor=executor,
                mlflow=mlflow,
                shipper=shipper,
                observer=observer,
                parent=parent,
            ).run()

        if life is None:
            with open_parent(mlflow, config, facts, observer) as (parent, shipper):
                run(parent, shipper)
            return executor
        parent_id = mlflow.open_parent(config.name)
        begin_attempt(run_folder(self.store, parent_id), "parent")
        shipper = MortalShipper(mlflow)
        storage.life = mlflow.life = executor.life = shipper.life = life
        try:
            run(RunFolder(run_folder(self.store, parent_id), "parent"), shipper)
        finally:
            life.is_over = True
            shipper.close()
        return executor

    @property
    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=self.config.name, storage=open_hasty(self.database))

    @property
    def client(self):
        return MlflowStore(self.store).client

    def runs(self) -> dict:
        """All MLflow runs of the study by name; names must not repeat."""
        experiment = self.client.get_experiment_by_name(self.config.name)
        found = self.client.search_runs([experiment.experiment_id])
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found), sorted(run.info.run_name for run in found)
        return by_name

    def curve(self, name: str, metric: str = AP) -> list[tuple[int, float]]:
        history = self.client.get_metric_history(self.runs()[name].info.run_id, metric)
        return [(point.step, point.value) for point in history]

    def wait_for_look(self) -> None:
        """Let so much time go by that the coordinator looks for requests again."""
        time.sleep(0.6)

    def snapshot(self) -> list[tuple]:
        """All that must not depend on kills."""
        return [
            (t.number, t.state, t.params, t.values, t.intermediate_values, dict(t.constraints))
            for t in self.study.get_trials()
        ]


def make_trials(config, trials):
    return replace_settings(config, {"search.trials": trials})


@pytest.fixture
def bench(mlflow_folder: Path, tmp_path: Path):
    def make(**search) -> Bench:
        return Bench(mlflow_folder, tmp_path / f"{uuid.uuid4().hex}.db", **search)

    return make


def always(*values: float, **script):
    return lambda config, attempt: Script(values, **script)


def by_number(scripts: dict[int, Script]):
    return lambda config, attempt: scripts[int(config.name.removeprefix("trial-"))]


def test_trial_is_complete_everywhere_when_all_epochs_are_done(bench):
    it = bench(trials=1)
    executor = it.live(always(0.1, 0.4, 0.3))
    (trial,) = it.study.trials
    assert trial.state == TrialState.COMPLETE and trial.value == 0.4  # the best epoch's, whose checkpoint is kept
    assert trial.intermediate_values == {1: 0.1, 2: 0.4, 3: 0.3}
    run = it.runs()["trial-0000"]
    assert (run.info.status, run.data.tags["cityopt.state"]) == ("FINISHED", "complete")
    assert it.curve("trial-0000") == [(1, 0.1), (2, 0.4), (3, 0.3)]
    assert run.data.tags["mlflow.parentRunId"] == it.runs()[it.config.name].info.run_id
    assert it.runs()[it.config.name].info.status == "FINISHED"
    assert executor.jobs[0].config.seed == derive_seed(0, "trial", 0)
    assert not (executor.jobs[0].folder / "last.pt").exists()  # nothing goes on from there any more


def test_run_says_what_it_stands_on_when_it_begins(bench):
    it = bench(trials=1)
    it.live(always(0.1, 0.2, 0.3))
    run = it.runs()["trial-0000"]
    tags = {key.removeprefix("cityopt."): value for key, value in run.data.tags.items() if key.startswith("cityopt.")}
    assert tags["kind"] == "trial" and tags["trial"] == "0" and tags["study"] == it.config.name
    assert tags["dataset_fingerprint"] == FACTS.fingerprint and tags["subset_hash"] == FACTS.subset_hash
    assert tags["seed"] == str(derive_seed(0, "trial", 0)) and tags["threads"] == "1" and tags["protocol"] == "coco"
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == FACTS.subset_hash


def test_value_is_the_lowest_reported_when_the_study_minimizes(bench):
    it = bench(trials=2, direction="minimize")
    it.live(by_number({0: Script((3.0, 1.0, 2.0)), 1: Script((9.0, 8.0, 7.0))}))
    assert [trial.value for trial in it.study.trials] == [1.0, 7.0]
    assert it.study.best_trial.number == 0


def test_trial_is_pruned_everywhere_when_a_rung_stops_it(bench):
    it = bench(trials=2, pruner=RUNGS)
    it.live(by_number({0: Script((0.5, 0.6, 0.7)), 1: Script((0.1, 0.9, 0.9))}))
    first, second = it.study.trials
    assert (first.state, second.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert second.intermediate_values == {1: 0.1}  # it never trained on
    run = it.runs()["trial-0001"]
    assert (run.info.status, run.data.tags["cityopt.state"]) == ("KILLED", "pruned")
    status = describe_trials(it.study, live=False)[1]
    assert (status.state, status.reason, status.value, status.seconds) == ("pruned", None, 0.1, 1.0)


def test_trial_is_let_go_when_its_worker_finds_the_folder_with_another_coordinator(bench):
    class Robbed(MortalExecutor):
        def poll(self, timeout_s):
            events = super().poll(timeout_s)
            if len(self.jobs) == 1 and any(isinstance(event, JobEnded) for event in events):
                begin_attempt(self.jobs[0].folder, "another")
            return events

    it = bench(trials=1)
    it.live(by_number({0: Script((0.1,), reason="disk"), 1: Script((0.1, 0.2, 0.3))}), kind=Robbed)
    first, second = it.study.trials
    assert (first.state, second.state) == (TrialState.RUNNING, TrialState.COMPLETE)
    assert read_status(run_folder(it.store, first.user_attrs[RUN_ID])) is None
    assert any("Trial 0 is another coordinator's" in line for line in it.said)


def test_last_epoch_is_never_pruned_when_a_rung_stands_there(bench):
    it = bench(trials=2, pruner={"name": "asha", "min_epochs": 3, "reduction_factor": 2})
    it.live(by_number({0: Script((0.5, 0.6, 0.7)), 1: Script((0.1, 0.1, 0.1))}))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 2


@pytest.mark.parametrize(
    ("reason", "state", "constraint"),
    [
        ("nan", TrialState.PRUNED, {"nan": 1.0}),
        ("oom", TrialState.PRUNED, {"oom": 1.0}),
        ("crash", TrialState.FAIL, {}),
        ("hung", TrialState.FAIL, {}),
    ],
)
def test_trial_fails_with_its_reason_when_training_does(bench, reason, state, constraint):
    it = bench(trials=2)
    it.live(by_number({0: Script((0.2,), reason=reason), 1: Script((0.1, 0.1, 0.3))}))
    failed, other = it.study.trials  # a failed trial counts towards `trials`
    assert failed.state == state and dict(failed.constraints) == constraint
    assert other.state == TrialState.COMPLETE
    status = describe_trials(it.study, live=False)[0]
    assert (status.state, status.reason, status.value) == ("failed", reason, None)
    run = it.runs()["trial-0000"]
    assert run.info.status == "FAILED"
    assert run.data.tags["cityopt.reason"] == reason and run.data.tags["cityopt.message"] == f"it was {reason}"
    assert read_status(run_folder(it.store, run.info.run_id)) == Status("failed", reason, f"it was {reason}", 1.5)


@pytest.mark.parametrize(("reason", "error"), [("data", DataError), ("config", ConfigError)])
def test_study_stops_when_a_reason_would_fail_every_trial(bench, reason, error):
    it = bench(trials=3)
    with pytest.raises(error, match=f"trial-0000: it was {reason}"):
        it.live(always(reason=reason))
    assert [trial.state for trial in it.study.trials] == [TrialState.FAIL]
    assert {run.info.status for run in it.runs().values()} == {"FAILED"}
    it.live(always(0.1, 0.2, 0.3))  # mended, it goes on
    assert [trial.state for trial in it.study.trials] == [TrialState.FAIL] + [TrialState.COMPLETE] * 2


def test_study_stops_and_keeps_its_trial_when_the_disk_is_full(bench):
    it = bench(trials=2)
    full = {"trial-0001": Script((0.1,), reason="disk")}
    with pytest.raises(StoreError, match=r"trial-0001: it was disk.*same command goes on"):
        it.live(lambda config, attempt: full.get(config.name, Script((0.3, 0.2, 0.1))))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert [s.state for s in describe_trials(it.study, live=False)] == ["complete", "waiting"]
    assert it.runs()["trial-0001"].info.status == "KILLED"
    for _ in range(4):  # never held against the trial
        with pytest.raises(StoreError):
            it.live(always(0.1, reason="disk"))
    executor = it.live(always(0.1, 0.2, 0.3))
    assert [job.config.name for job in executor.jobs] == ["trial-0001"]
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 2
    assert it.curve("trial-0001") == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StoreError), (errno.EDQUOT, StoreError), (errno.EIO, OSError)]
)
def test_coordinator_says_so_when_it_meets_a_full_disk_itself(bench, monkeypatch, number, error):
    def refuse(folder, status):
        raise OSError(number, os.strerror(number))

    it = bench(trials=1)
    with monkeypatch.context() as patch, pytest.raises(error, match=os.strerror(number)):
        patch.setattr(module, "write_status", refuse)
        it.live(always(0.1, 0.2, 0.3))
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE]


def test_coordinator_says_so_when_the_trials_cannot_be_written(bench, monkeypatch):
    def refuse(*_):
        raise StorageInternalError from sqlite3.OperationalError("database or disk is full")

    it = bench(trials=1)
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"optuna.db .*disk is full"):
        patch.setattr(MortalStorage, "set_trial_intermediate_value", refuse)
        it.live(always(0.1, 0.2, 0.3))
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE]


def test_trial_goes_on_under_its_number_and_seed_when_its_worker_is_lost(bench):
    def play(config, attempt):
        return Script((0.1, 0.2, 0.3), lost_before=3 if attempt == 1 and config.name == "trial-0001" else None)

    it = bench(trials=3)
    executor = it.live(play)
    names = [job.config.name for job in executor.jobs]
    assert names == ["trial-0000", "trial-0001", "trial-0001", "trial-0002"]
    assert executor.jobs[1].config == executor.jobs[2].config and executor.jobs[1].run_id == executor.jobs[2].run_id
    assert executor.jobs[1].token != executor.jobs[2].token
    assert it.curve("trial-0001") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 3
    undisturbed = bench(trials=3)
    undisturbed.live(always(0.1, 0.2, 0.3))
    assert it.snapshot() == undisturbed.snapshot()
    assert any("tried again" in line for line in it.said)


def test_trial_fails_as_crash_when_three_attempts_finish_no_epoch(bench):
    it = bench(trials=2)
    executor = it.live(by_number({0: Script((0.1, 0.2, 0.3), lost_before=1), 1: Script((0.1, 0.2, 0.3))}))
    assert [job.config.name for job in executor.jobs] == ["trial-0000"] * 3 + ["trial-0001"]
    failed, other = it.study.trials
    assert (failed.state, other.state) == (TrialState.FAIL, TrialState.COMPLETE)
    status = describe_trials(it.study, live=False)[0]
    assert (status.state, status.reason) == ("failed", "crash")
    assert it.runs()["trial-0000"].info.status == "FAILED"


def test_attempts_are_forgiven_when_the_worker_was_not_ready(bench):
    it = bench(trials=1)
    lost = Script((0.1, 0.2, 0.3), lost_before=1, is_warm=False)
    executor = it.live(lambda config, attempt: lost if attempt <= 5 else Script((0.1, 0.2, 0.3)))
    assert len(executor.jobs) == 6 and it.study.trials[0].state == TrialState.COMPLETE


def test_attempts_are_forgiven_when_each_finishes_an_epoch(bench):
    it = bench(trials=1, training={"epochs": 6})
    executor = it.live(
        lambda config, attempt: Script(tuple(range(6)), lost_before=attempt + 1 if attempt < 6 else None)
    )
    assert len(executor.jobs) == 6
    assert it.study.trials[0].state == TrialState.COMPLETE
    assert it.curve("trial-0000") == [(epoch + 1, float(epoch)) for epoch in range(6)]


def test_study_goes_on_to_the_new_total_when_trials_grow(bench):
    it = bench(trials=2)
    it.live(always(0.1, 0.2, 0.3))
    before = it.snapshot()
    assert it.live(always(0.1, 0.2, 0.3)).jobs == []
    it.live(always(0.1, 0.2, 0.3), trials=4)
    assert len(it.study.trials) == 4 and it.snapshot()[:2] == before


def test_parent_run_shows_the_best_as_it_climbs_when_trials_end(bench):
    scripts = {0: Script((0.2,) * 3), 1: Script((0.1,) * 3), 2: Script((0.4,) * 3)}
    it = bench(trials=3)
    it.live(by_number(scripts), trials=2)
    it.live(by_number(scripts))
    assert it.curve(it.config.name, f"best/{AP}") == [(0, 0.2), (1, 0.2), (2, 0.4)]


@pytest.mark.parametrize(
    ("error", "status"), [(DataError, "FAILED"), (ZeroDivisionError, "FAILED"), (StoppedError, "FINISHED")]
)
def test_parent_run_ends_when_something_fails_before_the_first_trial(bench, error, status):
    it = bench(trials=1)
    mlflow = MlflowStore(it.store)
    with pytest.raises(error, match="too early"), open_parent(mlflow, it.config, FACTS, Observer()):
        assert it.runs()[it.config.name].info.status == "RUNNING"
        raise error("too early")
    assert it.runs()[it.config.name].info.status == status


def test_parent_run_describes_the_study_when_trials_end(bench):
    it = bench(trials=2)
    it.live(by_number({0: Script((0.2,) * 3), 1: Script((0.3,) * 3)}))
    runs = it.runs()
    text = runs[it.config.name].data.tags["mlflow.note.content"]
    assert "Best is trial 1 with" in text and "**0.3000**" in text
    assert f"/runs/{runs['trial-0000'].info.run_id}) | complete | 0.2000 |" in text


def test_interrupt_leaves_nothing_running_when_ctrl_c_comes_in_a_trial(bench):
    it = bench(trials=2)

    def play(config, attempt):
        if config.name == "trial-0001" and len(it.said) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return Script((0.1, 0.2, 0.3))

    executor = it.live(play)
    assert executor.is_closed and any("Ctrl-C again" in line for line in it.said)
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert it.runs()["trial-0001"].info.status == "KILLED"
    assert it.runs()["trial-0001"].data.tags["cityopt.state"] == "interrupted"
    assert it.runs()[it.config.name].info.status == "FINISHED"
    assert [(s.state, s.reason) for s in describe_trials(it.study, live=False)] == [
        ("complete", None),
        ("waiting", "interrupted"),
    ]
    it.live(play)
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 2
    assert it.runs()["trial-0001"].info.status == "FINISHED"
    assert it.runs()["trial-0001"].data.tags["cityopt.state"] == "complete"
    assert it.curve("trial-0001") == [(1, 0.1), (2, 0.2), (3, 0.3)]


class Impatient(ScriptedExecutor):
    """Somebody presses Ctrl-C before the worker has done anything."""

    def poll(self, timeout_s):
        os.kill(os.getpid(), signal.SIGINT)
        return []


@pytest.fixture
def starts_elsewhere(monkeypatch):
    """Each attempt begins with epoch 1, as where the run's folder is not."""
    start = Coordinator._start

    def start_elsewhere(self, trial, *, resumed):
        (run_folder(self.store, str(trial.user_attrs.get(RUN_ID))) / "metrics.jsonl").unlink(missing_ok=True)
        start(self, trial, resumed=resumed)

    monkeypatch.setattr(Coordinator, "_start", start_elsewhere)


@pytest.mark.usefixtures("starts_elsewhere")
def test_attempts_are_forgiven_when_each_finishes_an_epoch_that_another_machine_did_before(bench):
    """The second trial finishes none after its first attempt."""

    def play(config, attempt):
        last = {"trial-0000": 3 if attempt <= 5 else None, "trial-0001": 3 if attempt == 1 else 1}
        return Script((0.1, 0.2, 0.3), lost_before=last[config.name])

    it = bench(trials=2)
    jobs = [job.config.name for job in it.live(play).jobs]
    assert (jobs.count("trial-0000"), jobs.count("trial-0001")) == (6, 4)
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE, TrialState.FAIL]


@pytest.mark.usefixtures("starts_elsewhere")
def test_trial_fails_as_crash_when_ten_attempts_got_no_further_than_those_before(bench):
    it = bench(trials=1)
    executor = it.live(lambda config, attempt: Script((0.1, 0.2, 0.3), lost_before=3))
    assert len(executor.jobs) == 1 + 10
    (trial,) = it.study.trials
    assert trial.state == TrialState.FAIL and "10 attempts ended without an epoch after 2" in str(trial.user_attrs)


def test_attempts_are_forgiven_when_the_user_stopped_them(bench):
    it = bench(trials=1)
    for _ in range(5):
        it.live(always(0.1, 0.2, 0.3), kind=Impatient)
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE]


def test_trial_fails_as_crash_when_it_takes_its_coordinator_down_three_times(bench):
    it = bench(trials=1)
    for _ in range(3):
        life = Life()

        def die(config, attempt, life=life):
            life.is_over = True
            raise Killed

        with pytest.raises(Killed):
            it.live(die, life=life)
    executor = it.live(always(0.1, 0.2, 0.3))
    assert executor.jobs == [] and describe_trials(it.study, live=False)[0].reason == "crash"
    assert it.runs()["trial-0000"].info.status == "FAILED"


def test_trial_fails_alone_when_its_settings_clash(bench):
    """Each of them may be; together they may not, and another trial may do better."""
    space = {
        "training.batch_size": {"type": "categorical", "choices": [4, 6]},
        "training.accumulation": {"type": "categorical", "choices": [1, 4]},
    }
    it = bench(trials=8, space=space, training={"epochs": 3, "batch_size": 12}, sampler={"name": "random"})
    it.live(always(0.1, 0.2, 0.3))
    clashing = {t.number for t in it.study.trials if t.params == dict(zip(space, (6, 4), strict=True))}
    assert 0 < len(clashing) < 8
    for status in describe_trials(it.study, live=False):
        expected = ("failed", "config") if status.number in clashing else ("complete", None)
        assert (status.state, status.reason) == expected, (it.study.trials[status.number].params, it.said)
    assert any("accumulation" in line for line in it.said)
    assert {run.info.status for run in it.runs().values()} <= {"FINISHED", "FAILED"}


def test_end_in_a_folder_is_told_when_a_coordinator_died_before_it_could(bench):
    def die(config, attempt):
        raise Killed

    it = bench(trials=1)
    with pytest.raises(Killed):
        it.live(die)
    (trial,) = it.study.trials
    folder = run_folder(it.store, trial.user_attrs[RUN_ID])
    write_status(folder, Status("failed", "nan", "the loss is NaN", 3.0))
    executor = it.live(always(0.3, 0.2, 0.1))
    assert executor.jobs == [] and executor.survivors == [folder]
    assert it.study.trials[0].state == TrialState.PRUNED and dict(it.study.trials[0].constraints) == {"nan": 1.0}
    assert it.runs()["trial-0000"].info.status == "FAILED"


def test_epochs_of_the_folder_are_told_when_the_database_lost_them_with_the_power(bench):
    it = bench(trials=1)
    with pytest.raises(Killed):
        it.live(lambda config, attempt: (_ for _ in ()).throw(Killed()))
    (trial,) = it.study.trials
    folder = run_folder(it.store, trial.user_attrs[RUN_ID])
    begin_attempt(folder, "before the power cut")
    for epoch, value in enumerate((0.4, 0.2, 0.3), start=1):
        RunFolder(folder, "before the power cut").log_metrics({AP: value}, epoch)
    write_status(folder, Status("complete", seconds=3.0))
    executor = it.live(always(0.0, 0.0, 0.0))
    (trial,) = it.study.trials
    assert executor.jobs == [] and (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)
    assert trial.intermediate_values == {1: 0.4, 2: 0.2, 3: 0.3}


def test_trial_fails_alone_when_its_weights_do_not_exist_for_its_backbone(bench):
    space = {
        "model.weights": {"type": "categorical", "choices": ["coco", "none"]},
        "model.backbone": {"type": "categorical", "choices": ["resnet50", "resnet101"]},
    }
    it = bench(trials=8, space=space, sampler={"name": "random"})
    it.live(always(0.1, 0.2, 0.3))
    clashing = {t.number for t in it.study.trials if t.params == dict(zip(space, ("coco", "resnet101"), strict=True))}
    assert 0 < len(clashing) < 8
    failed = [status for status in describe_trials(it.study, live=False) if status.state == "failed"]
    assert {status.number for status in failed} == clashing and {status.reason for status in failed} == {"config"}
    assert all("model.weights: coco" in status.message for status in failed)
    assert {run.info.status for run in it.runs().values()} == {"FINISHED", "FAILED"}


def test_study_stops_when_the_file_that_all_trials_start_from_is_gone(bench, tmp_path):
    it = bench(trials=2, model={"weights": str(tmp_path / "gone.pt")})
    with pytest.raises(ConfigError, match="it was config"):
        it.live(lambda config, attempt: Script((), reason="config"))
    assert [status.state for status in describe_trials(it.study, live=False)] == ["failed"]


CAST = {
    0: Script((0.7,), reason="nan"),
    1: Script((0.8, 0.6)),
    2: Script((0.1, 0.9)),  # the rung at epoch 1 stops it
}
SPEC = {"trials": 3, "pruner": RUNGS, "training": {"epochs": 2}, "sampler": {"name": "tpe", "startup_trials": 1}}
ENDS = {"trial-0000": "FAILED", "trial-0001": "FINISHED", "trial-0002": "KILLED"}


@pytest.fixture
def every_write(monkeypatch):
    """Make the writes of module functions count for the life that is current."""
    current: list[Life] = []
    write = module.write_status

    def write_status_of_a_life(folder, status):
        if current:
            current[-1].write("write_status")
        write(folder, status)

    monkeypatch.setattr(module, "write_status", write_status_of_a_life)
    return current


@pytest.mark.slow
def test_study_is_as_if_nothing_happened_when_killed_at_any_write(bench, every_write):
    calm = bench(**SPEC)
    life = Life()
    every_write.append(life)
    calm.live(by_number(CAST), life=life)
    assert {"write_status", "RDBStorage._create_new_trial", "MlflowStore.create_run", "Shipper.end"} <= set(life.writes)
    every_write.clear()
    calm.live(by_number(CAST))
    expected, curves = calm.snapshot(), [calm.curve(name) for name in ENDS]
    assert [trial[1] for trial in expected] == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]
    for limit, write in enumerate(life.writes):
        it = bench(**SPEC)
        every_write.append(Life(limit))
        with pytest.raises(Killed):
            it.live(by_number(CAST), life=every_write[-1])
        every_write.clear()
        ended = {t.number: t for t in it.study.get_trials() if t.state.is_finished()}
        it.live(by_number(CAST))
        where = f"killed before write {limit}, {write}"
        assert it.snapshot() == expected, where
        for number, trial in ended.items():
            assert it.study.trials[number] == trial, f"{where}: trial {number} changed"
        runs = it.runs()
        assert {name: run.info.status for name, run in runs.items()} == ENDS | {it.config.name: "FINISHED"}, where
        assert [it.curve(name) for name in ENDS] == curves, where
        for name, trial in zip(ENDS, it.study.trials, strict=True):
            assert trial.user_attrs[RUN_ID] == runs[name].info.run_id, where
            assert len(runs[name].inputs.dataset_inputs) == 1, where
            assert not (run_folder(it.store, runs[name].info.run_id) / "last.pt").exists(), where


def test_settings_are_those_of_a_study_without_kills_when_a_trial_dies_between_them(bench):
    """The same, read from the settings alone: a trial keeps number, seed and settings across its lives."""
    it = bench(**SPEC)
    seen, life = {}, Life()

    def play(config, attempt):
        seen.setdefault(config.name, []).append((config.seed, config.training.learning_rate))
        if config.name == "trial-0001" and life.limit is None:
            life.limit = len(life.writes)  # the second trial is with its worker: nothing after this is written
        return Script((0.5, 0.6))

    with pytest.raises(Killed):
        it.live(play, life=life)
    it.live(play)
    assert [len(set(values)) for values in seen.values()] == [1] * 3
    assert [len(values) for values in seen.values()] == [1, 2, 1]
    assert [values[0][1] for values in seen.values()] == [trial.params[RATE] for trial in it.study.trials]


def test_no_trial_waits_when_a_slot_is_free(bench):
    """Trials of different lengths on three slots: whenever the coordinator waits, each slot has one or none is left."""
    lengths = (1, 6, 2, 3, 1, 5, 2, 4)
    idle: list[int] = []

    class Watched(ScriptedSlots):
        def poll(self, timeout_s):
            left = len(lengths) - len(self.jobs)
            idle.append(min(self.num_free, left))
            return super().poll(timeout_s)

    it = bench(trials=len(lengths), training={"epochs": 6})
    scripts = {number: Script((0.1 * number,) * length) for number, length in enumerate(lengths)}
    executor = it.live(by_number(scripts), kind=lambda play: Watched(play, 3))
    assert executor.most_at_once == 3 and set(idle) == {0}
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * len(lengths)
    rates = {trial.params[RATE] for trial in it.study.trials}
    assert len(rates) == len(lengths)  # running trials are never proposed again
    for number, length in enumerate(lengths):
        assert it.curve(f"trial-{number:04d}") == [(epoch, 0.1 * number) for epoch in range(1, length + 1)]


def test_sweep_waits_for_a_slot_when_there_is_none_for_a_while(bench):
    """As on a cluster whose nodes are on their way: before the first trial, and after one was lost with its node."""

    class Elastic(ScriptedExecutor):
        def __init__(self, play):
            super().__init__(play)
            self.away = 3

        @property
        def num_free(self):
            return 0 if self.away else super().num_free

        def poll(self, timeout_s):
            if self.away:
                self.away -= 1
                return [Noticed(f"{self.away} more looks until a node is there")]
            events = super().poll(timeout_s)
            self.away = 2 * any(isinstance(event, JobEnded) and event.outcome == "lost" for event in events)
            return events

    it = bench(trials=2, training={"epochs": 3})
    lost = Script((0.1, 0.2, 0.3), lost_before=2)
    executor = it.live(lambda config, attempt: lost if attempt == 1 else Script((0.1, 0.2, 0.3)), kind=Elastic)
    assert [job.config.name for job in executor.jobs] == ["trial-0000"] * 2 + ["trial-0001"] * 2
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 2
    assert [line for line in it.said if "looks until" in line] == [
        f"{left} more looks until a node is there" for left in (2, 1, 0, 1, 0, 1, 0)
    ]


def test_sweep_ends_when_there_is_no_slot_and_no_trial_may_begin(bench):
    class Nowhere(ScriptedExecutor):
        num_free = 0

        def poll(self, timeout_s):
            raise AssertionError("the sweep waits for a slot that it has no use for")

    it = bench(trials=3, max_device_hours=0.0005)
    it.live(always(0.1, 0.2, 0.3), trials=1)
    assert it.live(always(), kind=Nowhere).jobs == []
    assert [line for line in it.said if "No more trials" in line and "--max-device-hours" in line] == [it.said[-1]]


def test_sweep_ends_well_when_mlflow_is_away_at_its_end(bench, monkeypatch):
    """As the last of several coordinators, who looks for runs that the others left."""
    looks = iter([[]])

    def list_running(self, study):
        found = next(looks, None)
        if found is None:
            raise StoreError("MLflow is away")
        return found

    monkeypatch.setattr(SoleOwner, "is_last", lambda _: True)
    monkeypatch.setattr(MortalStore, "list_running", list_running)
    monkeypatch.setattr(Shipper, "catch_up", lambda *_, **__: None)
    monkeypatch.setattr(coordinator, "_PARTING_S", 0.0)
    it = bench(trials=1)
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE]


def test_trial_goes_on_with_smaller_micro_batches_when_memory_ran_out(bench):
    it = bench(trials=2, training={"epochs": 3, "batch_size": 8})

    def play(config, attempt):
        is_small = config.training.accumulation > 1 or config.name == "trial-0001"
        return Script((0.1, 0.4, 0.3)) if is_small else Script((0.1,), reason="oom", peak_gib=7.5)

    executor = it.live(play)
    names = [job.config.name for job in executor.jobs]
    assert names == ["trial-0000", "trial-0000", "trial-0001"]
    first, second, other = (job.config for job in executor.jobs)
    assert (first.training.accumulation, second.training.accumulation, other.training.accumulation) == (1, 2, 1)
    assert second == replace_settings(first, {"training.accumulation": 2})  # same batch, rate and seed
    trial = it.study.trials[0]
    assert trial.state == TrialState.COMPLETE and dict(trial.constraints) == {}
    assert it.curve("trial-0000") == [(1, 0.1), (2, 0.4), (3, 0.3)]
    tags = it.runs()["trial-0000"].data.tags
    assert (tags["cityopt.oom_peak_gib"], tags["cityopt.accumulation_after_oom"]) == ("7.5", "2")
    assert any("it was oom; it is tried again with 4 images at once" in line for line in it.said)


def test_smaller_micro_batches_stay_when_a_coordinator_dies_in_the_second_attempt(bench):
    it = bench(trials=1)
    seen = []

    def play(config, attempt):
        seen.append(config.training.accumulation)
        if len(seen) == 2:
            raise Killed
        return Script((0.1, 0.2, 0.3), reason="oom" if len(seen) == 1 else "")

    with pytest.raises(Killed):
        it.live(play)
    it.live(play)
    assert seen == [1, 2, 2] and it.study.trials[0].state == TrialState.COMPLETE


@pytest.mark.parametrize(
    ("batch", "accumulation", "attempts"), [(8, 1, [1, 2]), (6, 2, [2, 6]), (3, 1, [1, 3]), (2, 2, [2])]
)
def test_trial_fails_as_oom_when_smaller_micro_batches_do_not_help_or_cannot_be(bench, batch, accumulation, attempts):
    it = bench(trials=1, training={"epochs": 3, "batch_size": batch, "accumulation": accumulation})
    executor = it.live(always(0.1, reason="oom"))
    assert [job.config.training.accumulation for job in executor.jobs] == attempts
    (trial,) = it.study.trials
    assert trial.state == TrialState.PRUNED and dict(trial.constraints) == {"oom": 1.0}
    assert describe_trials(it.study, live=False)[0].reason == "oom"


def test_study_stops_and_says_what_failures_share_when_too_many_come_in_a_row(bench):
    it = bench(trials=9, max_failures=3)
    with pytest.raises(StudyError, match=r"3 trials failed in a row.*\n.*reasons: 3 x hung\n.*all said: it was hung"):
        it.live(always(reason="hung"))
    assert [s.reason for s in describe_trials(it.study, live=False)] == ["hung"] * 3
    assert {run.info.status for run in it.runs().values()} == {"FAILED"}
    it.live(always(0.1, 0.2, 0.3), trials=4)
    assert len(it.study.trials) == 4


def test_trials_that_kill_their_workers_count_as_failures_in_a_row(bench):
    it = bench(trials=5, max_failures=2)
    with pytest.raises(StudyError, match=r"2 trials failed in a row.*\n.*reasons: 2 x crash"):
        it.live(always(0.1, 0.2, 0.3, lost_before=2))
    found = describe_trials(it.study, live=False)
    assert [(status.reason, status.seconds) for status in found] == [("crash", 1.5)] * 2  # of the epoch that was done


def test_log_ends_up_with_the_failure_when_a_trial_fails(bench):
    it = bench(trials=2)

    def play(config, attempt):
        (run_id,) = [t.user_attrs[RUN_ID] for t in it.study.trials if f"trial-{t.number:04d}" == config.name]
        (run_folder(it.store, run_id) / "log.txt").write_text("".join(f"line {n}\n" for n in range(100)))
        return Script((0.1, 0.2, 0.3), reason="crash" if config.name == "trial-0000" else "")

    it.live(play)
    tail = "\n".join(f"line {number}" for number in range(75, 100))
    failed, other = it.study.trials
    assert failed.user_attrs[ENDING]["log"] == tail and other.user_attrs[ENDING]["log"] == ""
    run = it.runs()["trial-0000"]
    assert run.data.tags["cityopt.log"] == tail and "cityopt.log" not in it.runs()["trial-0001"].data.tags
    assert read_status(run_folder(it.store, run.info.run_id)).log == tail


def test_study_ends_in_good_order_when_another_command_asks_for_it(bench):
    it = bench(trials=3)

    def play(config, attempt):
        if config.name == "trial-0001" and attempt == 1:
            RequestBox(it.store, it.config.name).put(Request("stop"))
            it.wait_for_look()
        return Script((0.1, 0.2, 0.3))

    it.live(play)
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert it.runs()["trial-0001"].info.status == "KILLED"
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 3


def test_failed_trials_are_tried_again_when_another_command_asks_a_live_study(bench):
    it = bench(trials=3)

    def play(config, attempt):
        if config.name == "trial-0001":
            RequestBox(it.store, it.config.name).put(Request("retry", "crash"))
            it.wait_for_look()
        return Script((0.1, 0.2, 0.3), reason="crash" if config.name == "trial-0000" else "")

    executor = it.live(play)
    names = [job.config.name for job in executor.jobs]
    assert names == ["trial-0000", "trial-0001", "trial-0002", "trial-0003"]  # three that did not fail in the end
    retry = next(trial for trial in it.study.trials if RETRY_OF in trial.user_attrs)
    assert retry.user_attrs[RETRY_OF] == 0 and retry.params == it.study.trials[0].params
    assert it.runs()[f"trial-{retry.number:04d}"].data.tags["cityopt.retry_of"] == "0"
    assert it.live(always(0.1, 0.2, 0.3)).jobs == []


def test_failed_trials_are_tried_again_when_a_study_is_asked_at_its_very_end(bench):
    it = bench(trials=2)
    request = Request("retry", "crash")

    def play(config, attempt):
        if config.name == "trial-0001":  # the sweep is over before it would look again
            RequestBox(it.store, it.config.name).put(request)
        return Script((0.1, 0.2, 0.3), reason="crash" if config.name == "trial-0000" else "")

    names = [job.config.name for job in it.live(play).jobs]
    assert names == ["trial-0000", "trial-0001", "trial-0002"] and it.study.trials[2].user_attrs[RETRY_OF] == 0
    again = bench(trials=1)
    again.live(always(0.1, reason="crash"))
    RequestBox(again.store, again.config.name).put(request)  # it came too late, and the next sweep obeys it
    assert [job.config.name for job in again.live(always(0.1, 0.2, 0.3)).jobs] == ["trial-0001"]


def test_no_trial_begins_when_the_budget_is_spent(bench):
    it = bench(trials=9, patience=2)
    it.live(by_number({0: Script((0.3,) * 3), 1: Script((0.2,) * 3), 2: Script((0.1,) * 3)}))
    assert len(it.study.trials) == 3
    assert any("No more trials: 2 trials brought no better score (search.patience)" in line for line in it.said)
    it.live(always(0.0, 0.0, 0.0))
    assert len(it.study.trials) == 3


def test_trials_at_work_are_left_to_the_next_sweep_when_the_hours_are_up(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "Budget", lambda search: Budget(search, lambda: now[0]))
    it = bench(trials=3, max_hours=1.0)

    def play(config, attempt):
        now[0] += 600 if config.name == "trial-0000" else 3600
        return Script((0.1, 0.2, 0.3))

    it.live(play)
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert it.runs()["trial-0001"].info.status == "KILLED" and any("hours are up" in line for line in it.said)
    it.live(always(0.1, 0.2, 0.3))
    assert [trial.state for trial in it.study.trials] == [TrialState.COMPLETE] * 3


def test_sweep_says_so_when_its_hours_are_up_between_two_trials(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "Budget", lambda search: Budget(search, lambda: now[0]))
    it = bench(trials=2, max_hours=1.0)

    class Late(MortalExecutor):
        def poll(self, timeout_s):
            events = super().poll(timeout_s)
            now[0] += 3600 * isinstance(events[0], JobEnded)
            return events

    it.live(always(0.1, 0.2, 0.3), kind=Late)
    assert len(it.study.trials) == 1 and "--max-hours are up: no more trials." in it.said
