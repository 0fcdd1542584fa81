"""Trials read in bulk are those that Optuna reads one by one, whatever is in them."""

from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import event

from cityopt.search.storage import open_storage

KINDS = {
    "rate": FloatDistribution(1e-5, 1.0, log=True),
    "depth": IntDistribution(0, 5),
    "name": CategoricalDistribution(("adamw", "sgd", None, True, 0.5)),
}


def invent_trials() -> list[FrozenTrial]:
    odd = {1: 0.5, 2: float("nan"), 3: float("inf"), 4: float("-inf"), 9: 0.25}
    first = {"rate": 0.01, "depth": 3, "name": None}
    return [
        create_trial(
            value=0.5, params=first, distributions=KINDS, intermediate_values=odd, user_attrs={"a": [1, {"b": None}]}
        ),
        create_trial(value=float("inf"), params={"name": True}, distributions={"name": KINDS["name"]}),
        create_trial(value=float("-inf")),
        create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.1}, constraints={"oom": 1.0}),
        create_trial(state=TrialState.FAIL, system_attrs={"fixed_params": {"depth": 2}}),
        create_trial(state=TrialState.WAITING),
        create_trial(state=TrialState.WAITING),
    ]


def test_trials_are_the_same_as_optuna_reads_them(tmp_path: Path, in_tokyo: None) -> None:
    storage = open_storage(tmp_path)
    for name in ("other", "odd"):
        study = optuna.create_study(study_name=name, storage=storage)
        study.add_trials(invent_trials())
        study.ask({"rate": KINDS["rate"]})  # the waiting one, now running
    found = storage._get_trials(study._study_id, None, set(), -1)
    expected = RDBStorage._get_trials(storage, study._study_id, None, set(), -1)
    assert len(found) == 7 and list(map(repr, found)) == list(map(repr, expected))  # NaN equals itself as text alone
    assert [list(t.params) for t in found] == [list(t.params) for t in expected]
    assert {t.state for t in found} == set(TrialState)


def test_number_of_queries_does_not_grow_with_the_trials(tmp_path: Path) -> None:
    storage, queries = open_storage(tmp_path), list[str]()
    study = optuna.create_study(storage=storage)
    event.listen(storage.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    counts = []
    for _ in range(2):
        study.add_trials(invent_trials() * 3)
        queries.clear()
        assert len(storage.get_all_trials(study._study_id)) == 21 * (len(counts) + 1)
        counts.append(len(queries))
    assert counts[0] == counts[1] <= 6


def test_trial_that_ends_while_all_are_read_is_never_one_that_ended_without_a_value(tmp_path: Path) -> None:
    """A sampler would keep it so for good: Optuna reads a trial that has ended only once."""
    storage, reader = open_storage(tmp_path), open_storage(tmp_path)
    study = optuna.create_study(storage=storage)
    at_work = [study.ask({"rate": KINDS["rate"]}) for _ in range(6)]
    event.listen(reader.engine, "after_cursor_execute", lambda *_: study.tell(at_work.pop(), 0.5))  # after each table
    found = reader._get_trials(study._study_id, None, set(), -1)
    assert at_work == [] and {len(trial.params) for trial in found} == {1}
    assert {trial.value for trial in found if trial.state == TrialState.COMPLETE} <= {0.5}


def test_failure_to_read_is_told_as_optuna_tells_it(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    study = optuna.create_study(storage=storage)
    study.ask()
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_params")
    with pytest.raises(StorageInternalError):
        storage._get_trials(study._study_id, None, set(), -1)
