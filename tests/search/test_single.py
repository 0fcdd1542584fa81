"""Trainings that are no trials, with scripted workers: side by side, lost, failed and stopped."""

import os
import signal
import uuid
from contextlib import ExitStack

import pytest
from scripted_executor import AP, Script, ScriptedSlots
from small_studies import FACTS, make_config

from cityopt.errors import StoppedError, TrainingError
from cityopt.search.observer import Observer
from cityopt.search.requests import Request, RequestBox
from cityopt.search.single import RunFailedError, SingleTraining, strip_place
from cityopt.search.space import build_trial_config
from cityopt.settings import replace_section
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Status, read_records, read_status


class Stage:
    """Runs named a, b, c … in MLflow, and what trains them."""

    def __init__(self, store, play, num_slots=1, names="abcde"):
        self.mlflow, self.study = MlflowStore(store), f"single-{uuid.uuid4().hex[:8]}"
        config = make_config(name=self.study, training={"epochs": 2})
        template = build_trial_config(config, FACTS, 0, {}, device="cpu", cache=store / "cache")
        self.runs = {
            self.mlflow.create_run(self.study, name, "fold"): replace_section(template, name=name) for name in names
        }
        self.executor, self.shipper, self.observer = ScriptedSlots(play, num_slots), Shipper(self.mlflow), Observer()
        self.said = []
        self.observer.say = self.said.append
        self.training = SingleTraining(store, self.executor, self.shipper, self.observer)
        self.ended = []

    def train(self):
        """Train all runs, each held from when it starts; each that ends is completed."""
        opened = []

        def open_runs(held):
            for run_id, run in self.runs.items():
                held.enter_context(self.training.holding(run_id))
                opened.append(run.name)
                yield run_id, run

        def end(run_id, run, result):
            self.ended.append(run.name)
            self.training.complete(run_id, Status("complete", seconds=result["seconds"]))

        try:
            with ExitStack() as held:
                self.training.train_several(open_runs(held), end)
        finally:
            self.shipper.close()
        return opened

    def ends(self):
        """Return how each run stands in MLflow."""
        found = {run_id: self.mlflow.client.get_run(run_id) for run_id in self.runs}
        return {self.runs[i].name: (run.info.status, run.data.tags.get("cityopt.state")) for i, run in found.items()}

    def folder(self, name):
        return run_folder(self.training.store, next(i for i, run in self.runs.items() if run.name == name))


@pytest.mark.parametrize("num_slots", [1, 2, 3, 7])
def test_runs_share_the_free_workers_and_each_ends_once(mlflow_folder, num_slots):
    stage = Stage(mlflow_folder, lambda config, _: Script((0.1,) * (3 if config.name in "bd" else 1)), num_slots)
    assert stage.train() == list("abcde")
    assert sorted(stage.ended) == list("abcde") and stage.executor.most_at_once == min(num_slots, 5)
    assert sorted(job.config.name for job in stage.executor.jobs) == list("abcde")
    assert set(stage.ends().values()) == {("FINISHED", "complete")}


def test_next_run_is_opened_only_when_a_worker_is_free_for_it(mlflow_folder):
    stage = Stage(mlflow_folder, lambda config, _: Script((0.1, 0.2), reason="oom" if config.name == "b" else ""), 2)
    with pytest.raises(RunFailedError, match="b: it was oom"):
        stage.train()
    untouched = dict.fromkeys("cde", ("RUNNING", None))
    assert stage.ends() == {"a": ("FINISHED", "complete"), "b": ("FAILED", "failed"), **untouched}


def test_lost_worker_is_replaced_and_its_run_goes_on_beside_the_others(mlflow_folder):
    def play(config, attempt):
        return Script((0.1, 0.2, 0.3), lost_before=3 if config.name == "b" and attempt == 1 else None)

    stage = Stage(mlflow_folder, play, 2, names="abc")
    stage.train()
    assert sorted(stage.ended) == list("abc")
    assert [record.metrics[AP] for record in read_records(stage.folder("b"))[0]] == [0.1, 0.2, 0.3]
    assert any("b: the worker ended: SIGKILL; it is tried again" in line for line in stage.said)


