"""Studies in a store: what may differ between two sweeps, what is refused, who holds the lock."""

import fcntl
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import DECAY, DEPTH, FACTS, FLAT, RATE, make_config

from cityopt.commands.options import load
from cityopt.errors import ConfigError, StoreError, StudyError
from cityopt.runtime import count_cores
from cityopt.search.storage import open_storage
from cityopt.search.study import describe_differences, find_threads, load_stored_study, open_study
from cityopt.search.study_lock import is_swept, lock_study
from cityopt.settings import replace_settings


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A store in which `small` was begun."""
    store = tmp_path_factory.mktemp("store")
    open_study(open_storage(store), make_config(), FACTS)
    return store


FREE = {
    "search.trials": 99,
    "data.root": "/elsewhere",
    "data.num_workers": 3,
    "data.synthetic.num_images": 50,
    "promotion.overrides": {"training.epochs": 50},
}


@pytest.mark.parametrize("key", FREE)
def test_study_goes_on_when_what_differs_changes_no_score(begun, key):
    config = replace_settings(make_config(), {key: FREE[key]})
    study, facts = open_study(open_storage(begun), config, replace(FACTS, root="/moved"))
    assert study.study_name == "small" and facts == replace(FACTS, root="/moved")
    assert load_stored_study(open_storage(begun), "small")[1] == config  # the latest settings are kept


def test_study_without_yaml_goes_on_with_the_settings_that_its_store_keeps(tmp_path):
    begun = make_config(name="begun-with-name")
    open_study(open_storage(tmp_path), begun, FACTS)
    assert load("begun-with-name", None, None, None, {}, tmp_path) == begun
    changed = load("begun-with-name", ["training.epochs=9"], "other", 7, {"search.trials": 30}, tmp_path)
    assert (changed.training.epochs, changed.name, changed.seed, changed.search.trials) == (9, "other", 7, 30)
    assert load("demo", None, None, None, {}, tmp_path).name == "demo"
    with pytest.raises(ConfigError, match="there is no study 'never-begun'"):
        load("never-begun", None, None, None, {}, tmp_path)
    with pytest.raises(ConfigError, match="there is no study 'begun-with-name'"):
        load("begun-with-name", None, None, None, {}, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("weights", "refused"), [("coco", True), ("imagenet", False), ("none", False)])
def test_study_of_old_is_refused_where_cocos_heads_would_now_start_its_trials(tmp_path, weights, refused):
    """Its settings were stored when there was no `model.rider_from`, and heads for other classes started afresh."""
    storage, config = open_storage(tmp_path), replace_settings(make_config(), {"model.weights": weights})
    study, _ = open_study(storage, config, FACTS)
    settings = study.user_attrs["cityopt:settings"]
    del settings["model"]["rider_from"]
    study.set_user_attr("cityopt:settings", settings)
    if not refused:
        open_study(storage, config, FACTS)
        return
    with pytest.raises(StudyError, match=r"model\.rider_from: was 'none', now 'person'"):
        open_study(storage, config, FACTS)
    open_study(storage, replace_settings(config, {"model.rider_from": "none"}), FACTS)


def test_best_trial_of_a_study_of_old_is_promoted_as_it_is(tmp_path):
    """Its settings were stored when there were no finalists; those of today, and what it says itself, stay."""
    storage, config = open_storage(tmp_path), replace_settings(make_config(), {"promotion.skip": ()})
    study, _ = open_study(storage, config, FACTS)
    assert load_stored_study(storage, "small")[1].promotion == config.promotion
    settings = study.user_attrs["cityopt:settings"]
    for key in ("finalists", "seeds"):
        del settings["promotion"][key]
    study.set_user_attr("cityopt:settings", settings)
    promotion = load_stored_study(storage, "small")[1].promotion
    assert (promotion.finalists, promotion.seeds) == (1, 1) and not promotion.has_finalists
    study.set_user_attr("cityopt:settings", settings | {"promotion": {"finalists": 2}})
    assert load_stored_study(storage, "small")[1].promotion.finalists == 2


DIFFERENCES = {
    "space": (make_config(space=FLAT | {RATE: FLAT[RATE] | {"low": 1e-4}}), FACTS, f"search.space.{RATE}.low"),
    "less space": (make_config(space={RATE: FLAT[RATE], DECAY: FLAT[DECAY]}), FACTS, f"search.space.{DEPTH}.low"),
    "seed": (make_config(seed=1), FACTS, "seed: was 0, now 1"),
    "threads": (replace_settings(make_config(), {"threads": 2}), FACTS, "threads: was 1, now 2"),
    "fixed config": (make_config(training={"batch_size": 4}), FACTS, "training.batch_size: was 8, now 4"),
    "size": (replace_settings(make_config(), {"data.size": (64, 128)}), FACTS, "data.size"),
    "subset size": (replace_settings(make_config(), {"data.num_images": 5}), FACTS, "data.num_images: was None, now 5"),
    "metric": (make_config(metric="val/coco/bbox/ap"), FACTS, "search.metric"),
    "direction": (make_config(direction="minimize"), FACTS, "search.direction"),
    "sampler": (make_config(sampler={"name": "random"}), FACTS, "search.sampler.name: was 'tpe', now 'random'"),
    "pruner": (make_config(pruner={"name": "median"}), FACTS, "search.pruner.name"),
    "baselines": (make_config(baselines=[{RATE: 0.01}]), FACTS, "search.baselines"),
    "fingerprint": (make_config(), replace(FACTS, fingerprint="e" * 64), "data fingerprint: was ffffffffffff"),
    "subset": (make_config(), replace(FACTS, subset_hash="c" * 16), "data subset hash: was aaaaaaaaaaaa"),
    "holdout": (make_config(), replace(FACTS, holdout_hash="c" * 16), "data holdout hash: was bbbbbbbbbbbb"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_study_is_refused_by_name_of_the_difference_when_scores_would_change(begun, name):
    config, facts, line = DIFFERENCES[name]
    with pytest.raises(StudyError) as refusal:
        open_study(open_storage(begun), config, facts)
    assert line in str(refusal.value) and "--name NEW" in str(refusal.value)
    if name == "seed":
        assert len(describe_differences(make_config(), FACTS, config, facts)) == 1


def test_anchors_and_threads_stay_as_fixed_when_a_study_goes_on(begun):
    other = replace(FACTS, threads=7, anchors={**FACTS.anchors, "adopted": "default"})
    _, facts = open_study(open_storage(begun), make_config(), other)
    assert facts == FACTS
    free = replace_settings(make_config(name="free"), {"threads": None})
    storage = open_storage(begun)
    assert find_threads(storage, free, num_workers=1) == count_cores()
    assert find_threads(storage, free, num_workers=1, cores=99) == 99
    open_study(storage, free, replace(FACTS, threads=5))
    assert find_threads(storage, free, num_workers=1, cores=99) == 5  # another machine, the same scores
    assert find_threads(storage, make_config(), num_workers=4) == 1


def test_studies_of_two_names_stand_side_by_side_when_in_one_store(begun):
    other, _ = open_study(open_storage(begun), make_config(name="other", seed=3), FACTS)
    other.ask()
    assert len(load_stored_study(open_storage(begun), "small")[0].trials) == 0


@pytest.mark.parametrize("written", ["nothing", "facts", "baselines"])
def test_study_is_made_anew_when_it_was_killed_while_it_was_created(tmp_path, written):
    storage = open_storage(tmp_path)
    config = make_config(baselines=[{RATE: 0.01, DECAY: 0.0, DEPTH: 2}])
    torso = optuna.create_study(study_name="small", storage=storage, direction="maximize")
    if written != "nothing":
        torso.enqueue_trial({RATE: 0.5})
    if written == "facts":
        torso.set_user_attr("cityopt:facts", {"root": "half"})
    with pytest.raises(StoreError, match="never begun whole"):
        load_stored_study(storage, "small")
    study, _ = open_study(storage, config, FACTS)
    assert [trial.system_attrs["fixed_params"] for trial in study.trials] == [{RATE: 0.01, DECAY: 0.0, DEPTH: 2}]
    assert load_stored_study(open_storage(tmp_path), "small")[2] == FACTS


def test_foreign_study_is_left_alone_when_it_has_the_name(tmp_path):
    storage = open_storage(tmp_path)
    foreign = optuna.create_study(study_name="small", storage=storage)
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(StoreError, match="--name NEW"):
        open_study(storage, make_config(), FACTS)
    assert optuna.load_study(study_name="small", storage=storage).trials[0].state == TrialState.COMPLETE


def test_unknown_study_is_refused_with_the_known_ones_when_loaded(begun):
    with pytest.raises(StoreError, match=r"no study 'smal' \(studies: .*small.*\).*cityopt sweep --study smal"):
        load_stored_study(open_storage(begun), "smal")


@pytest.mark.parametrize("content", [b"rubbish" * 1000, b"SQLite format 3\0" + bytes(5000)])
def test_storage_is_refused_by_name_when_it_is_broken(tmp_path, content):
    (tmp_path / "optuna.db").write_bytes(content)
    with pytest.raises(StoreError, match=rf"{tmp_path / 'optuna.db'} must be a database of trials.*--store DIR"):
        open_storage(tmp_path)
    assert (tmp_path / "optuna.db").read_bytes() == content


def test_storage_is_in_wal_mode_when_opened(begun):
    with open_storage(begun).engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


_HOLDER = """
import sys, pathlib
from cityopt.search.study_lock import lock_study
with lock_study(pathlib.Path(sys.argv[1]), "small"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_second_coordinator_is_refused_with_the_pid_when_one_is_at_work(tmp_path):
    assert not is_swept(tmp_path, "small")
    command = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert is_swept(tmp_path, "small") and not is_swept(tmp_path, "other")
        with (
            pytest.raises(StoreError, match=rf"at work in another process \(pid {holder.pid}, sweep\)"),
            lock_study(tmp_path, "small"),
        ):
            pytest.fail("two hold one study")
        with lock_study(tmp_path, "other"):
            pass
        holder.kill()
    assert not is_swept(tmp_path, "small")  # the lock goes with its process
    with lock_study(tmp_path, "small"):
        assert (tmp_path / "locks" / "small.lock").read_text() == f"{os.getpid()}, sweep"
        assert is_swept(tmp_path, "small")


@pytest.mark.parametrize("what", ["promotion", "crossval"])
def test_study_is_not_swept_when_its_promotion_or_cross_validation_is_at_work(tmp_path, what):
    with lock_study(tmp_path, "small", what):
        assert not is_swept(tmp_path, "small")
        with pytest.raises(StoreError, match=what), lock_study(tmp_path, "small"):
            pytest.fail("two hold one study")


def test_study_is_swept_all_the_same_when_somebody_looks_at_the_lock_just_then(tmp_path):
    with lock_study(tmp_path, "small"):
        pass
    with (tmp_path / "locks" / "small.lock").open() as file:  # as `is_swept` does, only longer
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.2, lambda: fcntl.flock(file, fcntl.LOCK_UN)).start()
        with lock_study(tmp_path, "small"):
            assert is_swept(tmp_path, "small")


def test_database_is_made_once_when_processes_come_at_the_same_time(tmp_path):
    code = "import sys, pathlib, cityopt.search.storage as s\ns.open_storage(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    several = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in several] == [""] * 3
    assert [process.returncode for process in several] == [0] * 3
