"""Every bad input of a user: exit code 1, one message that names file or key and the fix, nothing half-written."""

import json
import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import optuna
import pytest
from command_line import STUDY, read_runs, run
from optuna.trial import TrialState, create_trial
from PIL import Image

from cityopt.data.synthetic import write_synthetic
from cityopt.search.observer import Observer
from cityopt.search.preparation import prepare_study
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.search.study_lock import lock_study
from cityopt.search.sweep import build_facts
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_store import MlflowStore


@pytest.fixture
def refuse(call, tmp_path):
    """Call a sweep that must be refused before it writes anything; return the message."""

    def refuse(*arguments, study=STUDY):
        store = tmp_path / "store"
        code, _, err = call("sweep", "--study", study, "--device", "cpu", "--store", store, *arguments)
        assert code == 1 and err.startswith("Error: ") and "Traceback" not in err, err
        assert find_leftovers(store) == []
        return err

    return refuse


def find_leftovers(store: Path) -> list[object]:
    """Return studies, experiments and runs of a store, and anything half-written in its cache."""
    found: list[object] = []
    if (store / "optuna.db").exists():
        found += optuna.get_all_study_names(open_storage(store))
    if (store / "mlflow.db").exists():
        found += [e.name for e in MlflowStore(store).client.search_experiments() if e.name == "tiny"]
    found += list(store.glob("runs/*"))
    found += [path for path in store.rglob("*") if "partial" in path.name or "staging" in path.name]
    return found


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "tree"
    write_synthetic(root, num_images=24, size=(64, 128), seed=0)
    return root


@pytest.fixture
def tree(scenes, tmp_path) -> Path:
    return Path(shutil.copytree(scenes, tmp_path / "tree"))


def first(tree: Path, suffix: str) -> Path:
    return min((tree / ("leftImg8bit" if "left" in suffix else "gtFine") / "train").rglob(f"*_{suffix}"))


def test_no_dataset_is_refused_with_all_ways_to_give_one(refuse):
    message = refuse("--set", "data.root=null")
    assert "--data" in message and "data.root" in message and "CITYSCAPES_DATASET" in message


def test_root_that_is_not_there_is_refused_by_name(refuse, tmp_path):
    assert str(tmp_path / "nowhere") in refuse("--data", tmp_path / "nowhere")
    assert not (tmp_path / "store").exists()


def test_root_that_is_not_cityscapes_is_refused_by_what_it_lacks(refuse, tmp_path):
    (tmp_path / "photos").mkdir()
    message = refuse("--data", tmp_path / "photos")
    assert "leftImg8bit" in message and str(tmp_path / "photos") in message
    assert not (tmp_path / "store").exists()


def test_image_without_label_is_refused_by_both_names(refuse, tree):
    label = first(tree, "gtFine_instanceIds.png")
    label.unlink()
    message = refuse("--data", tree)
    assert str(label) in message and "remove the image" in message


def test_label_of_another_size_is_refused_by_both_sizes(refuse, tree):
    label = first(tree, "gtFine_instanceIds.png")
    Image.fromarray(np.zeros((32, 64), np.uint16)).save(label)
    message = refuse("--data", tree)
    assert str(label) in message and "32 x 64" in message and "64 x 128" in message


def test_truncated_png_is_refused_by_name(refuse, tree):
    image = first(tree, "leftImg8bit.png")
    image.write_bytes(image.read_bytes()[:-200])
    message = refuse("--data", tree)
    assert str(image) in message and "Restore" in message


def test_raster_with_impossible_ids_is_refused_by_the_ids(refuse, tree):
    label = first(tree, "gtFine_instanceIds.png")
    raster = np.array(Image.open(label))
    raster[0, 0] = 34_000
    Image.fromarray(raster).save(label)
    message = refuse("--data", tree)
    assert str(label) in message and "34000" in message


