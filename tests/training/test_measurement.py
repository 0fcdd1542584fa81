"""What a training costs: a real measurement, and its arithmetic with epochs that take what the test says."""

from typing import Any

import pytest

from cityopt.config import RunConfig
from cityopt.runtime import GIB
from cityopt.training import measurement
from cityopt.training.dataset import prepare_data
from cityopt.training.measurement import measure_costs
from cityopt.training.run import Trainer


def test_measurement_trains_some_images_and_keeps_nothing(
    config: RunConfig, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "TARGET_S", 0.01)
    data = prepare_data(config)
    seen = []
    costs = measure_costs(config, on_progress=seen.append)
    assert (costs.epochs, costs.images) == (config.training.epochs, len(data.validation))
    assert costs.steps == len(data.train) // config.training.batch_size
    assert 0 < costs.step_s < 60 and 0 < costs.image_s < 60 and 0 < costs.memory_gib < 64 and 0 < costs.end_s < 60
    assert costs.sum_epochs(2) == pytest.approx(
        costs.begin_s + 2 * (costs.steps * costs.step_s + costs.images * costs.image_s + costs.save_s) + costs.end_s
    )
    assert costs.checkpoint_gib > sum(p.numel() * 4 for p in measurement_model(config).parameters()) / GIB
    assert {progress.phase for progress in seen} >= {"train", "validate"}


def measurement_model(config: RunConfig) -> Any:
    from cityopt.models.build import build_model

    return build_model(config.model)


def test_costs_are_those_of_one_step_and_one_image_when_an_epoch_takes_a_known_time(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes 2 s, each image .5 s: so slow that no more is measured than must be; the first one 900 s more."""
    cold = iter([900.0])

    def run_epoch(trainer: Trainer) -> dict[str, float]:
        trained, validated = 2.0 * trainer.steps_per_epoch + next(cold, 0.0), 0.5 * len(trainer.data.validation)
        return {"system/epoch_s": trained + validated, "system/val_s": validated}

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    costs = measure_costs(config)
    assert costs.step_s == pytest.approx(2.0) and costs.image_s == pytest.approx(0.5)
    assert costs.epoch_s == pytest.approx(2.0 * costs.steps + 0.5 * costs.images)
    assert costs.cold_s == pytest.approx(900.0, abs=60.0)  # models are built in different times


@pytest.mark.parametrize(("total", "wanted", "places"), [(5, 2, [0, 4]), (9, 3, [0, 4, 8]), (3, 7, [0, 1, 2])])
def test_measured_images_are_spread_over_all(total: int, wanted: int, places: list[int]) -> None:
    assert measurement._spread(total, wanted) == places
