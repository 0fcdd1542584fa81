"""Repeat factors against a slow loop over the paper's formula, and draws against their expected counts."""

import math

import numpy as np
import pytest

from cityopt.data.balance import draw_images, repeat_factors, weigh_images
from cityopt.data.cityscapes import FrameFacts
from cityopt.labels import LABELS, THING_LABELS

ROAD, CAR, BUS = 7, 26, 28


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


def show(*labels: int) -> FrameFacts:
    """Return the facts of an image with an instance of each of some labels, and road around it."""
    counts = tuple(int(label.id in labels) for label in THING_LABELS)
    train_ids = sorted(label.train_id for label in LABELS if label.id in (ROAD, *labels))
    return FrameFacts("image", "train", "aachen", (8, 8), counts, 0, 1, "0", tuple(train_ids))


def test_images_of_rare_things_weigh_more_and_nothing_does_when_it_is_off() -> None:
    frames = [show(CAR)] * 6 + [show(CAR, BUS)] + [show()]
    weights = weigh_images(frames, "instance", 0.5)
    np.testing.assert_allclose(weights, [1.0] * 6 + [math.sqrt(0.5 * 8)] + [1.0])
    np.testing.assert_array_equal(weigh_images(frames, "instance", 0.0), np.ones(8))
    np.testing.assert_array_equal(weigh_images(frames, "semantic", 0.0), np.ones(8))
    assert weigh_images(frames, "semantic", 1.0)[6] == pytest.approx(math.sqrt(8))
