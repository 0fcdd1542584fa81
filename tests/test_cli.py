"""The command line: help that helps, answers at once, and errors that end with the fix and exit code 1."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_docs import list_commands

from cityopt import cli
from cityopt.errors import CityoptError, StoppedError
from cityopt.labels import THING_NAMES

TINY = Path(__file__).parent / "studies" / "tiny.yaml"


@pytest.mark.parametrize("name", list_commands())
def test_command_has_help_with_an_example(name, call):
    command = list_commands()[name]
    sentence, _, rest = command.help.partition("\n")
    assert sentence.strip().endswith(".") or ";" in sentence
    assert f"Example: cityopt {name}" in rest
    code, out, err = call(*name.split(), "--help")
    assert (code, err) == (0, "") and f"cityopt {name}" in out
    for parameter in command.params:
        assert parameter.name in ("out", "help") or parameter.help, f"{parameter.name} of {name} has no help"


def test_help_is_printed_when_no_command_is_given(call):
    code, out, err = call()
    assert code == 2 or code == 0
    for name in list_commands():
        assert name.split()[0] in out + err


def test_help_answers_at_once_and_imports_nothing_heavy():
    code = (
        "import sys\n"
        "sys.argv = ['cityopt', '--help']\n"
        "from cityopt import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'mlflow', 'optuna', 'numpy', 'sklearn', 'matplotlib', 'pandas', 'sqlalchemy')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])\n"
        "import time; print('CPU', time.process_time())\n"
    )
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "HEAVY []" in done.stdout and "Usage: " in done.stdout
    seconds = float(re.search(r"CPU ([\d.]+)", done.stdout)[1])
    assert seconds < 1.0, f"{seconds:.2f} s of work, {time.perf_counter() - begin:.2f} s in all"


def test_user_error_is_one_message_with_exit_code_1(call, monkeypatch):
    def fail():
        raise CityoptError("it must hold. Do this.")

    monkeypatch.setattr(cli, "app", fail)
    assert call() == (1, "", "Error: it must hold. Do this.\n")


def test_stop_is_no_error_when_the_user_asked_for_it(call, monkeypatch):
    def stop():
        raise StoppedError("Stopped; nothing is lost.")

    monkeypatch.setattr(cli, "app", stop)
    assert call() == (130, "", "Stopped; nothing is lost.\n")


def test_bug_keeps_its_traceback(call, monkeypatch):
    def fail():
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ZeroDivisionError):
        call()


def test_scenes_can_be_made_and_checked_when_there_is_no_data(call, tmp_path):
    out = tmp_path / "scenes"
    code, said, err = call("data", "synth", out, "--num-images", 4, "--size", "64x128", "--seed", 3)
    assert (code, err) == (0, "") and f"cityopt data check --data {out}" in said
    code, said, err = call("data", "check", "--data", out, "--json")
    document = json.loads(said)
    assert (code, err) == (0, "") and document["root"] == str(out)
    assert sum(split["images"] for split in document["splits"].values()) == 4
    assert all(set(split) == {"images", "labels", "problems"} for split in document["splits"].values())
    next((out / "gtFine" / "train").rglob("*_instanceIds.png")).unlink()
    code, said, err = call("data", "check", "--data", out)
    assert (code, err) == (1, "") and "_instanceIds.png" in said


def test_anchors_are_refused_for_a_family_without_before_anything_is_written(call, tmp_path):
    end = ("--data", "synthetic", "--store", tmp_path / "store")
    code, said, err = call("anchors", "--study", "unet", *end)
    assert (code, said) == (1, "") and "`model.family: unet`, which has no anchors" in err
    code, said, err = call("anchors", "--study", "demo", "--data", tmp_path / "nowhere", *end[2:])
    assert (code, said) == (1, "") and "nowhere" in err and not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from cityopt.data.synthetic import write_synthetic

    out = tmp_path_factory.mktemp("stats") / "scenes"
    write_synthetic(out, num_images=6, size=(64, 128), seed=3)
    return out


def test_statistics_are_written_and_printed_as_one_document(call, tmp_path, scenes):
    out = tmp_path / "stats"
    code, said, err = call("data", "stats", "--data", scenes, "--out", out, "--json")
    document = json.loads(said)
    assert (code, err) == (0, "") and document == json.loads((out / "stats.json").read_text())
    assert {path.name for path in out.iterdir()} == set(document["files"])
    assert document["root"] == str(scenes) and document["splits"]["train"]["images"] == 4
    assert document["anchors"]["name"] == "torchvision's default anchors" and document["anchors"]["size"] is None
    assert any("test" in remark for remark in document["remarks"])


def test_statistics_show_the_anchors_of_a_study_as_the_anchors_command_does(call, tmp_path, tiny_store, monkeypatch):
    from cityopt.report import data_report

    monkeypatch.setattr(data_report, "_draw_pictures", lambda *_: {})
    store, study = ("--store", tiny_store), ("--study", TINY)
    code, said, err = call("anchors", *study, *store, "--json")
    fitted = json.loads(said)
    assert (code, err) == (0, "")
    code, said, err = call("data", "stats", *study, *store, "--out", tmp_path / "stats")
    assert (code, err) == (0, "") and "test (1 images) is left out" in said and str(tmp_path / "stats") in said
    drawn = json.loads((tmp_path / "stats" / "stats.json").read_text())["anchors"]
    assert (drawn["sizes"], drawn["ratios"]) == (fitted["sizes"], fitted["ratios"])
    assert drawn["size"] == [64, 128] and drawn["name"].endswith("anchors of tiny")


def test_statistics_refuse_a_folder_of_other_files_before_any_work(call, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, out, err = call("data", "stats", "--data", tmp_path / "nowhere", "--out", tmp_path)
    assert (code, out) == (1, "") and "holds other files" in err and "nowhere" not in err
    code, out, err = call("data", "stats", "--data", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert (code, out) == (1, "") and "nowhere" in err and not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", ["64", "64xwide", "x128", "64x-1"])
def test_size_is_refused_with_an_example_when_it_is_none(call, tmp_path, size):
    code, out, err = call("data", "synth", tmp_path / "scenes", "--size", size)
    assert (code, out) == (1, "") and "256x512" in err and repr(size) in err
    assert not (tmp_path / "scenes").exists()


def test_dataset_comes_from_the_environment_when_no_option_says_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path / "nowhere"))
    code, _, err = call("data", "check")
    assert code == 1 and str(tmp_path / "nowhere") in err
    monkeypatch.delenv("CITYSCAPES_DATASET")
    code, _, err = call("data", "check")
    assert code == 1 and "--data" in err and "CITYSCAPES_DATASET" in err


def test_evaluate_prints_one_flat_object_or_tables(call, monkeypatch, tmp_path):
    from cityopt.training import evaluation

    asked = {}

    def run(model, *, on_progress, **options):
        asked.update(options, model=model)
        on_progress("predicting", 0, 2)
        on_progress("predicting", 2, 2)
        metrics = {"val_first_2/cityscapes/ap": 0.25, "val_first_2/cityscapes/ap50": float("nan")}
        for name in THING_NAMES:
            metrics |= {f"val_first_2/cityscapes/{key}/class/{name}": 0.5 for key in ("ap", "ap50")}
        return evaluation.Evaluation(
            model, tmp_path, "val", 2, 500, ((1024, 2048),), (512, 1024), ("cityscapes",), metrics, None
        )

    monkeypatch.setattr(evaluation, "run_evaluation", run)
    arguments = ("evaluate", "--model", "models:/m@champion", "--data", tmp_path, "--protocol", "cityscapes")
    code, out, err = call(*arguments, "--limit", 2, "--store", tmp_path / "store", "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["val_first_2/cityscapes/ap"] == 0.25 and found["val_first_2/cityscapes/ap50"] is None
    assert asked == {
        "model": "models:/m@champion",
        "store": tmp_path / "store",
        "data": str(tmp_path),
        "split": "val",
        "protocols": "cityscapes",
        "export": None,
        "limit": 2,
        "device": "cpu",
    }
    code, out, err = call(*arguments)
    assert (code, err) == (0, "") and "predicting: 2 done" in out and "Cityscapes" in out and "no official" in out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--limit", "0"), "`--limit` must be at least 1"),
        (("--protocol", "cocoa"), "Did you mean 'coco'"),
        (("--export", "README.md"), "new or empty"),
        ((), "no models yet"),
    ],
)
def test_evaluate_refuses_bad_options_with_the_fix(call, tmp_path, monkeypatch, options, text):
    (tmp_path / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = call("evaluate", "--model", "models:/cityopt-m@champion", "--device", "cpu", *options)
    assert (code, out) == (1, "") and err.startswith("Error: ") and text in err
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_status_takes_a_name_without_a_yaml_or_a_path_to_one(call, tmp_path):
    study = tmp_path / "gone.yaml"
    study.write_text("name: other\n")
    for given, name in (("gone", "gone"), (study, "other"), (study, "other")):
        code, out, err = call("status", "--study", given, "--store", tmp_path / "no store")
        assert (code, out) == (1, "") and f"cityopt sweep --study {name}" in err
    assert not (tmp_path / "no store").exists()


def test_ui_makes_no_store_when_the_path_is_mistyped(call, tmp_path):
    code, out, err = call("ui", "--store", tmp_path / "mlrnus", "--port", 0)
    assert (code, out) == (1, "") and str(tmp_path / "mlrnus") in err and "--store DIR" in err
    assert list(tmp_path.iterdir()) == []


def test_home_is_written_out_whichever_command_reads_the_store(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for command in (["status", "--study", "x"], ["promote", "--study", "x"], ["ui"]):
        code, _, err = call(*command, "--store", "~/store")
        assert code == 1 and f"no study in {tmp_path / 'store'}" in err


def test_promotion_refuses_a_setting_that_has_no_effect_before_anything_else(call, tmp_path):
    code, out, err = call("promote", "--study", "x", "--store", tmp_path / "store", "--set", "search.trials=3")
    assert (code, out) == (1, "") and "search.trials" in err and "training.*" in err


def test_promotion_refuses_devices_that_are_no_number_before_anything_else(call, tmp_path):
    code, out, err = call("promote", "--study", "x", "--store", tmp_path / "store", "--devices", "all")
    assert (code, out) == (1, "") and "`--devices` must be a number of at least 1, or auto, but got 'all'" in err
    assert list(tmp_path.iterdir()) == []


def test_square_brackets_in_a_path_are_printed_as_they_are(call, tmp_path):
    out = tmp_path / "[bold]scenes[/x]"
    code, said, err = call("data", "synth", out, "--num-images", 3, "--size", "64x128")
    assert (code, err) == (0, "") and f"cityopt data check --data {out}" in said