def test_run_that_kills_its_workers_fails_as_crash_after_three_attempts(mlflow_folder):
    stage = Stage(mlflow_folder, lambda *_: Script((0.1,), lost_before=1), names="a")
    with pytest.raises(TrainingError, match="a: 3 attempts ended without a finished epoch") as error:
        stage.train()
    assert error.value.reason == "crash" and len(stage.executor.jobs) == 3


def test_run_is_not_to_blame_when_its_workers_die_before_they_are_ready(mlflow_folder):
    def play(_, attempt):
        return Script((0.1,)) if attempt == 5 else Script((0.1,), lost_before=1, is_warm=False)

    stage = Stage(mlflow_folder, play, names="a")
    stage.train()
    assert stage.ended == ["a"] and len(stage.executor.jobs) == 5


@pytest.mark.parametrize(("reason", "status"), [("nan", "failed"), ("oom", None)])
def test_failure_is_its_own_runs_alone_and_only_a_hopeless_one_is_for_good(mlflow_folder, reason, status):
    def play(config, _):
        return Script((0.1,) if config.name == "b" else (0.1,) * 5, reason=reason if config.name == "b" else "")

    stage = Stage(mlflow_folder, play, 2, names="ab")
    with pytest.raises(RunFailedError) as error:
        stage.train()
    assert error.value.reason == reason and stage.executor.is_closed
    assert stage.ends() == {"a": ("KILLED", "interrupted"), "b": ("FAILED", "failed")}
    assert read_status(stage.folder("a")) is None
    assert getattr(read_status(stage.folder("b")), "outcome", None) == status


def test_interrupt_ends_the_runs_in_progress_and_leaves_complete_ones(mlflow_folder):
    stage = Stage(mlflow_folder, lambda config, _: Script((0.1,) if config.name == "a" else (0.1,) * 9), 2, names="abc")
    stage.observer.show_epoch = lambda name, epoch, *_: os.kill(os.getpid(), signal.SIGINT) if epoch == 4 else None
    with pytest.raises(StoppedError, match="The same command goes on"):
        stage.train()
    assert stage.executor.is_closed
    assert stage.ends() == {
        "a": ("FINISHED", "complete"),
        "b": ("KILLED", "interrupted"),
        "c": ("KILLED", "interrupted"),
    }
    assert read_status(stage.folder("b")) is None


def test_stop_of_another_command_ends_the_runs_in_progress(mlflow_folder):
    stage = Stage(mlflow_folder, lambda *_: Script((0.1,) * 9), names="ab")
    box = stage.training.requests = RequestBox(mlflow_folder, stage.study)
    stage.observer.show_epoch = lambda name, epoch, *_: box.put(Request("stop")) if epoch == 1 else None
    with pytest.raises(StoppedError, match="The same command goes on"):
        stage.train()
    assert stage.executor.is_closed and stage.ends() == {"a": ("KILLED", "interrupted"), "b": ("RUNNING", None)}
    assert read_status(stage.folder("a")) is None and any("Asked to stop" in line for line in stage.said)


def test_training_is_the_same_wherever_it_runs():
    config = build_trial_config(make_config(), FACTS, 0, {}, device="cpu", cache=FACTS.root).model_dump(mode="json")
    elsewhere = config | {"device": "cuda:1", "threads": 7, "cache": "/b", "data": config["data"] | {"root": "/c"}}
    assert strip_place(elsewhere) == strip_place(config)
    assert strip_place(config | {"seed": 1}) != strip_place(config)
    in_pieces = config | {"training": config["training"] | {"accumulation": 4}}
    assert strip_place(in_pieces) == strip_place(config)  # smaller micro-batches go on where larger ones ran out of it
