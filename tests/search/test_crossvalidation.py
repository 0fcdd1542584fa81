"""Cross-validation with scripted workers and a real MLflow: what is trained, and a kill at every write."""

import csv
import uuid
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial
from scripted_executor import (
    AP,
    Killed,
    Life,
    MortalExecutor,
    MortalShipper,
    MortalStorage,
    MortalStore,
    Script,
    ScriptedSlots,
)
from small_studies import FACTS, RATE, empty_database, make_config, open_hasty

from cityopt.data.cityscapes import FrameFacts
from cityopt.errors import ConfigError, DataError, StudyError, TrainingError
from cityopt.image_set import Span
from cityopt.search import single
from cityopt.search.crossval_plan import Choice, Opened, build_plan, check_judgeable, choose_settings
from cityopt.search.crossvalidation import CROSSVALS, CrossValidator, run_crossval
from cityopt.search.final_model import build_final
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.single import SingleTraining
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.settings import replace_settings
from cityopt.store import run_folder
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import read_status
from cityopt.training.crossval import divide_frames
from cityopt.training.dataset import Survey

CURVES = {1: (0.1, 0.3, 0.2), 2: (0.2, 0.1, 0.1), 3: (0.1, 0.2, 0.4)}
BEST = {1: (2, 0.3), 2: (1, 0.2), 3: (3, 0.4)}
FRAMES = [
    FrameFacts(f"{city}_{n:06d}_000019", "train", city, (8, 8), (1,) * 8, 0, 1, "0") for city in "abc" for n in range(4)
]


def play_fold(config, _):
    return Script(CURVES[int(config.name.rpartition("-")[2])])


class Bench:
    """One study in one database, with the real MLflow of the session; `live` is a process's life."""

    def __init__(self, store: Path, database: Path) -> None:
        self.store, self.database = store, database
        database.write_bytes(empty_database().read_bytes())
        self.config = make_config(name=f"crossed-{uuid.uuid4().hex[:8]}", training={"epochs": 3})
        self.said: list[str] = []

    def plan(self, settings=None, folds=3, weights="none", **data):
        choice = Choice({RATE: 0.02, **(settings or {})}, "a test", None)
        full = make_config(name=self.config.name, training={"epochs": 3, "learning_rate": choice.settings[RATE]})
        full = replace_settings(full, {"model.weights": str(weights), **{f"data.{key}": x for key, x in data.items()}})
        survey = Survey(Path("/nowhere"), {}, FRAMES, FACTS.fingerprint)
        opened = Opened(None, self.config, FACTS, Path("/nowhere"), survey, choice, full)
        division = divide_frames(FRAMES, folds=folds, seed=0, task="instance")
        return build_plan(opened, FACTS, division, device="cpu", threads=1, store=self.store)

    def live(self, play=play_fold, *, life: Life | None = None, plan=None, executor=None):
        """Run a cross-validation without final model to its end, or until the life is over (Killed)."""
        storage, mlflow = open_hasty(self.database, MortalStorage), MortalStore(self.store)
        executor = executor or MortalExecutor(play)
        observer = Observer()
        observer.say = self.said.append
        study, _ = open_study(storage, self.config, FACTS)

        def run(shipper):
            training = SingleTraining(self.store, executor, shipper, observer)
            return CrossValidator(study, plan or self.plan(), FACTS, mlflow, training).validate(with_final=False)

        if life is None:
            with open_parent(mlflow, self.config, FACTS, observer) as (_, shipper):
                return run(shipper), executor
        mlflow.open_parent(self.config.name)
        shipper = MortalShipper(mlflow)
        storage.life = mlflow.life = executor.life = shipper.life = life
        try:
            return run(shipper), executor
        finally:
            life.is_over = True
            shipper.close()

    @property
    def entries(self):
        return optuna.load_study(study_name=self.config.name, storage=open_hasty(self.database)).user_attrs[CROSSVALS]

    def runs(self):
        client = MlflowStore(self.store).client
        found = client.search_runs([client.get_experiment_by_name(self.config.name).experiment_id])
        runs = {run.info.run_name: run for run in found}
        assert len(runs) == len(found), sorted(run.info.run_name for run in found)
        return runs

    def list_folders(self):
        """Return the folders of the folds that the study remembers."""
        attributes = optuna.load_study(study_name=self.config.name, storage=open_hasty(self.database)).user_attrs
        runs = [run_id for entry in attributes.get(CROSSVALS, []) for run_id in entry["runs"].values()]
        return [run_folder(self.store, run_id) for run_id in runs]

    def folders(self):
        """Return what each fold's folder recorded."""
        entry = self.entries[-1]["runs"]
        return {part: (run_folder(self.store, run_id) / "metrics.jsonl").read_text() for part, run_id in entry.items()}


