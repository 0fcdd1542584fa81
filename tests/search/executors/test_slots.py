"""Device slots: how many workers, and which device each of them has."""

import pytest

from cityopt.errors import ConfigError
from cityopt.search.executors import slots
from cityopt.search.executors.slots import plan_slots


@pytest.fixture
def gpus(monkeypatch):
    return lambda count: monkeypatch.setattr(slots, "count_gpus", lambda: count)


@pytest.mark.parametrize(
    ("num_gpus", "device", "workers", "per_device", "expected"),
    [
        (8, "auto", None, None, ["auto"]),
        (8, "cuda", 1, None, ["cuda"]),
        (2, "auto", 4, None, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (2, "cuda", 3, None, ["cuda:0", "cuda:1", "cuda:0"]),
        (2, "auto", None, 2, ["cuda:0", "cuda:1"] * 2),
        (2, "auto", 3, 2, ["cuda:0", "cuda:1", "cuda:0"]),
        (2, "cuda:1", 2, None, ["cuda:1"] * 2),
        (2, "cpu", 3, None, ["cpu"] * 3),
        (0, "auto", 2, None, ["cpu"] * 2),
        (0, "auto", None, 2, ["cpu"] * 2),
    ],
)
def test_slots_spread_over_devices_when_workers_are_given(gpus, num_gpus, device, workers, per_device, expected):
    gpus(num_gpus)
    assert plan_slots(device, workers=workers, per_device=per_device) == tuple(expected)


@pytest.mark.parametrize(
    ("workers", "per_device", "problem"),
    [
        (0, None, "`--workers` must be at least 1, but got 0"),
        (None, 0, "`--workers-per-device` must be at least 1, but got 0"),
        (5, 2, "`--workers` must be at most 4 with `--workers-per-device 2` on cuda:0, cuda:1, but got 5"),
    ],
)
def test_slots_are_refused_when_a_number_cannot_be(gpus, workers, per_device, problem):
    gpus(2)
    with pytest.raises(ConfigError, match=problem):
        plan_slots("auto", workers=workers, per_device=per_device)
