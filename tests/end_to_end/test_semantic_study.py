"""A semantic study from sweep to evaluation: the same commands, other metrics, and the official script's numbers."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import read_curves, read_runs, read_trials, run_here
from official_scripts import score_classes

from cityopt.data.roots import make_scenes
from cityopt.study_file import load_study

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parents[1] / "studies" / "tiny_unet.yaml"


@pytest.fixture(scope="module")
def store(template_store, tmp_path_factory):
    """A store with the study swept and promoted."""
    folder = shutil.copytree(template_store, tmp_path_factory.mktemp("semantic") / "store")
    for verb in ("sweep", "promote"):
        answer = run_here(verb, "--study", STUDY, "--store", folder, "--device", "cpu")
        assert answer.code == 0, answer
    return folder


def test_trials_report_semantic_metrics_and_the_loss_when_swept(store):
    trials = read_trials(store, "tiny_unet")
    assert len(trials) == 2 and trials[0].params["model.loss"] == "cross_entropy+dice"
    curves = read_curves(store, "trial-0000", "tiny_unet")
    assert {"val/semantic/miou", "val/semantic/iou/class/road", "val/loss/cross_entropy", "val/loss/dice"} <= set(
        curves
    )
    assert not any(name.startswith("val/coco") for name in curves)
    best = max(value for *_, value in curves["val/semantic/miou"])
    assert trials[0].value == best > 0
    loss = [value for *_, value in curves["train/loss/total"]]
    assert loss[-1] < loss[0]
    assert read_runs(store, "tiny_unet")["trial-0000"].data.tags["cityopt.protocol"] == "cityscapes semantic"


def test_trial_and_promoted_model_are_compared_on_the_same_images(store):
    """The trial's checkpoint, judged again by the promotion, has the score that the trial had on the holdout."""
    best = max((trial for trial in read_trials(store, "tiny_unet") if trial.value), key=lambda trial: trial.value)
    found = read_runs(store, "tiny_unet")["promotion-0001"].data
    assert found.metrics["trial/holdout/semantic/miou"] == pytest.approx(best.value, abs=1e-9)
    for name in ("trial/val/semantic/miou", "promoted/holdout/semantic/miou", "val/semantic/miou"):
        assert 0 < found.metrics[name] < 1, name
    assert found.metrics["trial/val/semantic/miou"] != found.metrics["val/semantic/miou"]
    assert "cityopt.subset_hash" not in found.tags  # it trained on all images


def test_exported_maps_score_the_same_under_the_official_script_when_evaluated(store, tmp_path):
    answer = run_here(
        *("evaluate", "--model", "models:/cityopt-tiny_unet@champion", "--store", store, "--device", "cpu", "--json"),
        *("--export", tmp_path / "out"),
    )
    assert (answer.code, answer.errors) == (0, "")
    found = json.loads(answer.output)
    assert {name.split("/")[1] for name in found} == {"semantic"}
    root = make_scenes(load_study(str(STUDY)).data.synthetic, store / "cache")
    official = score_classes(tmp_path / "out", root, "val")
    assert official.keys() <= found.keys() and official["val/semantic/miou"] > 0.02
    for name, value in official.items():
        assert found[name] == pytest.approx(value, abs=1e-12) if value == value else found[name] is None, name
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pixels"]


def test_instance_protocols_are_refused_when_the_model_is_semantic(store):
    answer = run_here(
        *("evaluate", "--model", "models:/cityopt-tiny_unet@champion", "--store", store, "--device", "cpu"),
        *("--protocol", "cityscapes"),
    )
    assert answer.code == 1 and "the model is semantic" in answer.errors and "--protocol semantic" in answer.errors