@pytest.fixture
def bench(mlflow_folder: Path, tmp_path: Path):
    return lambda: Bench(mlflow_folder, tmp_path / f"{uuid.uuid4().hex}.db")


def check_result(it, found, best=BEST):
    values = np.array([value for _, value in best.values()])
    assert {fold.fold.number: (fold.epoch, fold.metrics[AP]) for fold in found.folds} == best
    assert found.spreads[AP].mean == pytest.approx(values.mean(), abs=1e-15)
    assert found.spreads[AP].std == pytest.approx(values.std(ddof=1), abs=1e-15)
    runs = it.runs()
    folds = [f"crossval-0001-fold-{number}" for number in best]
    assert runs.keys() == {it.config.name, "crossval-0001", *folds}
    assert {runs[name].info.status for name in ("crossval-0001", *folds)} == {"FINISHED"}
    assert [runs[name].data.tags["cityopt.kind"] for name in ("crossval-0001", *folds)] == ["crossval"] + [
        "fold"
    ] * len(best)
    metrics = runs["crossval-0001"].data.metrics
    assert metrics["crossval/coco/segm/ap/mean"] == pytest.approx(values.mean())
    assert metrics["crossval/coco/segm/ap/std"] == pytest.approx(values.std(ddof=1))


def test_every_fold_is_a_run_and_one_run_sums_them_up(bench):
    it = bench()
    found, executor = it.live()
    check_result(it, found)
    table = MlflowStore(it.store).fetch_artifact(found.run_id, "crossval.csv").read_text().splitlines()
    (row,) = csv.DictReader(table)
    assert row["metric"] == AP and [float(row[f"fold_{n}"]) for n in (1, 2, 3)] == [v for _, v in BEST.values()]
    note = it.runs()["crossval-0001"].data.tags["mlflow.note.content"]
    assert "**0.3000 ± 0.1000**" in note and "(n - 1) of 3 folds of whole cities" in note
    for job in executor.jobs:
        run = job.config
        assert run.kind == "fold" and run.keep == "best" and run.seed == executor.jobs[0].config.seed
        assert (run.train_set.part, run.validation_set.part) == ("rest", "fold")
        assert run.train_set.spans == run.validation_set.spans and run.training.learning_rate == 0.02
    assert {job.config.validation_set.spans for job in executor.jobs} == {(Span(city=city),) for city in "abc"}


@pytest.fixture
def lives(monkeypatch) -> list[Life]:
    """Lives of which the last counts the ends that are written into folders, too."""
    lives: list[Life] = []

    def write_status(folder, status):
        if lives:
            lives[-1].write("write_status")
        written(folder, status)

    written = single.write_status
    monkeypatch.setattr(single, "write_status", write_status)
    return lives


