"""Promotions of the tiny study: champion, challenger, killed and resumed, and the model in another process."""

import json
import subprocess
import sys

import pytest
from command_line import (
    ENVIRONMENT,
    PATIENCE_S,
    STUDY,
    find_worker,
    interrupt,
    kill,
    read_curves,
    read_runs,
    read_trials,
    run,
    run_here,
    run_until,
    wait_for_death,
)
from official_scripts import score_export
from optuna.trial import TrialState

from cityopt.data.roots import make_scenes
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_registry import find_champion, name_model, resolve_checkpoint
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def promoted(stories):
    """The calm study, promoted twice."""
    store = stories("calm").store
    promote = ("promote", "--study", STUDY, "--store", store, "--device", "cpu")
    return store, [run_here(*promote) for _ in range(2)]


def test_best_trial_becomes_champion_when_first_promoted(promoted):
    store, (first, _) = promoted
    assert first.code == 0, first
    trials = [trial for trial in read_trials(store) if trial.state == TrialState.COMPLETE]
    best = min(trials, key=lambda trial: trial.value)
    found = read_runs(store)["promotion-0001"]
    assert found.info.status == "FINISHED" and found.data.tags["cityopt.kind"] == "promotion"
    assert found.data.tags["cityopt.trial"] == str(best.number)
    assert found.data.tags["mlflow.parentRunId"] == read_runs(store)["tiny"].info.run_id
    assert float(found.data.params["training.learning_rate"]) == best.params["training.learning_rate"]
    champion = find_champion(MlflowStore(store), "tiny")
    assert champion.version == 1 and champion.run_id == found.info.run_id
    assert "models:/cityopt-tiny@champion (version 1): there was no champion" in first.output


def test_output_compares_with_the_trial_when_promoted(promoted):
    _, (first, _) = promoted
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in first.output.splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["val", "trials' holdout"]
    assert rows[1][2] != "–" and "trials' holdout: the promoted model has trained on these images" in first.output


def test_best_and_worst_images_are_artifacts_when_promoted(promoted):
    store, _ = promoted
    found = MlflowStore(store)
    run_id = read_runs(store)["promotion-0001"].info.run_id
    names = {
        item.path for folder in ("overlays", "overlays/worst") for item in found.client.list_artifacts(run_id, folder)
    }
    worst = sorted(name for name in names if name.startswith("overlays/worst/"))
    assert worst and worst[0].startswith("overlays/worst/01_f1-") and "overlays/images.csv" in names
    rows = found.fetch_artifact(run_id, "overlays/images.csv").read_text().splitlines()[1:]
    assert len(rows) == 5  # all of val
    assert worst[0].endswith(f"_{rows[0].split(',')[0]}.jpg")


def test_second_promotion_is_challenger_with_the_reason_when_it_is_no_better(promoted):
    store, (_, second) = promoted
    assert second.code == 0, second
    assert "@challenger (version 2): no better than the champion" in second.output
    client = MlflowStore(store).client
    aliases = client.get_registered_model(name_model("tiny")).aliases
    assert {alias: int(version) for alias, version in aliases.items()} == {"champion": 1, "challenger": 2}
    first_run, second_run = (read_runs(store)[f"promotion-000{number}"] for number in (1, 2))
    assert first_run.data.metrics["train/loss/total"] == second_run.data.metrics["train/loss/total"]


_PREDICT = """
import json, sys, torch, mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_registry_uri(sys.argv[1])
import mlflow.pytorch
torch.set_num_threads(1)
model = mlflow.pytorch.load_model("models:/cityopt-tiny@champion")
images = [torch.rand(3, 64, 128), torch.rand(3, 50, 90)]
with torch.no_grad():
    found = model(images)
print(json.dumps([{key: [list(value.shape), str(value.dtype)] for key, value in some.items()} for some in found]))
"""


