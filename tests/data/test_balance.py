"""Repeat factors against a slow loop over the paper's formula, and draws against their expected counts."""

import math

import numpy as np
import pytest

from cityopt.data.balance import draw_images, repeat_factors, weigh_images

ROAD, CAR, BUS = 7, 26001, 28001


def slow_factors(shown: np.ndarray, threshold: float) -> list[float]:
    factors = []
    for image in shown:
        factor = 1.0
        for number, is_there in enumerate(image):
            share = sum(row[number] for row in shown) / len(shown)
            if is_there:
                factor = max(factor, max(1.0, math.sqrt(threshold / share)))
        factors.append(factor)
    return factors


@pytest.mark.parametrize("seed", range(5))
def test_factors_equal_a_slow_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shown = rng.random((30, 7)) < rng.random(7) ** 2
    for threshold in (0.1, 0.5, 1.0):
        np.testing.assert_allclose(repeat_factors(shown, threshold), slow_factors(shown, threshold), rtol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_each_image_is_drawn_as_often_as_it_weighs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = 1 + 5 * rng.random(37) ** 3
    drawn = draw_images(weights, rng)
    counts = np.bincount(drawn, minlength=37)
    assert counts.sum() == 37 and (np.abs(counts - 37 * weights / weights.sum()) < 1).all()


def test_images_of_one_weight_come_once_in_the_order_of_old() -> None:
    np.testing.assert_array_equal(
        draw_images(np.ones(9), np.random.default_rng(3)), np.random.default_rng(3).permutation(9)
    )


class Cache:
    def __init__(self, rasters: list[np.ndarray]) -> None:
        self.instances = np.array(rasters)

    def __len__(self) -> int:
        return len(self.instances)


def test_images_of_rare_things_weigh_more_and_nothing_does_when_it_is_off() -> None:
    empty = np.full((8, 8), ROAD, dtype=np.uint16)
    plain, rare = empty.copy(), empty.copy()
    plain[:4, :4] = rare[:4, :4] = CAR
    rare[4:, 4:] = BUS
    cache = Cache([plain] * 6 + [rare] + [empty])
    weights = weigh_images(cache, "instance", 0.5)
    np.testing.assert_allclose(weights, [1.0] * 6 + [math.sqrt(0.5 * 8)] + [1.0])
    np.testing.assert_array_equal(weigh_images(cache, "instance", 0.0), np.ones(8))
    assert weigh_images(cache, "semantic", 1.0)[6] == pytest.approx(math.sqrt(8))