def test_rubbish_polygons_are_named_when_a_dataset_is_checked(call, tree):
    first(tree, "gtFine_polygons.json").write_text("{rubbish")
    _, out, _ = call("data", "check", "--data", tree, "--json")
    problems = json.loads(out)["splits"]["train"]["problems"]
    assert [problem["file"] for problem in problems] == [
        first(tree, "gtFine_polygons.json").relative_to(tree).as_posix()
    ]
    assert "JSON" in problems[0]["problem"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("training: {epoch: 3}", ["training.epoch", "Did you mean 'training.epochs'?"]),
        ("trainig: {epochs: 3}", ["trainig", "Did you mean 'training'?"]),
        ("training: {epochs: many}", ["training.epochs", "'many'"]),
        ("training: {epochs: 2.5}", ["training.epochs", "2.5"]),
        ("training: {epochs: [", ["no valid YAML"]),
        (
            "search: {space: {training.learning_rate: {type: float, low: 0.1, high: 0.01}}}",
            ["search.space.training.learning_rate", "`low <= high` must hold", "low=0.1, high=0.01"],
        ),
        (
            "search: {space: {training.learning_rate: {type: float, low: 0, high: 0.1, log: true}}}",
            ["search.space.training.learning_rate", "`low > 0` must hold", "low=0"],
        ),
        (
            "search: {space: {training.learning_rat: {type: float, low: 0.01, high: 0.1}}}",
            ["training.learning_rat", "training.learning_rate"],
        ),
    ],
)
def test_bad_yaml_is_refused_by_file_and_key(refuse, tmp_path, content, words):
    study = tmp_path / "mine.yaml"
    study.write_text(content)
    message = refuse(study=study)
    assert str(study) in message and all(word in message for word in words), message
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.epoch=3", ["training.epoch", "Did you mean 'training.epochs'?"]),
        ("learning_rate=3", ["Did you mean 'training.learning_rate'?"]),
        ("training.epochs", ["key=value"]),
        ("model.freeze_depth=7", ["model.freeze_depth", "7"]),
    ],
)
def test_bad_setting_is_refused_by_key(refuse, tmp_path, setting, words):
    message = refuse("--set", setting)
    assert all(word in message for word in words), message
    assert not (tmp_path / "store").exists()


def test_unknown_study_is_refused_with_those_there_are(refuse):
    message = refuse(study="dem")
    assert "Did you mean 'demo'?" in message and "maskrcnn" in message


def test_metric_that_is_never_reported_is_refused_with_those_that_are(refuse, tmp_path):
    message = refuse("--set", "search.metric=val/coco/ap")
    assert "search.metric" in message and "val/coco/segm/ap" in message
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_metric_without_a_value_stops_the_study_with_the_reason(tiny_store):
    absent = "val/coco/segm/ap/class/train"
    answer = run(
        "sweep", "--study", STUDY, "--store", tiny_store, "--device", "cpu", "--set", f"search.metric={absent}"
    )
    assert answer.code == 1 and absent in answer.errors and "Traceback" not in answer.errors, answer
    assert {found.info.status for found in read_runs(tiny_store).values()} == {"FAILED"}


