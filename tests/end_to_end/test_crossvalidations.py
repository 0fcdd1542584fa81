"""A cross-validation as a user runs it: killed in its second fold, gone on with, summed up, and a model from it."""

import csv
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import find_worker, kill, read_curves, read_runs, run_here, run_until, wait_for_death

from cityopt.tracking.mlflow_registry import find_champion
from cityopt.tracking.mlflow_store import MlflowStore

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parents[1] / "studies" / "tiny_unet.yaml"
MIOU = "val/semantic/miou"


@pytest.fixture(scope="module")
def crossed(template_store, tmp_path_factory):
    """A study that was never swept, killed in fold 2, then finished by the same command with two workers."""
    store = Path(shutil.copytree(template_store, tmp_path_factory.mktemp("crossed") / "store"))
    crossval = ("crossval", "--study", STUDY, "--store", store, "--device", "cpu", "--folds", 3)
    crossval += ("--set", "training.learning_rate=0.05")

    def kill_both(process):
        worker = find_worker(store)
        kill(process)
        wait_for_death(worker)

    killed = run_until("crossval-0001-fold-2 epoch 1/3", kill_both, *crossval)
    assert killed.code == -9
    before = read_curves(store, "crossval-0001-fold-1", "tiny_unet")
    return store, before, run_here(*crossval, "--workers", 2)


def test_killed_cross_validation_goes_on_in_its_fold(crossed):
    store, before, answer = crossed
    assert (answer.code, answer.errors) == (0, ""), answer
    assert "crossval-0001 goes on: 1 of 3 folds are complete" in answer.output
    assert "fold-1 epoch" not in answer.output and "crossval-0001-fold-2 goes on" in answer.output
    assert read_curves(store, "crossval-0001-fold-1", "tiny_unet") == before
    runs = read_runs(store, "tiny_unet")
    assert {name: found.data.tags["cityopt.kind"] for name, found in runs.items()} == {
        "tiny_unet": "study",
        "crossval-0001": "crossval",
        "crossval-0001-final": "final",
        **{f"crossval-0001-fold-{number}": "fold" for number in (1, 2, 3)},
    }
    assert {found.info.status for found in runs.values()} == {"FINISHED"}


def test_mean_and_deviation_are_numpys_over_the_folds_best_epochs(crossed):
    store, _, answer = crossed
    best = []
    for number in (1, 2, 3):
        curves = read_curves(store, f"crossval-0001-fold-{number}", "tiny_unet")
        assert len(curves[MIOU]) == 3
        best.append(max(value for *_, value in curves[MIOU]))
    mean, std = np.mean(best), np.std(best, ddof=1)
    found = read_runs(store, "tiny_unet")["crossval-0001"]
    assert found.data.metrics["crossval/semantic/miou/mean"] == pytest.approx(mean, abs=1e-12)
    assert found.data.metrics["crossval/semantic/miou/std"] == pytest.approx(std, abs=1e-12)
    assert f"{mean:.4f} ± {std:.4f}" in answer.output
    table = MlflowStore(store).fetch_artifact(found.info.run_id, "crossval.csv")
    rows = {row["metric"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert [float(rows[MIOU][f"fold_{number}"]) for number in (1, 2, 3)] == best
    assert f"{MIOU.replace('miou', 'iou')}/class/road" in rows


def test_folds_have_cities_of_their_own_and_the_settings_of_the_first_baseline(crossed):
    store, _, answer = crossed
    assert "settings: the study's first baseline, since no trial is complete, with --set" in answer.output
    rows = [line.split("│")[1:-1] for line in answer.output.splitlines() if re.match(r"│ +[123] ", line)]
    cities = [city for row in rows for city in row[1].strip().split(", ")]
    assert len(rows) == 3 and len(cities) == len(set(cities)) == 6
    params = [read_runs(store, "tiny_unet")[f"crossval-0001-fold-{n}"].data.params for n in (1, 2, 3)]
    assert {(p["training.learning_rate"], p["model.loss"]) for p in params} == {("0.05", "cross_entropy+dice")}
    assert len({p["seed"] for p in params}) == 1


def test_final_model_is_judged_officially_and_registered(crossed):
    store, _, answer = crossed
    final = read_runs(store, "tiny_unet")["crossval-0001-final"]
    official = final.data.metrics["official/val/semantic/miou"]
    assert f"official, at full resolution: val/semantic/miou {official:.4f}" in answer.output
    champion = find_champion(MlflowStore(store), "tiny_unet")
    assert champion.run_id == final.info.run_id and champion.tags["cityopt.crossval"] == "crossval-0001"
    assert "models:/cityopt-tiny_unet@champion (version 1): there was no champion" in answer.output
    assert "Next: cityopt predict IMAGES --model models:/cityopt-tiny_unet@champion" in answer.output


def test_status_and_report_work_when_a_study_was_only_cross_validated(crossed, call, tmp_path):
    store, *_ = crossed
    code, output, _ = call("status", "--study", "tiny_unet", "--store", store)
    assert code == 0 and "1 waiting" in output
    code, output, _ = call("report", "--study", "tiny_unet", "--store", store, "--out", tmp_path / "page.html")
    assert code == 0 and (tmp_path / "page.html").stat().st_size > 1000


def test_too_many_folds_are_refused_with_the_way_out(crossed, call):
    store, *_ = crossed
    code, _, errors = call("crossval", "--study", STUDY, "--store", store, "--folds", 7)
    assert code == 1 and errors.startswith("Error: `--folds 7` needs as many cities")
    assert "Use --folds 6, or --blocks" in errors
