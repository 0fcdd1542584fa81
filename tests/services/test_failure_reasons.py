"""Real sweeps whose trainings fail in earnest: each reason is told apart and stored; the study goes on or says why not.

These need no service, but minutes: in each, a command and its workers import torch.
"""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import command_line
import faults
import pytest
from command_line import STUDY, Answer, read_runs, read_trials, run
from optuna.trial import FrozenTrial, TrialState

pytestmark = pytest.mark.services
OPTIONS = (
    "--study",
    STUDY,
    "--device",
    "cpu",
    "--set",
    "search.sampler.name=random",
    "--set",
    "search.pruner.name=none",
)

Fail = Callable[..., Answer]


@pytest.fixture
def fail(tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Run a sweep in the tiny store, whose trials meet these faults."""

    def sweep(met: str, *options: object) -> Answer:
        place = tmp_path / "site"
        place.mkdir(exist_ok=True)
        shutil.copy(faults.__file__, place / "sitecustomize.py")
        environment = {**command_line.ENVIRONMENT, "PYTHONPATH": str(place), "FAULTS": met}
        monkeypatch.setattr(command_line, "ENVIRONMENT", environment)
        monkeypatch.setattr(command_line, "PATIENCE_S", 1200)  # torch is imported in ten workers, one after the other
        return run("sweep", *OPTIONS, "--store", tiny_store, *options)

    return sweep


def read_status(store: Path) -> list[dict[str, object]]:
    answer = run("status", "--study", STUDY, "--store", store, "--json")
    assert answer.code == 0, answer
    return list(json.loads(answer.output)["trials"])


def read_ending(trial: FrozenTrial) -> dict[str, str]:
    return dict(trial.user_attrs["cityopt:ending"])


def test_each_reason_is_stored_and_costs_the_study_nothing_else(fail: Fail, tiny_store: Path) -> None:
    patience = ("--set", "search.hang_limit_s=40", "--set", "search.hang_factor=1", "--set", "search.max_failures=9")
    answer = fail("1=oom 2=nan 3=crash 4=hung", "--trials", "6", *patience)
    assert answer.code == 0, answer
    found = read_status(tiny_store)
    assert [(trial["state"], trial["reason"]) for trial in found] == [
        ("complete", None),
        ("failed", "oom"),
        ("failed", "nan"),
        ("failed", "crash"),
        ("failed", "hung"),
        ("complete", None),
    ]
    assert [trial["value"] is None for trial in found] == [False, True, True, True, True, False]

    trials = read_trials(tiny_store)
    failed, pruned, complete = TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE
    assert [trial.state for trial in trials] == [complete, pruned, pruned, failed, failed, complete]
    # To Optuna, settings that cannot work are pruned ones that violate a constraint; a crash says nothing about them.
    assert [trial.constraints for trial in trials] == [{}, {"oom": 1.0}, {"nan": 1.0}, {}, {}, {}]
    endings = [read_ending(trial) for trial in trials]
    assert "memory ran out" in endings[1]["message"] and "became NaN" in endings[2]["message"]
    assert "3 attempts ended without a finished epoch" in endings[3]["message"]
    assert "Segmentation fault" in endings[3]["log"] and "no sign of life" in endings[4]["message"]
    assert "run_or_fail" in endings[4]["log"]  # where it hung

    runs = read_runs(tiny_store)
    assert {name: run.info.status for name, run in runs.items()} == {
        "tiny": "FINISHED",
        **{f"trial-{number:04d}": "FINISHED" if number in (0, 5) else "FAILED" for number in range(6)},
    }
    for number, reason in enumerate(("oom", "nan", "crash", "hung"), start=1):
        tags = runs[f"trial-{number:04d}"].data.tags
        assert (tags["cityopt.reason"], tags["cityopt.message"]) == (reason, endings[number]["message"])


def test_image_that_went_bad_stops_the_study_by_its_name(fail: Fail, tiny_store: Path) -> None:
    answer = fail("1=data", "--trials", "3")
    assert answer.code == 1 and "Traceback" not in answer.errors
    trials = read_trials(tiny_store)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL]
    assert read_ending(trials[1])["reason"] == "data"
    assert ".png" in read_ending(trials[1])["message"] and read_ending(trials[1])["message"] in answer.errors
    assert read_runs(tiny_store)["trial-0001"].data.tags["cityopt.reason"] == "data"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a tmpfs: {mounted.stderr}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_full_disk_stops_the_study_which_goes_on_when_there_is_room(small_disk: Path, template_store: Path) -> None:
    store = Path(shutil.copytree(template_store, small_disk / "store"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 2_500_000))
    command = ("sweep", *OPTIONS, "--store", store, "--trials", "3")
    answer = run(*command)
    assert answer.code == 1 and "Traceback" not in answer.errors and "goes on" in answer.errors
    assert "No space left" in answer.errors or "disk is full" in answer.errors
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 1_000_000)  # SQLite needs a little to read what was written last
    before = [trial for trial in read_status(store) if trial["state"] == "complete"]
    filler.unlink()
    done = run(*command)
    assert done.code == 0, done
    after = read_status(store)
    assert [trial["state"] for trial in after] == ["complete"] * 3 and after[: len(before)] == before
    assert {run.info.status for run in read_runs(store).values()} == {"FINISHED"}


@pytest.mark.parametrize(
    ("option", "address"),
    [("--storage", "postgresql+psycopg://me:secret@127.0.0.1:{}/cityopt"), ("--tracking-uri", "http://127.0.0.1:{}")],
)
def test_closed_port_is_refused_at_once_and_nothing_begins(tmp_path: Path, option: str, address: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        answer = run("sweep", *OPTIONS, "--store", tmp_path / "store", option, address.format(port))
    assert answer.code == 1 and "Traceback" not in answer.errors
    assert f"127.0.0.1:{port}" in answer.errors and "secret" not in answer.errors + answer.output
    assert not list((tmp_path / "store").glob("runs/*"))
