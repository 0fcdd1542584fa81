"""A staged promotion that really trains, in this process: killed in its second stage and resumed, to the last bit."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState, create_trial

from cityopt.runtime import set_threads
from cityopt.search import promote as module
from cityopt.search.comparison import Comparison
from cityopt.search.executors.base import EpochDone, Executor, JobEnded
from cityopt.search.observer import Observer
from cityopt.search.plan import check_plan, pin_plan, plan_promotion
from cityopt.search.preparation import prepare_study
from cityopt.search.promote import PROMOTIONS, Promoter, pick_winner, run_promotion
from cityopt.search.registration import Registered
from cityopt.search.single import SingleTraining
from cityopt.search.status import RUN_ID
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.search.sweep import build_facts
from cityopt.store import run_folder
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, RunFolder, begin_attempt, read_records
from cityopt.training.checkpoint import load_checkpoint
from cityopt.training.dataset import survey_coarse
from cityopt.training.run import run_training

STUDY = Path(__file__).parents[1] / "studies" / "tiny_staged.yaml"


class Killed(BaseException):
    """The process is gone from here on."""


class Inline(Executor):
    """Trains in this process, and dies when a run has finished the epoch of `kill_at`."""

    def __init__(self, kill_at=None):
        self.kill_at, self.trained, self.events = kill_at, [], []

    def start(self): ...

    @property
    def num_free(self):
        return 1

    def submit(self, job):
        begin_attempt(job.folder, job.token)

        def on_epoch(epoch, metrics):
            if (job.config.name, epoch) == self.kill_at:
                raise Killed
            self.trained.append((job.config.name, epoch))
            self.events.append(EpochDone(job.run_id, epoch, metrics))
            return "continue"

        result = run_training(job.config, RunFolder(job.folder, job.token), on_epoch)
        self.events.append(JobEnded(job.run_id, result.outcome, result=asdict(result)))

    def poll(self, timeout_s):
        return [self.events.pop(0)]

    def answer(self, run_id, answer): ...

    def abandon(self, run_id): ...

    def end_survivor(self, folder): ...

    def close(self): ...


@pytest.fixture(scope="module", name="prepared")
def _prepared(tmp_path_factory):
    """A store where the study was begun, with one complete trial."""
    store = tmp_path_factory.mktemp("staged") / "store"
    store.mkdir()
    prepared = prepare_study(load_study(str(STUDY)), store, data=None, observer=Observer())
    study, _ = open_study(open_storage(store), prepared.config, build_facts(prepared, threads=1, weights={}))
    study.add_trial(create_trial(state=TrialState.COMPLETE, value=3.0, user_attrs={RUN_ID: "trial-run"}))
    return store, prepared


def promote(prepared, executor):
    """Promote as `run_promotion` does, in this process; return the folders of the stages by name."""
    store, study_parts = prepared
    study, facts = open_study(open_storage(store), study_parts.config, build_facts(study_parts, 1, {}))
    winner = pick_winner(study, study_parts.config)
    config = study_parts.config
    plan = plan_promotion(config, facts, winner, {}, root=study_parts.root, device="cpu", store=store)
    check_plan(plan, Observer())
    plan = pin_plan(plan)
    mlflow = MlflowStore(store)
    shipper = Shipper(mlflow)
    try:
        training = SingleTraining(store, executor, shipper, Observer())
        Promoter(store, study, config, facts, mlflow, training, Observer()).promote(plan, winner)
        shipper.drain(60)
    finally:
        shipper.close()
        set_threads(1)
    entry = study.user_attrs[PROMOTIONS][-1]
    return {
        "fine-tune": run_folder(store, entry["run_id"]),
        **{stage["name"]: run_folder(store, stage["run_id"]) for stage in entry["stages"]},
    }


def read_model(folder):
    return load_checkpoint(folder / BEST)["model"]


def test_promotion_is_begun_with_the_coarse_labels_that_are_there_now(prepared, monkeypatch):
    begun = []
    monkeypatch.setattr(module, "open_executor", lambda *_, **__: nullcontext())
    monkeypatch.setattr(module, "open_parent", lambda *_: nullcontext((None, None)))
    monkeypatch.setattr(Promoter, "promote", lambda _, plan, winner: begun.extend(stage.run for stage in plan))
    store, parts = prepared
    name = parts.config.name
    run_promotion(name, store=store, data=None, settings={}, device="cpu", observer=Observer())
    found = survey_coarse(parts.root, "train_extra", store / "cache").fingerprint
    assert [run.train_fingerprint for run in begun] == [found, None, None]


@pytest.mark.slow
def test_promotion_killed_in_its_second_stage_ends_with_the_same_bits(prepared, monkeypatch):
    monkeypatch.setattr(module, "resolve_checkpoint", lambda *_: "the checkpoint of the trial")
    monkeypatch.setattr(module, "compare_with_trial", lambda *_, **__: (Comparison("val", "", None, 1.0),))
    monkeypatch.setattr(module, "register_result", lambda *_, **__: Registered("models:/x@champion", 1, "first"))
    monkeypatch.setattr(Promoter, "_find_trained", lambda *_: None)  # the second promotion shall train everything
    with pytest.raises(Killed):
        promote(prepared, Inline(kill_at=("promotion-0001-heads", 2)))
    pretrained = next(prepared[0].glob("runs/*/backbone.pt")).with_name(BEST)
    written = pretrained.stat().st_mtime_ns
    resumed = Inline()
    killed = promote(prepared, resumed)
    assert killed["pretrain"] == pretrained.parent and pretrained.stat().st_mtime_ns == written
    assert resumed.trained == [
        *(("promotion-0001-heads", epoch) for epoch in (2, 3, 4)),  # 2 was finished, but nobody had heard of it
        *(("promotion-0001", epoch) for epoch in (1, 2)),
    ]
    calm = promote(prepared, Inline())
    for name, folder in calm.items():
        assert folder != killed[name]
        mine, theirs = read_model(folder), read_model(killed[name])
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine), name
        losses = [
            [(record.step, record.metrics["train/loss/total"]) for record in read_records(some)[0]]
            for some in (folder, killed[name])
        ]
        assert losses[0] == losses[1], name
    _check_frozen_backbone(calm)


def _check_frozen_backbone(folders):
    """With all five stages frozen, Mask R-CNN's ResNet is still the one that learned from coarse labels."""
    segmenter, heads, tuned = (read_model(folders[name]) for name in ("pretrain", "heads", "fine-tune"))
    resnet = [key for key in heads if key.startswith("backbone.body.")]
    assert resnet and all(torch.equal(heads[key], segmenter[key]) for key in resnet)
    assert not all(torch.equal(tuned[key], segmenter[key]) for key in resnet)
