"""Judging a finished checkpoint, where that fails; what it says of one is in `test_evaluation.py`."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cityopt.errors import TrainingError
from cityopt.image_set import ImageSet
from cityopt.training import scoring


@pytest.mark.parametrize("judge", [scoring.judge_images, lambda *given: scoring.score_checkpoint(*given, prefix="val")])
def test_memory_that_runs_out_is_named_when_a_checkpoint_is_judged(monkeypatch, judge):
    def run_out(_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(scoring, "survey_dataset", lambda *_: SimpleNamespace(fingerprint="f"))
    monkeypatch.setattr(scoring, "pick_facts", lambda *_: ())
    monkeypatch.setattr(scoring, "open_images", lambda *_: ())
    monkeypatch.setattr(scoring, "load_model", run_out)
    config = SimpleNamespace(data=SimpleNamespace(root="."), cache=".", device="cpu", threads=1, fingerprint="f")
    with pytest.raises(TrainingError, match=r"memory ran out\. Take a device with more memory") as error:
        judge(Path("best.pt"), config, ImageSet(split="val"))
    assert error.value.reason == "oom"
