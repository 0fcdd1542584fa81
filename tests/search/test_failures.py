"""Failures in a row stop a study, and say what they have in common."""

import pytest

from cityopt.errors import StudyError
from cityopt.search.failures import Failure, FailureStreak, describe_common
from cityopt.tracking.run_folder import Status

NAN = Status("failed", "nan", "losses became NaN by step 7 of the epoch.")


def test_streak_stops_the_study_only_when_failures_are_in_a_row():
    streak = FailureStreak(3)
    for number, status in enumerate([NAN, NAN, Status("pruned"), NAN, NAN]):
        streak.take(number, {"training.learning_rate": 0.1}, status)
    with pytest.raises(StudyError, match=r"3 trials failed in a row \(search.max_failures\)"):
        streak.take(5, {"training.learning_rate": 0.2}, Status("failed", "crash"))


def test_streak_never_stops_a_study_without_a_limit():
    streak = FailureStreak(None)
    for number in range(100):
        streak.take(number, {}, NAN)


def test_description_names_reasons_words_and_settings_that_failures_share():
    failures = [
        Failure(1, {"rate": 0.02, "optimizer": "sgd", "depth": 3}, "nan", "NaN by step 7."),
        Failure(2, {"rate": 0.3, "optimizer": "sgd", "depth": 0}, "nan", "NaN by step 12."),
        Failure(3, {"rate": 0.05, "optimizer": "sgd", "depth": 5}, "oom", "NaN by step 1."),
    ]
    good = [{"rate": 0.001, "optimizer": "sgd", "depth": 1}, {"rate": 0.01, "optimizer": "adamw", "depth": 2}]
    assert describe_common(failures, good) == [
        "reasons: 2 x nan, 1 x oom",
        "all said: NaN by step 1.",
        "rate >= 0.02 in all of them, and <= 0.01 in those that did not fail",
        "optimizer = 'sgd' in all of them",
    ]


def test_description_is_silent_about_settings_when_they_say_nothing():
    failures = [
        Failure(1, {"rate": 0.02, "fixed": 4}, "crash", "ValueError: a"),
        Failure(2, {"rate": 0.3, "fixed": 4}, "crash", "KeyError: b"),
    ]
    found = describe_common(failures, [{"rate": 0.1, "fixed": 4}])
    assert found == ["reasons: 2 x crash", "the last one said: KeyError: b"]
    assert describe_common(failures, [])[2:] == ["fixed = 4 in all of them"]