@pytest.mark.slow
def test_result_is_as_if_nothing_happened_when_killed_at_any_write(bench, lives):
    """Two folds, of two epochs and of one: so that no kind of write is left out and few come twice."""

    def play(config, _):
        return Script((0.1, 0.3) if config.name.endswith("1") else (0.2,))

    calm = bench()
    lives.append(Life())
    calm.live(play, life=lives[-1], plan=calm.plan(folds=2))
    writes = lives.pop().writes
    assert {"write_status", "RDBStorage.set_study_user_attr", "MlflowStore.create_run", "Shipper.end"} <= set(writes)
    for limit, write in enumerate(writes):
        it = bench()
        lives.append(Life(limit))
        with pytest.raises(Killed):
            it.live(play, life=lives[-1], plan=it.plan(folds=2))
        lives.clear()
        finished = [folder for folder in it.list_folders() if read_status(folder) is not None]
        found, executor = it.live(play, plan=it.plan(folds=2))
        where = f"killed before write {limit}, {write}"
        check_result(it, found, {1: (2, 0.3), 2: (1, 0.2)})
        assert len(it.entries) == 1, where
        assert not {job.folder for job in executor.jobs} & set(finished), where


def test_finished_folds_are_untouched_and_the_broken_one_goes_on_when_resumed(bench):
    it = bench()

    def play(config, _):
        fold = int(config.name.rpartition("-")[2])
        return Script(CURVES[fold][:2] if fold == 2 else CURVES[fold], reason="oom" if fold == 2 else "")

    with pytest.raises(TrainingError, match="fold-2: it was oom"):
        it.live(play)
    before = it.folders()
    assert before.keys() == {"fold-1", "fold-2"}
    assert it.runs()["crossval-0001"].info.status == "KILLED"
    found, executor = it.live()
    check_result(it, found)
    assert [job.config.name for job in executor.jobs] == ["crossval-0001-fold-2", "crossval-0001-fold-3"]
    after = it.folders()
    assert after["fold-1"] == before["fold-1"] and after["fold-2"].startswith(before["fold-2"])
    assert "crossval-0001 goes on: 1 of 3 folds are complete" in it.said


def test_several_workers_find_the_same(bench):
    it = bench()
    executor = ScriptedSlots(play_fold, 2)
    found, _ = it.live(executor=executor)
    check_result(it, found)
    assert executor.most_at_once == 2


def test_same_command_shows_the_results_again_when_all_is_done(bench):
    it = bench()
    first, _ = it.live()
    again, executor = it.live()
    assert again == first and executor.jobs == []
    assert "crossval-0001 is complete already; its results:" in it.said


def test_other_settings_or_another_division_begin_a_new_one(bench):
    it = bench()
    it.live()
    for plan in (it.plan({RATE: 0.03}), it.plan(folds=2)):
        it.live(plan=plan)
    assert [entry["name"] for entry in it.entries] == ["crossval-0001", "crossval-0002", "crossval-0003"]
    assert [len(entry["runs"]) for entry in it.entries] == [3, 3, 2]
    _, executor = it.live()
    assert executor.jobs == []  # the first is still there


def test_cross_validation_is_another_one_when_its_weights_have_other_content(bench, tmp_path):
    it, weights = bench(), tmp_path / "weights.pt"
    digests = [it.plan().digest]
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        digests.append(it.plan(weights=weights).digest)
    assert digests[1] == digests[3] and len(set(digests)) == 3


def test_run_that_nobody_recorded_is_found_again(bench):
    it = bench()
    mlflow = MlflowStore(it.store)
    run_id = mlflow.create_run(it.config.name, "crossval-0001", "crossval")
    found, _ = it.live()
    assert found.run_id == run_id


def test_settings_are_those_of_the_best_trial_then_a_baseline_then_the_yamls():
    config = make_config(baselines=[{RATE: 0.05}])
    study = optuna.create_study(direction="maximize")
    assert choose_settings(None, make_config(), {}) == Choice({}, "the study's own, since no trial is complete", None)
    for some in (None, study):
        choice = choose_settings(some, config, {"training.epochs": 3})
        assert choice.settings == {RATE: 0.05, "training.epochs": 3} and choice.trial is None
        assert choice.source == "the study's first baseline, since no trial is complete, with --set training.epochs=3"
    for value, rate in ((0.1, 0.2), (0.3, 0.4)):
        distribution = {RATE: optuna.distributions.FloatDistribution(0, 1)}
        trial = create_trial(state=TrialState.COMPLETE, value=value, params={RATE: rate}, distributions=distribution)
        study.add_trial(trial)
    choice = choose_settings(study, config, {})
    assert (choice.settings, choice.trial) == ({RATE: 0.4}, 1)
    assert choice.source == "trial 1, the best of 2 complete"


