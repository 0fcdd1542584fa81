"""Axes against closed forms: where values lie, and ticks that are round, in order and inside."""

import math

import pytest

from cityopt.dimension import Dimension
from cityopt.report.axes import Axis, build_setting_axis, fit_axis, fit_log_axis, place_setting


def test_values_lie_in_proportion_on_a_linear_axis():
    axis = Axis(2.0, 4.0, 100.0, 300.0)
    assert [axis.place(value) for value in (2.0, 2.5, 4.0)] == [100.0, 150.0, 300.0]
    assert [axis.place(value) for value in (-9.0, 9.0)] == [100.0, 300.0]  # outside: at the ends


def test_decades_are_equally_long_on_a_logarithmic_axis():
    axis = Axis(1e-4, 1e-1, 0.0, 300.0, is_log=True)
    assert [round(axis.place(10.0**power), 6) for power in (-4, -3, -2, -1)] == [0, 100, 200, 300]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.031, 0.049, ["0.035", "0.040", "0.045"]),
        (-1.0, 1.0, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_round_and_inside(low, high, labels):
    assert [label for _, label in Axis(low, high, 0, 1).ticks(5)] == labels


@pytest.mark.parametrize(("low", "high"), [(1e-5, 1e-1), (1e-3, 2e-2), (3.0, 800.0), (1e-12, 1.0)])
def test_logarithmic_ticks_are_inside_and_few(low, high):
    ticks = Axis(low, high, 0, 1, is_log=True).ticks(5)
    assert 2 <= len(ticks) <= 7
    for value, label in ticks:
        assert low * 0.999 <= value <= high * 1.001 and math.isclose(float(label), value)


@pytest.mark.parametrize("values", [[], [0.3], [float("nan"), 0.3], [0.0, 0.0]])
def test_axis_has_a_length_when_there_is_next_to_nothing_on_it(values):
    for axis in (fit_axis(values, 0, 100), fit_log_axis(values, 0, 100)):
        assert axis.low < axis.high and axis.ticks()


def test_settings_have_the_range_of_their_search():
    log = Dimension(type="float", low=1e-4, high=1e-2, log=True)
    axis = build_setting_axis(log, 0.0, 106.0)
    assert math.isclose(place_setting(axis, log, 1e-3), 53.0)
    flat = Dimension(type="int", low=0, high=5)
    assert math.isclose(place_setting(build_setting_axis(flat, 0.0, 106.0), flat, 5), 103.0)
    named = Dimension(type="categorical", choices=("sgd", "adamw"))
    axis = build_setting_axis(named, 0.0, 100.0)
    assert [place_setting(axis, named, name) for name in named.choices] == [25.0, 75.0]
    assert axis.ticks() == [(0.0, "sgd"), (1.0, "adamw")]
    assert place_setting(axis, named, "lion") is None and place_setting(axis, flat, "lion") is None
    fixed = Dimension(type="float", low=0.5, high=0.5)
    assert 0 < place_setting(build_setting_axis(fixed, 0.0, 100.0), fixed, 0.5) < 100
