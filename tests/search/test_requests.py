"""`stop` and `retry`: what they do to a study at rest, and what they leave for one at work."""

import threading
import time

import pytest
from optuna.trial import TrialState, create_trial
from small_studies import FACTS, FLAT, RATE, make_config

from cityopt.errors import ConfigError, StoreError
from cityopt.search import requests
from cityopt.search.requests import Request, RequestBox, retry_failed, stop_study
from cityopt.search.retries import enqueue_failed
from cityopt.search.space import build_trial_config, sample_settings
from cityopt.search.status import ENDING, RETRY_OF
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.search.study_lock import lock_study


@pytest.fixture
def study(tmp_path):
    config = make_config(space={RATE: FLAT[RATE]}, trials=4)
    study, _ = open_study(open_storage(tmp_path), config, FACTS)
    for number, (state, reason) in enumerate([("complete", ""), ("failed", "oom"), ("failed", "hung")]):
        trial = study.ask()
        sample_settings(trial, config.search.space)
        trial.set_user_attr(ENDING, {"state": state, "reason": reason, "seconds": 1.0})
        if state == "complete":
            study.tell(trial, 0.1 * number)
        else:
            study.tell(trial, state=TrialState.PRUNED if reason == "oom" else TrialState.FAIL)
    return study


def waiting(study):
    found = study.get_trials(states=[TrialState.WAITING])
    return [(trial.number, trial.user_attrs[RETRY_OF], trial.system_attrs["fixed_params"]) for trial in found]


def test_failed_settings_are_enqueued_once_when_asked_for_twice(study, tmp_path):
    said = retry_failed("small", "oom", store=tmp_path)
    assert "1 failed trials (1)" in said and "cityopt sweep --study small --store" in said
    assert waiting(study) == [(3, 1, study.trials[1].params)]
    assert "No trial" in retry_failed("small", "oom", store=tmp_path)
    assert enqueue_failed(study, "any") == [2]
    trial = study.ask()  # the enqueued ones come first, with the very settings of old
    assert sample_settings(trial, make_config(space={RATE: FLAT[RATE]}).search.space) == study.trials[1].params
    run = build_trial_config(make_config(), FACTS, trial.number, study.trials[1].params, device="cpu", cache=tmp_path)
    assert run.name == "trial-0003"  # and a number and seed of its own


def test_retry_is_tried_again_when_it_failed_too(study):
    enqueue_failed(study, "oom")
    trial = study.ask()
    trial.set_user_attr(ENDING, {"state": "failed", "reason": "oom", "seconds": 1.0})
    study.tell(trial, state=TrialState.PRUNED)
    assert enqueue_failed(study, "oom") == [3]


def test_retry_names_the_reasons_when_one_is_unknown(study, tmp_path):
    with pytest.raises(ConfigError, match=r"must be one of nan, oom.*but got 'oon'.*Did you mean 'oom'"):
        retry_failed("small", "oon", store=tmp_path)


def test_live_sweep_is_asked_when_it_holds_the_study(study, tmp_path):
    with lock_study(tmp_path, "small"):
        assert "sweep at work" in retry_failed("small", "hung", store=tmp_path)
        assert waiting(study) == []
    seen = []
    RequestBox(tmp_path, "small").obey(seen.append)
    assert seen == [Request("retry", "hung")]
    RequestBox(tmp_path, "small").obey(seen.append)
    assert len(seen) == 1


def test_request_stays_when_the_coordinator_dies_while_it_obeys(tmp_path):
    box, seen = RequestBox(tmp_path, "small"), []
    box.put(Request("retry", "oom"))

    def die(request):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        box.obey(die)
    RequestBox(tmp_path, "small").obey(seen.append)
    assert seen == [Request("retry", "oom")]


def test_stops_of_old_are_forgotten_but_retries_are_not_when_a_sweep_begins(tmp_path):
    box, seen = RequestBox(tmp_path, "small"), []
    box.put(Request("stop"))
    box.put(Request("retry", "nan"))
    assert box.forget_stops() and not box.hear_stop()
    box.obey(seen.append, at_once=True)
    assert seen == [Request("retry", "nan")]


@pytest.mark.parametrize(
    ("what", "advice"), [("sweep", "cityopt sweep --study small"), ("promotion", "The same command goes on")]
)
def test_stop_waits_until_what_is_at_work_has_ended(study, tmp_path, what, advice):
    begun, ended = threading.Event(), threading.Event()

    def work():
        with lock_study(tmp_path, "small", what):
            begun.set()
            box = RequestBox(tmp_path, "small")
            while not box.hear_stop():
                time.sleep(0.05)
            ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(10)
    assert advice in stop_study("small", store=tmp_path) and ended.is_set()
    thread.join(10)


def test_stop_says_so_when_nothing_is_at_work_or_it_does_not_end(study, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="nothing to stop"):
        stop_study("small", store=tmp_path)
    monkeypatch.setattr(requests, "_PATIENCE_S", 0.2)
    with lock_study(tmp_path, "small"), pytest.raises(StoreError, match="and still is"):
        stop_study("small", store=tmp_path)


def test_retry_needs_no_settings_of_a_trial_that_other_tools_made(study):
    study.add_trial(create_trial(state=TrialState.FAIL))
    assert enqueue_failed(study, "crash") == []