def test_weights_that_cannot_be_downloaded_are_refused_with_the_place_to_put_them(refuse, monkeypatch, tmp_path):
    from cityopt.models import weights

    def fail(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr(weights, "urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    message = refuse("--set", "model.weights=imagenet", "--set", "model.stem_channels=64")
    assert str(tmp_path / "hub" / "hub" / "checkpoints" / "resnet18") in message and "https://" in message
    message = refuse("--set", f"model.weights={tmp_path / 'absent.pt'}")
    assert "model.weights" in message and "absent.pt" in message


def test_store_that_cannot_be_written_is_refused_by_name(call, tmp_path):
    (tmp_path / "file").write_text("no folder")
    for command in (["sweep", "--study", STUDY], ["anchors", "--study", STUDY]):
        code, _, err = call(*command, "--store", tmp_path / "file" / "store")
        assert code == 1 and str(tmp_path / "file" / "store") in err and "--store DIR" in err


@pytest.fixture
def begun(tiny_store) -> Path:
    """A store where the tiny study was begun and one trial failed."""
    study_config = load_study(str(STUDY))
    prepared = prepare_study(study_config, tiny_store, data=None, observer=Observer())
    study, _ = open_study(open_storage(tiny_store), prepared.config, build_facts(prepared, threads=1, weights={}))
    study.add_trial(create_trial(state=TrialState.FAIL))
    return tiny_store


def test_other_settings_than_the_study_began_with_are_refused_by_name(call, begun):
    options = ["--study", STUDY, "--device", "cpu", "--store", begun]
    code, _, err = call("sweep", *options, "--set", "training.batch_size=2", "--seed", 5)
    assert code == 1 and "--name NEW" in err
    assert "training.batch_size: was 4, now 2" in err and "seed: was 0, now 5" in err
    code, _, err = call("sweep", *options, "--set", "data.synthetic.seed=9")
    assert code == 1 and "data fingerprint: was" in err  # another dataset under the same settings
    assert not list(begun.glob("runs/*"))
    assert [trial.state for trial in optuna.load_study(study_name="tiny", storage=open_storage(begun)).trials] == [
        TrialState.WAITING,
        TrialState.FAIL,
    ]


def test_promotion_is_refused_when_no_trial_is_complete(call, begun, tmp_path):
    code, _, err = call("promote", "--study", "tiny", "--store", begun)
    assert code == 1 and "complete trial" in err and "cityopt sweep --study tiny" in err
    assert not list(begun.glob("runs/*"))
    code, _, err = call("promote", "--study", "tiny", "--store", tmp_path / "nothing")
    assert code == 1 and "cityopt sweep --study tiny" in err
    assert not (tmp_path / "nothing").exists()


STAGED = (
    "promotion.stages=[{name: pretrain, model: semantic_fpn, split: train_extra, labels: coarse, "
    "overrides: {model.semantic_head_channels: 8}}, {name: heads, start_from: pretrain}]"
)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            [STAGED],
            ["leftImg8bit/train_extra", "promotion.skip=[pretrain]", "promotion.stages=null", "synthetic.coarse"],
        ),
        ([STAGED.replace("split: train_extra, ", "")], ["gtCoarse", "promotion.skip=[pretrain]"]),
        ([STAGED.replace("from: pretrain", "from: pretrian")], ["'pretrian' does not exist", "weights, pretrain"]),
        ([STAGED.replace("name: heads", "name: pretrain")], ["'pretrain' comes twice"]),
        ([STAGED, "promotion.skip=[pretrian]"], ["Did you mean 'pretrain'?"]),
        (["promotion.stage=[]"], ["promotion.stage", "Did you mean 'promotion.stages'?"]),
    ],
)
def test_stages_that_cannot_be_trained_are_refused_before_any_is(call, begun, settings, words):
    from optuna.distributions import FloatDistribution

    study = optuna.load_study(study_name="tiny", storage=open_storage(begun))
    ranges = {"training.learning_rate": FloatDistribution(1e-4, 1e-2, log=True)}
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE, value=3.0, params={"training.learning_rate": 1e-3}, distributions=ranges
        )
    )
    options = [word for setting in settings for word in ("--set", setting)]
    code, _, err = call("promote", "--study", "tiny", "--store", begun, "--device", "cpu", *options)
    assert code == 1 and err.startswith("Error: ") and "Traceback" not in err, err
    assert all(word in err for word in words), err
    assert not list(begun.glob("runs/*"))


def test_second_coordinator_is_refused_with_the_pid_of_the_first(call, begun):
    import os

    with lock_study(begun, "tiny"):
        for command in ("sweep", "promote"):
            code, _, err = call(command, "--study", STUDY, "--store", begun)
            assert code == 1 and f"pid {os.getpid()}" in err and "cityopt status --study tiny" in err


def test_device_that_is_absent_is_refused_with_those_that_work(refuse):
    assert "--device auto" in refuse("--device", "cuda:77")


def test_anchors_print_one_document_of_the_agreed_shape_when_asked_for_json(call, tiny_store):
    code, out, err = call("anchors", "--study", STUDY, "--store", tiny_store, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert {"sizes", "ratios", "adopted", "kmeans", "default"} <= document.keys()
    assert document["adopted"] in ("kmeans", "default")
    assert len(document["sizes"]) == len(document["ratios"]) == 5
    for name in ("kmeans", "default"):
        assert {"mean_best_iou", "recall_50", "recall_70"} <= document[name].keys()
        assert 0 <= document[name]["recall_70"] <= document[name]["recall_50"] <= 1
    code, out, _ = call("anchors", "--study", STUDY, "--store", tiny_store)
    assert code == 0 and "P2" in out and "recall" not in out.splitlines()[0]
