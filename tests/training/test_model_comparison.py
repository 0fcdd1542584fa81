"""The story of `cityopt compare`: its numbers are those of `cityopt evaluate`, a model ties with itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import write_frame

from cityopt.config import ModelConfig, RunConfig
from cityopt.errors import ConfigError, DataError
from cityopt.evaluation.paired import MIN_IMAGES
from cityopt.models.build import build_model
from cityopt.settings import replace_section
from cityopt.training import model_comparison
from cityopt.training.checkpoint import TrainingState, save_checkpoint
from cityopt.training.evaluation import run_evaluation
from cityopt.training.model_comparison import METRICS, NUM_PICTURES, run_comparison

UNET = ModelConfig(family="unet", weights="none", freeze_depth=0, start_channels=4, depth=2)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("streets")
    for number in range(MIN_IMAGES):
        write_frame(root, "val", "lund", number)
    return root


@pytest.fixture(scope="module")
def models(streets, config: RunConfig, tmp_path_factory) -> dict[str, Path]:
    """Two U-Nets of other random values, one of which sees smaller images, and a Mask R-CNN that finds nothing."""
    folder, paths = tmp_path_factory.mktemp("models"), {}
    for seed, (name, model, size) in enumerate(
        (("first", UNET, (64, 128)), ("second", UNET, (32, 64)), ("mask", config.model, (64, 128)))
    ):
        data = replace_section(config.data, root=str(streets), size=size)
        own = config.model_copy(update={"data": data, "model": model, "metric": "val/semantic/miou"})
        torch.manual_seed(seed)
        network = build_model(model)
        optimizer = torch.optim.AdamW(network.parameters())
        paths[name] = folder / f"{name}.pt"
        save_checkpoint(
            paths[name], model=network, optimizer=optimizer, state=TrainingState(), config=own, environment={}
        )
    return paths


@pytest.fixture
def compare(models, tmp_path, monkeypatch):
    monkeypatch.setattr(model_comparison, "DRAWS", 40)

    def compare(first, second, **options):
        return run_comparison((str(models[first]), str(models[second])), store=tmp_path, device="cpu", **options)

    return compare


def test_scores_are_those_of_evaluate_and_every_image_has_a_winner_or_is_even(compare, models, tmp_path):
    found = compare("first", "second")
    official = [run_evaluation(str(models[name]), store=tmp_path, device="cpu") for name in ("first", "second")]
    assert [row.metric for row in found.differences] == list(METRICS["semantic"])
    for row in found.differences:
        for value, it in zip((row.first, row.second), official, strict=True):
            assert value == pytest.approx(it.metrics[f"val/{row.metric}"], abs=1e-12, nan_ok=True), row.metric
        if not math.isnan(row.first + row.second):
            assert row.paired.difference == pytest.approx(row.second - row.first)
            assert row.paired.low <= row.paired.difference <= row.paired.high
    leads = [pair.second - pair.first for pair in found.images]
    assert leads == sorted(leads) and len(leads) == MIN_IMAGES
    assert found.wins == (sum(lead < 0 for lead in leads), sum(lead > 0 for lead in leads))
    assert len(found.shown) <= 2 * NUM_PICTURES and all(len(pair.pictures) == 2 for pair in found.shown)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert document["metrics"]["val/semantic/miou"]["second"] == pytest.approx(official[1].metrics["val/semantic/miou"])
    assert len(document["images"]) == MIN_IMAGES


def test_order_of_the_models_turns_every_difference_round(compare):
    one, other = compare("first", "second", limit=3), compare("second", "first", limit=3)
    assert one.prefix == other.prefix == "val_first_3"
    for row, turned in zip(one.differences, other.differences, strict=True):
        assert (turned.first, turned.second) == pytest.approx((row.second, row.first), nan_ok=True)
        assert turned.paired.low == pytest.approx(-row.paired.high, nan_ok=True)
    assert one.wins == other.wins[::-1]


@pytest.mark.parametrize("name", ["first", "mask"])
def test_model_ties_with_itself(compare, name):
    found = compare(name, name, limit=2)
    known = [row for row in found.differences if not math.isnan(row.first)]
    assert known and {row.paired.verdict for row in known} == {"undecided"}
    assert {row.paired.difference for row in known} == {0.0} and found.wins == (0, 0) and found.shown == ()


def test_what_cannot_be_compared_is_refused(compare):
    with pytest.raises(ConfigError, match="must be of one task"):
        compare("first", "mask")
    with pytest.raises(ConfigError, match="`--split` must be train or val"):
        compare("first", "second", split="test")
    with pytest.raises(ConfigError, match="`--limit` must be at least 1"):
        compare("first", "second", limit=0)
    with pytest.raises(DataError):
        compare("first", "second", data="/nowhere")
