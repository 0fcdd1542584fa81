"""Forecasts from invented costs, against sums done by hand."""

from dataclasses import replace

import pytest
from small_studies import DEPTH, FLAT, RATE, make_config

from cityopt.search.forecast import build_forecast, count_epochs
from cityopt.search.measurement import list_variants
from cityopt.settings import replace_settings
from cityopt.training.costs import TrainingCosts

COSTS = TrainingCosts(
    epochs=6,
    steps=10,
    step_s=2.0,
    images=20,
    image_s=0.5,
    begin_s=3.0,
    save_s=1.0,
    end_s=2.0,
    cold_s=0.0,
    memory_gib=4.0,
    checkpoint_gib=0.5,
    batch_size=8,
    pixels=1024,
)


def forecast(config, costs=(COSTS,), num_workers=1):
    plain = replace_settings(config, {"promotion.finalists": 1, "promotion.seeds": 1})
    return build_forecast(plain, costs, num_workers=num_workers, threads=2, device="cpu", promotion_s=None)


def test_trial_is_the_sum_of_its_parts_when_it_is_not_pruned():
    found = forecast(make_config())
    assert COSTS.epoch_s == 10 * 2.0 + 20 * 0.5
    assert found.epoch_s == 30.0 and found.trial_s.likely == 3.0 + 6 * (30.0 + 1.0) + 2.0 + 0.3
    assert (found.trial_s.low, found.trial_s.high) == (0.75 * found.trial_s.likely, 1.25 * found.trial_s.likely)


def test_sweep_is_as_many_whole_trials_when_nothing_is_pruned():
    found = forecast(make_config(trials=4))
    assert found.sweep_s.likely == pytest.approx(4 * found.trial_s.likely)
    assert found.sweep_s == found.device_s
    assert (found.memory_gib, found.disk_gib) == (4.0, 2 * 4 * 0.5 + 0.5)


def test_workers_share_the_sweep_and_the_last_trial_may_run_alone():
    one, four = forecast(make_config(trials=8)), forecast(make_config(trials=8), num_workers=4)
    assert four.device_s == one.device_s and four.sweep_s.likely == one.sweep_s.likely / 4
    assert four.sweep_s.high == one.sweep_s.high / 4 + one.trial_s.high
    assert forecast(make_config(trials=1), num_workers=4).sweep_s.likely == one.trial_s.likely


def test_each_worker_is_cold_once():
    cold = replace(COSTS, cold_s=40.0)
    for workers in (1, 4):
        warm, slow = (
            forecast(make_config(trials=8), num_workers=workers),
            forecast(make_config(trials=8), [cold], workers),
        )
        assert slow.device_s.likely == warm.device_s.likely + workers * 40.0
        assert slow.sweep_s.likely == pytest.approx(warm.sweep_s.likely + 40.0) and slow.trial_s == warm.trial_s


def test_range_spans_all_settings_that_were_measured():
    dear = replace(COSTS, step_s=4.0, memory_gib=9.0)
    found = forecast(make_config(trials=2), [COSTS, dear])
    assert found.trial_s.low == forecast(make_config()).trial_s.low
    assert found.trial_s.high == pytest.approx(1.25 * (3.0 + 6 * (50.0 + 1.0) + 2.0 + 0.3)) and found.memory_gib == 9.0


@pytest.mark.parametrize(
    ("pruner", "trials", "low", "high"),
    [
        ({"name": "none"}, 10, 60, 60),
        # Halving at epochs 1, 2, 4: of trials that get worse and worse only the first goes on.
        ({"name": "asha", "min_epochs": 1, "reduction_factor": 2}, 10, 6 + 9 * 1, 60),
        ({"name": "median", "min_epochs": 2, "startup_trials": 4}, 10, 4 * 6 + 6 * 3, 60),
    ],
)
def test_epochs_lie_between_the_earliest_pruning_and_none(pruner, trials, low, high):
    config = make_config(pruner=pruner, training={"epochs": 6, "warmup_fraction": 0.0})
    found = count_epochs(config, trials)
    assert (found.low, found.high) == (low, high) and low <= found.likely <= high


def test_epochs_of_many_trials_follow_from_some_when_there_are_thousands():
    pruner = {"name": "asha", "min_epochs": 1, "reduction_factor": 3}
    config = make_config(pruner=pruner, training={"epochs": 6, "warmup_fraction": 0.0})
    some, many = count_epochs(config, 200), count_epochs(config, 2000)
    assert many.likely == pytest.approx(10 * some.likely) and many.high == 12000


def test_both_ends_are_measured_only_of_settings_that_cost_something():
    baseline = {RATE: 0.01, "training.weight_decay": 0.0, DEPTH: 2}
    assert list_variants(make_config(baselines=[baseline])) == [
        baseline,
        baseline | {DEPTH: 0},
        baseline | {DEPTH: 5},
    ]
    assert list_variants(make_config(space={RATE: FLAT[RATE]})) == [{}]
    conditional = {
        "training.optimizer": {"type": "categorical", "choices": ["adamw", "sgd"]},
        "training.batch_size": {"type": "int", "low": 2, "high": 8, "when": {"training.optimizer": "sgd"}},
    }
    assert list_variants(make_config(space=conditional, baselines=[{"training.optimizer": "adamw"}])) == [
        {"training.optimizer": "adamw"}
    ]


@pytest.mark.parametrize(
    ("promotion", "baselines", "trials", "count"),
    [
        ({}, [], 40, 3 * 3),
        ({}, [{RATE: 0.01}], 40, (3 + 1) * 3),
        ({}, [{RATE: 0.01}], 2, 2 * 3),
        ({"rescale": ["weight_decay"], "seeds": 2}, [], 40, 3 * 2 * 2),
        ({"finalists": 1, "seeds": 1}, [{RATE: 0.01}], 40, 0),
    ],
)
def test_finalists_cost_their_images_and_epochs_times_their_number(promotion, baselines, trials, count):
    config = make_config(trials=trials, baselines=baselines)
    config = replace_settings(config, {f"promotion.{key}": value for key, value in promotion.items()})
    given = {"num_workers": 1, "threads": 2, "device": "cpu", "promotion_s": None, "growth": 3.0}
    found = build_forecast(config, [COSTS], **given)
    one_s = 3.0 + 6 * (3 * 10 * 2.0 + 20 * 0.5 + 1.0) + 2.0 + 0.3
    assert (found.finalists, found.finalists_s) == (count, pytest.approx(count * one_s))
    assert found.disk_gib == 0.5 * (2 * (trials + count) + 1)
    longer = build_forecast(replace_settings(config, {"promotion.finalist_epochs": 12}), [COSTS], **given)
    assert longer.finalists_s == pytest.approx(count * (2 * (one_s - 5.3) + 5.3))