def test_champion_predicts_in_another_process_when_loaded_by_mlflow(promoted, tmp_path):
    store, _ = promoted
    command = [sys.executable, "-c", _PREDICT, MlflowStore(store).tracking_uri]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    for found, size in ((first, [64, 128]), (second, [50, 90])):
        count = found["scores"][0][0]
        assert found["boxes"] == [[count, 4], "torch.float32"] and found["labels"] == [[count], "torch.int64"]
        assert found["masks"] == [[count, 1, *size], "torch.float32"]


def test_reference_resolves_to_the_checkpoint_file_when_promoted(promoted):
    import torch

    store, _ = promoted
    path = resolve_checkpoint(store, "models:/cityopt-tiny@champion")
    content = torch.load(path, weights_only=True)  # no pickle is needed to read it
    assert path.suffix == ".pt" and "model" in content


def test_champion_gets_the_numbers_of_its_promotion_when_evaluated_at_the_size_of_its_training(promoted, tmp_path):
    store, _ = promoted
    answer = run_here(
        *("evaluate", "--model", "models:/cityopt-tiny@champion", "--store", store, "--device", "cpu", "--json"),
        *("--export", tmp_path / "out"),
    )
    assert (answer.code, answer.errors) == (0, "")
    found = json.loads(answer.output)
    promotion = read_runs(store)["promotion-0001"].data.metrics
    known = {name: value for name, value in promotion.items() if name.startswith("val/coco/")}
    assert known and {name: found[name] for name in known} == pytest.approx(known, abs=1e-12)
    root = make_scenes(load_study(str(STUDY)).data.synthetic, store / "cache")
    official = score_export(tmp_path / "out", root, "val")
    for name in ("cityscapes/ap", "cityscapes/ap50", "coco/segm/ap", "semantic_things/miou"):
        assert 0 <= official[f"val/{name}"] <= 1, name
    for name, value in official.items():
        assert found[name] == pytest.approx(value, abs=1e-9) if value == value else found[name] is None, name
    assert 0 < found["val/cityscapes/ap"] <= found["val/cityscapes/ap50"]
    assert any((tmp_path / "out/instances/masks").iterdir())


def test_promotion_goes_on_from_its_checkpoint_when_killed_or_interrupted(stories, promoted):
    calm_store, _ = promoted
    store = stories("coordinator_killed").store
    promote = ("promote", "--study", "tiny", "--store", store, "--device", "cpu")

    def kill_both(process):
        worker = find_worker(store)
        kill(process)
        wait_for_death(worker)

    first = run_until("promotion-0001 epoch 1/4", kill_both, *promote)
    assert first.code == -9
    assert read_runs(store)["promotion-0001"].info.status == "RUNNING"  # nobody was left to say otherwise
    second = run_until("promotion-0001 epoch", interrupt, *promote)
    assert second.code == 130 and "The same command goes on" in second.output + second.errors
    assert "Traceback" not in second.output + second.errors
    assert {found.info.status for found in read_runs(store).values()} == {"FINISHED", "KILLED"}
    third = run(*promote)
    assert third.code == 0, third
    assert "promotion-0001 goes on" in third.output and "epoch 4/4" in third.output
    assert {name for name in read_runs(store) if name.startswith("promotion")} == {"promotion-0001"}
    assert read_runs(store)["promotion-0001"].info.status == "FINISHED"
    mine, calm = (read_curves(some, "promotion-0001") for some in (store, calm_store))
    assert mine.keys() == calm.keys()
    for metric, points in calm.items():
        assert [step for step, *_ in mine[metric]] == [step for step, *_ in points], metric
        if not metric.startswith(("system/", "train/images_per_s")):
            assert [value for *_, value in mine[metric]] == [value for *_, value in points], metric
    assert find_champion(MlflowStore(store), "tiny").run_id == read_runs(store)["promotion-0001"].info.run_id


def test_sweep_goes_on_when_a_promotion_was_in_between(promoted):
    store, _ = promoted
    answer = run_here("sweep", "--study", STUDY, "--store", store, "--device", "cpu", "--trials", 5)
    assert answer.code == 0 and "begins" not in answer.output  # all five were there
    assert {found.info.status for found in read_runs(store).values()} <= {"FINISHED", "KILLED"}
    assert read_runs(store)["promotion-0001"].info.status == "FINISHED"
