"""One searched setting: which values it has, and which it admits."""

import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from cityopt.dimension import Dimension


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension(type="float", low=0.1, high=1), [0.1, 1, 0.5], [0.05, 1.1, True, "0.5"]),
        (Dimension(type="int", low=1, high=3), [1, 2, 3, 2.0], [0, 4, 2.5, True]),
        (Dimension(type="categorical", choices=("sgd", 3)), ["sgd", 3], ["adam", 4]),
    ],
)
def test_dimension_admits_what_lies_in_it(dimension, inside, outside):
    assert all(map(dimension.admits, inside)) and not any(map(dimension.admits, outside))


@pytest.mark.parametrize(
    ("dimension", "twin"),
    [
        (Dimension(type="float", low=0.1, high=1.0, step=0.1), FloatDistribution(0.1, 1.0, step=0.1)),
        (Dimension(type="float", low=-1, high=2, step=0.25), FloatDistribution(-1, 2, step=0.25)),
        (Dimension(type="int", low=1, high=9, step=2), IntDistribution(1, 9, step=2)),
        (Dimension(type="int", low=0, high=9), IntDistribution(0, 9)),
    ],
)
def test_dimension_admits_what_optuna_finds_on_its_grid(dimension, twin):
    values = [dimension.low + number * 0.05 for number in range(-3, 200)]
    found = {value: dimension.admits(value) for value in values}
    assert found == {value: twin._contains(value) for value in values}
    assert 1 < sum(found.values()) < len(found) / 2


def test_dimension_shows_all_its_values_when_they_are_few():
    assert Dimension(type="int", low=1, high=7, step=2).examples() == (1, 3, 5, 7)
    assert Dimension(type="int", low=1, high=1000).examples() == (1, 1000)
    assert Dimension(type="float", low=1, high=2).examples() == (1.0, 2.0)
    assert Dimension(type="categorical", choices=("a", "b")).examples() == ("a", "b")
