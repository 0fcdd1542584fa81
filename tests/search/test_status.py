"""The leaderboard: states, reasons, order and the JSON document, from hand-made trials."""

import json
import os
import time

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from small_studies import DECAY, DEPTH, FACTS, RATE, make_config

from cityopt.errors import StoreError
from cityopt.search.status import ENDING, RETRY_OF, RUN_ID, describe_trials, find_best_reported, read_status
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.search.study_lock import lock_study

NAN = float("nan")


def add(study, state, value=None, curve=(), ending=None, **attributes):
    study.add_trial(
        create_trial(
            state=state,
            value=value,
            intermediate_values=dict(enumerate(curve, start=1)),
            user_attrs=({ENDING: ending} if ending else {}) | attributes,
        )
    )


@pytest.fixture
def store(tmp_path):
    config = make_config(baselines=[{RATE: 0.01, DECAY: 0.0, DEPTH: 2}])
    study, _ = open_study(open_storage(tmp_path), config, FACTS)
    ended = {"state": "complete", "reason": "", "seconds": 12.5}
    add(study, TrialState.COMPLETE, 0.3, (0.1, 0.3, 0.2), ended, **{RUN_ID: "r1"})
    add(study, TrialState.PRUNED, 0.2, (0.25, 0.2), {"state": "pruned", "reason": "", "seconds": 3.0})
    add(study, TrialState.PRUNED, 0.9, (0.9,), {"state": "failed", "reason": "nan", "seconds": 1.0})
    add(study, TrialState.FAIL, None, (0.8,), {"state": "failed", "reason": "crash", "seconds": 0.0})
    add(study, TrialState.COMPLETE, 0.5, (0.5,), ended, **{RUN_ID: "r5"})
    study.enqueue_trial({RATE: 0.02})
    study.ask()
    return tmp_path


def test_status_tells_states_and_reasons_apart_when_read(store):
    found = read_status(store, "small")
    assert [(trial.number, trial.state, trial.reason, trial.value) for trial in found.trials] == [
        (0, "waiting", "interrupted", None),
        (1, "complete", None, 0.3),
        (2, "pruned", None, 0.25),
        (3, "failed", "nan", None),
        (4, "failed", "crash", None),
        (5, "complete", None, 0.5),
        (6, "waiting", None, None),
    ]
    assert found.trials[6].params == {RATE: 0.02}
    assert found.counts == {"complete": 2, "pruned": 1, "failed": 2, "running": 0, "waiting": 2}
    assert found.best is found.trials[5]
    assert [trial.number for trial in found.ranked] == [5, 1, 2, 0, 6, 3, 4]


def test_trial_is_running_only_when_somebody_is_at_work(store):
    with lock_study(store, "small"):
        assert read_status(store, "small").trials[0].state == "running"
    assert read_status(store, "small").trials[0].state == "waiting"


def test_json_has_the_agreed_shape_when_printed(store):
    document = json.loads(json.dumps(read_status(store, "small").to_json(), allow_nan=False))
    assert document.keys() == {"study", "metric", "direction", "best", "budget", "trials"}
    assert document["best"] == {"number": 5, "value": 0.5, "params": {}, "run_id": "r5"}
    assert document["budget"] == {
        "device_hours": pytest.approx(29 / 3600),
        "max_device_hours": None,
        "device_hours_left": None,
        "hours": None,
        "max_hours": None,
        "hours_left": None,
        "trials_left": 0,
    }
    assert document["trials"][1] == {
        "number": 1,
        "state": "complete",
        "reason": None,
        "value": 0.3,
        "params": {},
        "run_id": "r1",
        "seconds": 12.5,
    }
    assert {frozenset(trial) for trial in document["trials"]} == {
        frozenset({"number", "state", "reason", "value", "params", "run_id", "seconds"})
    }


def test_best_is_the_lowest_when_a_study_minimizes(tmp_path):
    study, _ = open_study(open_storage(tmp_path), make_config(direction="minimize"), FACTS)
    assert read_status(tmp_path, "small").best is None
    for value in (3.0, 1.0, 2.0):
        add(study, TrialState.COMPLETE, value, (value,))
    found = read_status(tmp_path, "small")
    assert found.best.number == 1 and [trial.number for trial in found.ranked] == [1, 2, 0]


@pytest.mark.parametrize(
    ("curve", "maximize", "best"),
    [((0.1, 0.3, 0.2), True, 0.3), ((0.1, 0.3, 0.2), False, 0.1), ((NAN, 0.2), True, 0.2), ((NAN,), True, None)],
)
def test_best_reported_ignores_nan_when_looking(curve, maximize, best):
    assert find_best_reported(curve, maximize) == best
    assert find_best_reported((), maximize) is None


def test_store_without_studies_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(StoreError, match=r"no study in .*cityopt sweep --study small --store"):
        read_status(tmp_path, "small")
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing behind


def test_states_follow_optuna_when_a_trial_has_no_ending():
    study = optuna.create_study(direction="maximize")
    add(study, TrialState.COMPLETE, 0.3)
    add(study, TrialState.FAIL)
    add(study, TrialState.PRUNED, 0.1, (0.1,))
    assert [trial.state for trial in describe_trials(study, live=False)] == ["complete", "failed", "pruned"]


def test_budget_tells_what_is_left_when_there_are_limits(tmp_path):
    config = make_config(trials=6, max_hours=2.0, max_device_hours=1.0)
    study, _ = open_study(open_storage(tmp_path), config, FACTS)
    add(study, TrialState.COMPLETE, 0.3, (0.3,), {"state": "complete", "reason": "", "seconds": 1800.0})
    add(study, TrialState.FAIL, None, (), {"state": "failed", "reason": "crash", "seconds": 900.0})
    add(study, TrialState.COMPLETE, 0.2, (0.2,), {"state": "complete", "seconds": 1800.0}, **{RETRY_OF: 1})
    with lock_study(tmp_path, "small"):
        os.utime(tmp_path / "locks" / "small.lock", (time.time() - 1800,) * 2)  # it began half an hour ago
        found = read_status(tmp_path, "small").to_json()["budget"]
    assert found["hours"] == pytest.approx(0.5, abs=0.01) and found["hours_left"] == pytest.approx(1.5, abs=0.01)
    assert (found["device_hours"], found["device_hours_left"]) == (1.25, 0.0)
    assert found["trials_left"] == 4  # the failed one's place was taken by its retry
