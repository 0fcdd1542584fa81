"""A staged promotion with scripted workers and a real MLflow: the order, what moves on, and a kill at every write."""

import uuid
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from scripted_executor import AP, Killed, Life, MortalExecutor, MortalShipper, MortalStorage, MortalStore, Script
from small_studies import FACTS, RATE, empty_database, make_config, open_hasty

from cityopt.errors import TrainingError
from cityopt.search import promote as module
from cityopt.search.comparison import Comparison
from cityopt.search.observer import Observer
from cityopt.search.plan import plan_promotion
from cityopt.search.promote import PROMOTIONS, Promoter
from cityopt.search.registration import Registered
from cityopt.search.single import SingleTraining
from cityopt.search.status import RUN_ID, describe_trials
from cityopt.search.study import open_study
from cityopt.settings import replace_settings
from cityopt.store import run_folder
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import BEST, begin_attempt, read_status
from cityopt.training import stages as handover

MIOU = "val/semantic/miou"
PRETRAIN = {"name": "pretrain", "model": "semantic_fpn", "split": "train_extra", "labels": "coarse", "epochs": 2}
HEADS = {"name": "heads", "start_from": "pretrain", "epochs": 3, "freeze_depth": 5}
STAGES = [PRETRAIN, HEADS, {"name": "fine-tune", "start_from": "heads", "epochs": 2}]
VALUES = {"pretrain": (0.1, 0.2), "heads": (0.3, 0.4, 0.5), "": (0.6, 0.7)}


def play(config, attempt):
    name = config.name.removeprefix("promotion-").lstrip("0123456789").removeprefix("-")
    return Script(VALUES[name])


class Storage(MortalStorage):
    """Its records of promotions are writes, too."""

    def set_study_user_attr(self, *args):
        if life := getattr(self, "life", None):
            life.write("Storage.set_study_user_attr")
        super().set_study_user_attr(*args)


class Executor(MortalExecutor):
    """Leaves a checkpoint, as a training does."""

    def submit(self, job):
        super().submit(job)
        (job.folder / BEST).write_bytes(b"a checkpoint of " + job.config.name.encode())


class Bench:
    """One study with a complete trial; each `live` is a promotion's life."""

    def __init__(self, store: Path, database: Path) -> None:
        self.store, self.database = store, database
        database.write_bytes(empty_database().read_bytes())
        config = make_config(name=f"study-{uuid.uuid4().hex[:12]}")
        self.config = replace_settings(config, {"promotion.stages": STAGES})
        study, _ = open_study(open_hasty(database), self.config, FACTS)
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, value=0.3, user_attrs={RUN_ID: "trial-run"},
                         params={RATE: 0.01}, distributions={RATE: optuna.distributions.FloatDistribution(1e-5, 0.1)})
        )  # fmt: skip

    def live(self, *, life: Life | None = None, config=None, play=play, coarse=None):
        """Promote to the end, or until this life is over (Killed)."""
        config = config or self.config
        storage = open_hasty(self.database, Storage)
        study, facts = open_study(storage, self.config, FACTS)
        mlflow, executor = MortalStore(self.store), Executor(play)
        parent = mlflow.open_parent(config.name)
        begin_attempt(run_folder(self.store, parent), "parent")
        shipper = MortalShipper(mlflow)
        (winner,) = describe_trials(study, live=False)
        plan = plan_promotion(config, facts, winner, {}, root=Path("/data"), device="cpu", store=self.store)
        pinned = plan[0].run.model_copy(update={"train_fingerprint": coarse})
        plan = (replace(plan[0], run=pinned), *plan[1:])
        life = life or Life()
        storage.life = mlflow.life = executor.life = shipper.life = life
        training = SingleTraining(self.store, executor, shipper, Observer())
        try:
            Promoter(self.store, study, config, facts, mlflow, training, Observer()).promote(plan, winner)
        finally:
            if life.limit is None:
                shipper.drain(60)
            life.is_over = True
            shipper.close()
        return executor, life

    def entries(self):
        study = optuna.load_study(study_name=self.config.name, storage=open_hasty(self.database))
        return study.user_attrs[PROMOTIONS]

    def runs(self):
        client = MlflowStore(self.store).client
        experiment = client.get_experiment_by_name(self.config.name)
        found = client.search_runs([experiment.experiment_id])
        by_name = {run.info.run_name: run for run in found}
        assert len(by_name) == len(found), sorted(run.info.run_name for run in found)
        return by_name


@pytest.fixture(scope="session", name="mlflow_store")
def _mlflow_store(tmp_path_factory):
    store = tmp_path_factory.mktemp("mlflow") / "store"
    store.mkdir()
    MlflowStore(store).open_experiment("another study")
    return store


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Judging and registering have tests of their own; a checkpoint here is a line of text."""
    comparison = Comparison("val", AP, 0.1, 0.7)
    monkeypatch.setattr(module, "resolve_checkpoint", lambda *_: "the checkpoint of the trial")
    monkeypatch.setattr(module, "compare_with_trial", lambda *_, **__: (comparison,))
    monkeypatch.setattr(module, "register_result", lambda *_, **__: Registered("models:/x@champion", 1, "first"))

    def export(checkpoint, out):
        out.write_bytes(b"the ResNet in " + checkpoint.read_bytes())

    monkeypatch.setattr(handover, "export_backbone", export)


@pytest.fixture
def make_bench(mlflow_store, tmp_path):
    made = iter(range(10_000))
    return lambda: Bench(mlflow_store, tmp_path / f"{next(made)}.db")


def read_starts(executor):
    """Return each job's name, and what stands in the file that its network starts from."""
    weights = [(job.config.name, job.config.model.weights) for job in executor.jobs]
    return {name: Path(path).read_bytes().decode() if path != "none" else "" for name, path in weights}


