"""Shares of a batch: which numbers of devices it can be divided among."""

import pytest

from cityopt.config import RunConfig
from cityopt.errors import ConfigError
from cityopt.settings import replace_settings
from cityopt.training.provenance import describe_rate
from cityopt.training.shares import check_shares, count_own_images


def share(config: RunConfig, batch_size: int, accumulation: int, devices: int) -> RunConfig:
    settings = {"training.batch_size": batch_size, "training.accumulation": accumulation, "devices": devices}
    return replace_settings(config, settings)


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "devices", "own"), [(8, 1, 1, 8), (8, 1, 8, 1), (8, 2, 4, 2), (12, 1, 3, 4)]
)
def test_batch_is_shared_out_equally(
    config: RunConfig, batch_size: int, accumulation: int, devices: int, own: int
) -> None:
    wanted = share(config, batch_size, accumulation, devices)
    check_shares(wanted)
    assert count_own_images(wanted) == own


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "devices", "advice"), [(8, 1, 3, 9), (8, 2, 8, 16), (8, 8, 2, 16), (2, 1, 4, 4)]
)
def test_batch_is_refused_with_the_numbers_when_devices_do_not_divide_it(
    config: RunConfig, batch_size: int, accumulation: int, devices: int, advice: int
) -> None:
    with pytest.raises(
        ConfigError, match=f"batch_size={batch_size}, devices={devices}, accumulation={accumulation}"
    ) as e:
        check_shares(share(config, batch_size, accumulation, devices))
    assert f"--set training.batch_size={advice}" in str(e.value)
    check_shares(share(config, advice, accumulation, devices))


def test_learning_rate_follows_from_the_batch_whatever_the_devices(config: RunConfig) -> None:
    rates = [describe_rate(share(config, 8, 1, devices))["training.scaled_learning_rate"] for devices in (1, 2, 8)]
    assert rates == [config.training.learning_rate] * 3