def test_anchors_grow_with_the_images(bench):
    it = bench()
    height, width = it.config.data.size
    half, whole = (
        it.plan(size=size).runs[0].model.anchor_table for size in ((height // 2, width // 2), (height, width))
    )
    assert [list(row) for row in whole.sizes] == FACTS.anchors["sizes"]
    assert half.sizes == tuple(tuple(size / 2 for size in row) for row in whole.sizes) and half.ratios == whole.ratios


def test_final_model_trains_on_all_until_the_mean_of_the_best_epochs(bench):
    fold = bench().plan().runs[0]
    for epochs, stop in (([2, 1, 3], 2), ([1, 2], 2), ([3, 3, 2], 3), ([1, 1, 2], 1)):
        run = build_final(fold, "crossval-0001-final", epochs, threads=4)
        assert run.last_epoch == stop
    assert (run.kind, run.keep, run.threads, run.training) == ("final", "last", 4, fold.training)
    assert (run.train_set.split, run.train_set.part, run.train_set.spans) == ("train", "all", ())
    assert (run.validation_set.split, run.validation_set.part) == ("val", "all")


def test_final_model_is_refused_with_the_way_out_when_there_is_no_val():
    with pytest.raises(DataError, match=r"val, but /nowhere has none.*--no-final"):
        check_judgeable(Survey(Path("/nowhere"), {}, FRAMES, "f"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "`--folds` must be at least 2, but got 1"),
        ({"workers": 0}, "`--workers` must be at least 1, but got 0"),
    ],
)
def test_options_are_refused_before_a_store_is_made(tmp_path, options, message):
    given = {"settings": {}, "folds": 5, "workers": 1, "blocks": False, "final": True, "data": None, "device": "cpu"}
    with pytest.raises(ConfigError, match=message):
        run_crossval("s", begin=make_config, store=tmp_path / "store", observer=Observer(), **{**given, **options})
    assert list(tmp_path.iterdir()) == []


def test_settings_of_the_study_itself_begin_it_and_are_refused_when_it_has_others(tmp_path):
    began = []

    def begin(own):
        began.append(own)
        raise ConfigError("far enough")

    def cross(settings):
        options = {"folds": 3, "workers": 1, "blocks": False, "final": True, "data": "synthetic", "device": "cpu"}
        run_crossval("small", begin=begin, store=tmp_path, settings=settings, observer=Observer(), **options)

    with pytest.raises(ConfigError, match="far enough"):
        cross({"data.num_images": None, "training.epochs": 2, "search.metric": AP})
    assert began == [{"data.num_images": None, "search.metric": AP}]
    open_study(open_storage(tmp_path), make_config(), FACTS)
    with pytest.raises(StudyError, match=r"data.num_images: was None, now 3"):
        cross({"data.num_images": 3, "training.epochs": 2})
    with pytest.raises(ConfigError, match=r"no config key 'data.number'"):
        cross({"data.number": 3})
    assert len(began) == 1


def test_loss_stays_when_folds_are_judged_by_it(tmp_path):
    config = make_config(model={"family": "semantic_fpn"}, metric="val/loss/total", direction="minimize")
    options = {"folds": 3, "workers": 1, "blocks": False, "final": True, "data": "synthetic", "device": "cpu"}
    with pytest.raises(ConfigError, match=r"`--set` cannot hold model\.class_weights beside"):
        run_crossval("small", begin=lambda own: config, store=tmp_path, settings={"model.class_weights": "balanced"},
                     observer=Observer(), **options)  # fmt: skip