def test_stages_are_runs_of_their_own_that_start_from_one_another(make_bench):
    bench = make_bench()
    executor, _ = bench.live()
    assert read_starts(executor) == {
        "promotion-0001-pretrain": "",
        "promotion-0001-heads": "the ResNet in a checkpoint of promotion-0001-pretrain",
        "promotion-0001": "a checkpoint of promotion-0001-heads",
    }
    runs = bench.runs()
    kinds = {name: run.data.tags["cityopt.kind"] for name, run in runs.items() if name.startswith("promotion")}
    assert kinds == {"promotion-0001-pretrain": "stage", "promotion-0001-heads": "stage", "promotion-0001": "promotion"}
    heads = runs["promotion-0001-heads"].data
    assert (heads.tags["cityopt.stage"], heads.tags["cityopt.promotion"]) == ("heads", "promotion-0001")
    assert runs["promotion-0001"].data.tags["cityopt.stage"] == "fine-tune"
    assert {run.info.status for name, run in runs.items() if name in kinds} == {"FINISHED"}


@pytest.mark.slow
def test_promotion_ends_as_if_nobody_had_disturbed_it_when_killed_at_any_write(make_bench):
    _, life = make_bench().live()
    limits = [limit for limit, what in enumerate(life.writes) if not what.endswith("answer") or limit % 3 == 0]
    assert len(limits) > 15
    for limit in limits:
        bench = make_bench()
        with pytest.raises(Killed):
            bench.live(life=Life(limit))
        done = {name: read_status(run_folder(bench.store, run.info.run_id)) for name, run in bench.runs().items()}
        executor, _ = bench.live()
        runs = bench.runs()
        stages = {name: run for name, run in runs.items() if name.startswith("promotion")}
        assert sorted(stages) == ["promotion-0001", "promotion-0001-heads", "promotion-0001-pretrain"], limit
        assert {run.info.status for run in stages.values()} == {"FINISHED"}, limit
        finished = {name for name, status in done.items() if status}
        assert not finished & {job.config.name for job in executor.jobs}, f"{limit}: a finished stage was trained again"
        for name, values in VALUES.items():
            run = stages["promotion-0001" + (f"-{name}" if name else "")]
            client = MlflowStore(bench.store).client
            points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, AP)]
            assert points == list(enumerate(values, start=1)), (limit, name)
        assert len(bench.entries()) == 1


def test_later_promotion_takes_over_the_stages_that_it_would_train_the_same(make_bench):
    bench = make_bench()
    bench.live()
    again, _ = bench.live(config=replace_settings(bench.config, {"promotion.stages.heads.epochs": 2}), play=shorter)
    assert [job.config.name for job in again.jobs] == ["promotion-0002-heads", "promotion-0002"]
    first, second = bench.entries()
    assert second["stages"][0]["run_id"] == first["stages"][0]["run_id"]
    assert second["stages"][1]["run_id"] != first["stages"][1]["run_id"]


def test_later_promotion_trains_a_stage_again_when_its_coarse_labels_are_others(make_bench):
    bench = make_bench()
    bench.live(coarse="few")
    again, _ = bench.live(coarse="more")
    assert again.jobs[0].config.name == "promotion-0002-pretrain"
    once_more, _ = bench.live(coarse="more")
    assert [job.config.name for job in once_more.jobs] == ["promotion-0003"]


def test_promotion_that_another_plan_takes_over_leaves_nothing_running(make_bench):
    bench = make_bench()
    with pytest.raises(Killed):
        bench.live(life=Life(20))
    assert "promotion-0001-heads" in bench.runs()
    config = replace_settings(bench.config, {"promotion.stages.heads.epochs": 2})
    again, _ = bench.live(config=config, play=shorter)
    assert [job.config.name for job in again.jobs] == ["promotion-0002-heads", "promotion-0002"]
    statuses = {name: run.info.status for name, run in bench.runs().items() if name.startswith("promotion")}
    assert statuses["promotion-0001"] == statuses["promotion-0001-heads"] == "KILLED"
    assert {status for name, status in statuses.items() if "0002" in name} == {"FINISHED"}


def shorter(config, attempt):
    return Script((0.3, 0.4))


def test_next_promotion_begins_anew_behind_the_stage_that_diverged(make_bench):
    bench = make_bench()

    def diverge(config, attempt):
        return Script((0.3,), reason="nan") if config.name.endswith("heads") else play(config, attempt)

    with pytest.raises(TrainingError, match="promotion-0001-heads: it was nan"):
        bench.live(play=diverge)
    statuses = {name: run.info.status for name, run in bench.runs().items() if name.startswith("promotion")}
    assert statuses["promotion-0001-pretrain"] == "FINISHED"
    executor, _ = bench.live()
    assert [job.config.name for job in executor.jobs] == ["promotion-0002-heads", "promotion-0002"]
