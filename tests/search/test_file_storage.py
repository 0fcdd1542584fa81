"""What a coordinator writes into a file is what Optuna would have written, and what it remembers is what is there."""

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import FrozenTrial, TrialState

from cityopt.search.file_storage import FileStorage
from cityopt.search.storage import open_storage

TABLES = ("trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes")
OWN_SUITE = (
    "test_create_new_trial",
    "test_set_trial_param",
    "test_set_trial_state_values_for_state",
    "test_set_trial_state_values_for_values",
    "test_set_trial_state_values_for_floats",
    "test_set_trial_intermediate_value",
    "test_set_and_get_trial_param_for_floats",
    "test_set_trial_intermediate_value_for_floats",
    "test_set_trial_user_attr",
    "test_set_trial_system_attr",
    "test_check_trial_is_updatable",
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> BaseStorage:
    return optuna.storages.get_storage(open_storage(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize("case", OWN_SUITE)
def test_storage_passes_optunas_own_suite(shared: BaseStorage, case: str) -> None:
    getattr(StorageTestCase(), case)(shared)


def run_course(storage: RDBStorage, check: Callable[[optuna.Study], None] = lambda _: None) -> None:
    """Let three trials at a time come to all kinds of ends, odd values among them."""
    draw = random.Random(0)
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"rate": 0.5})
    at_work = list[optuna.Trial]()
    for number in range(7):
        trial = study.ask()
        at_work.append(trial)
        trial.suggest_float("rate", 1e-3, 1, log=True)
        trial.suggest_int("depth", 0, 5)
        trial.suggest_categorical("name", ["adamw", None, True, 0.5])
        for tried in range(2):
            trial.set_user_attr("a", {"tried": tried, "list": (1, 2)})
        trial.set_constraint("oom", float(number))
        for step, value in enumerate([0.1, float("nan"), float("inf"), float("-inf"), 0.2]):
            trial.report(value, step)
            check(study)
        if len(at_work) == 3:
            ended = at_work.pop(draw.randrange(3))
            state = draw.choice([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
            study.tell(ended, draw.choice([1.0, float("inf")]) if state == TrialState.COMPLETE else None, state)
            check(study)


def read_rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    connection = sqlite3.connect(path)
    rows = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in TABLES}
    rows["trials"] = connection.execute(
        "SELECT trial_id, number, study_id, state, datetime_start IS NULL, datetime_complete IS NULL FROM trials"
    ).fetchall()
    rows["times"] = connection.execute("SELECT DISTINCT length(datetime_start) FROM trials").fetchall()
    connection.close()
    return rows


def describe(trial: FrozenTrial) -> str:
    """Tell all of a trial as text, in which NaN equals itself, and the order of attributes means nothing."""
    return str({name: sorted(x.items()) if isinstance(x, dict) else x for name, x in vars(trial).items()})


def test_rows_are_those_that_optuna_writes(tmp_path: Path) -> None:
    run_course(open_storage(tmp_path))
    run_course(RDBStorage(f"sqlite:///{tmp_path / 'plain.db'}"))
    found = read_rows(tmp_path / "optuna.db")
    assert found == read_rows(tmp_path / "plain.db") and len(found["trial_params"]) == 21


def test_what_is_remembered_is_what_is_in_the_database(tmp_path: Path, in_tokyo: None) -> None:
    """Optuna's own reading beside it never differs, and trials that were given out earlier stay as they were."""
    plain, given = RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}"), list[tuple[FrozenTrial, str]]()

    def check(study: optuna.Study) -> None:
        trials = study.get_trials(deepcopy=False)
        assert list(map(describe, trials)) == list(map(describe, plain.get_all_trials(study._study_id)))
        assert all(describe(trial) == text for trial, text in given)
        given[:] = [(trial, describe(trial)) for trial in trials]

    run_course(open_storage(tmp_path), check)
    assert len(given) == 7


def test_others_writes_are_seen_at_once(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(tmp_path))
    trial = study.ask()
    assert study.get_trials(deepcopy=False)[0].user_attrs == {}
    other = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    other._storage.set_trial_user_attr(trial._trial_id, "note", "look")
    other.enqueue_trial({"rate": 0.5})
    assert study.get_trials(deepcopy=False)[0].user_attrs == {"note": "look"}
    assert study.ask().suggest_float("rate", 0, 1) == 0.5
    other.tell(trial.number, 0.25)
    assert study.best_value == 0.25
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        trial.report(0.5, 1)


def test_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    study = optuna.create_study(storage=open_storage(tmp_path))
    trial = study.ask()
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        connection.execute("ALTER TABLE trials RENAME COLUMN datetime_complete TO gone")
    with pytest.raises(StorageInternalError) as caught:
        study.tell(trial, 0.5)
    connection.execute("ALTER TABLE trials RENAME COLUMN gone TO datetime_complete")
    connection.close()
    assert "datetime_complete" in str(caught.value.__cause__)
    assert study.get_trials(deepcopy=False)[0].values is None


def test_interrupted_write_is_neither_kept_nor_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    assert isinstance(storage, FileStorage)
    study = optuna.create_study(storage=storage)
    trial = study.ask()

    def interrupt(*args: Any) -> None:
        FileStorage._add(storage, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "_add", interrupt)
        trial.report(0.5, 1)
    assert study.get_trials(deepcopy=False)[0].intermediate_values == {}
    trial.report(0.25, 1)
    assert study.get_trials(deepcopy=False)[0].intermediate_values == {1: 0.25}
