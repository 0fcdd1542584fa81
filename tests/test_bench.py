import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cityopt.models.mask_rcnn import MaskRCNN

SCRIPTS = Path(__file__).parents[1] / "scripts"
KEYS = ["name", "ours", "peer", "ratio", "unit", "target", "met"]
ROWS = [
    *("help", "cached-input", "cached-sample", "train-step", "train-step-torchvision"),
    *("unet-step", "unet-input", "unet-labels", "unet-bfloat16"),
    *("coordinator-trial-5", "coordinator-trial-10", "coordinator-growth"),
    *("coordinator-workers-4", "coordinator-workers-8"),
    *("validation-memory", "validation-memory-masks", "evaluate-memory"),
    *("semantic-confusion", "semantic-confusion-noise", "coco-segm", "coco-evaluator"),
    *("cityscapes-ap", "cityscapes-ap-growth", "point-rend", "paste", "paste-memory"),
]
SWEEPS = ["trials", "between-trials", "stored-trials"]
"""Benchmarks that take a minute even when quick: tests/services runs them."""
Load = Callable[[str], ModuleType]


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "bench"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(SCRIPTS)
    return lambda name: import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def quick_answer() -> subprocess.CompletedProcess[str]:
    """All benchmarks in one process: each start takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        names = [name for name in import_module("benchmarks.command").BENCHES if name not in SWEEPS]
    return run_bench(*names, "--quick", "--json")


@pytest.mark.slow
def test_bench_prints_one_json_document_when_quick(quick_answer: subprocess.CompletedProcess[str]) -> None:
    assert quick_answer.returncode == 0, quick_answer.stderr
    found = json.loads(quick_answer.stdout)
    assert [row["name"] for row in found] == ROWS
    for row in found:
        assert list(row) == KEYS
        if "memory" not in row["name"] and row["name"] not in ("paste", "unet-bfloat16"):  # differences, maybe none
            assert row["ours"] > 0, row
            assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.01, abs=0.01), row
        assert (row["target"] is None) == (row["met"] is None), row


def test_bench_shows_a_table_when_no_json_is_wanted() -> None:
    answer = run_bench("help", "--quick")
    assert answer.returncode == 0
    assert all(text in answer.stdout for text in ("ours", "peer", "ours < 0.5", "cityopt --help"))


def test_bench_lists_its_names_when_one_is_unknown() -> None:
    answer = run_bench("coordinater")
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "'coordinater'" in answer.stderr
    assert "validation-memory" in answer.stderr


@pytest.mark.parametrize(
    ("what", "relation", "limit", "met"),
    [("ours", "<=", 3, True), ("ours", "<", 3, False), ("ratio", ">=", 2, False), ("ratio", "<=", 1.5, True)],
)
def test_row_compares_what_its_target_names(load: Load, what: str, relation: str, limit: float, met: bool) -> None:
    measuring = load("measuring")
    row = measuring.Row("a", 3.0, 2.0, "s", measuring.Bound(what, relation, limit))
    assert (row.ratio, row.met, row.to_json()["target"]) == (1.5, met, f"{what} {relation} {limit}")


def test_alternate_takes_turns_and_drops_the_first(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = load("measuring")
    taken: list[str] = []
    seconds = iter([100.0, 100.0, 1.0, 2.0, 5.0, 6.0, 3.0, 4.0])

    def measure(action: Callable[[], None]) -> float:
        action()
        return next(seconds)

    monkeypatch.setattr(measuring, "measure", measure)
    sides = {name: lambda name=name: taken.append(name) for name in "ab"}
    medians = measuring.alternate(sides, rounds=3)
    assert "".join(taken) == "abbaabba"
    assert medians == {"a": 4.0, "b": 3.0}  # a: 2, 5, 4; b: 1, 6, 3


def test_process_of_its_own_gives_back_the_json_that_it_prints(load: Load, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"peak": 1.5}')
    assert load("measuring").run_alone("json.tool", tmp_path / "x.json") == {"peak": 1.5}
    with pytest.raises(subprocess.CalledProcessError):
        load("measuring").run_alone("json.tool", tmp_path / "none.json")


def test_torchvision_peer_has_our_parameters(load: Load) -> None:
    peer, step = load("torchvision_peer"), load("training_step")
    config = step.replace_section(step.load_study("demo").model, anchors="default")
    theirs = peer.build_torchvision(config, norm="batch", size=(64, 128))
    shapes = [
        sorted(tuple(parameter.shape) for parameter in model.parameters())
        for model in (MaskRCNN(config, norm="batch"), theirs)
    ]
    assert shapes[0] == shapes[1]
    anchors = theirs.rpn.anchor_generator.cell_anchors
    assert torch.allclose(
        torch.stack(anchors), MaskRCNN(config, norm="batch").rpn.cells, atol=0.5
    )  # theirs are rounded


def test_torchvision_targets_hold_one_mask_per_instance(load: Load) -> None:
    instance_map = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.int32)
    target = {"boxes_xyxy": torch.zeros(2, 4), "classes": torch.tensor([3, 1]), "instance_map": instance_map}
    (found,) = load("torchvision_peer").build_torchvision_targets([target])
    assert found["masks"].tolist() == [[[0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0]]]
    assert found["labels"].tolist() == [3, 1]
