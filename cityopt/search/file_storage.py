"""Optuna's database in a file, for a coordinator: a write is a few statements, and trials at work are remembered.

Optuna builds objects of its mapper for every write, and for every question reads the trials at work anew: a third of
all that a trial costs its coordinator. The rows written here are the same, and as safe when a call returns. What is
remembered counts until another connection has written, which SQLite tells (`PRAGMA data_version`): so a dashboard, a
notebook or another command is heard at once. Studies, and trials that are added whole, are left to Optuna.
"""

import copy
import json
import math
import sqlite3
import threading
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from cityopt.search.bulk_reading import BulkStorage, parse_distribution

_BUSY_S = 60.0
_DICTS = ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")
_MANY = 500
_ADD_TRIAL = (
    "INSERT INTO trials (study_id, number, state, datetime_start) "
    "SELECT study_id, (SELECT COUNT(*) FROM trials t WHERE t.study_id = s.study_id), ?, ? FROM studies s "
    "WHERE study_id = ?"
)
_END_TRIAL = "UPDATE trials SET state = ?, datetime_complete = ? WHERE trial_id = ?"
_ADD_PARAM = (
    "INSERT OR IGNORE INTO trial_params (trial_id, param_name, param_value, distribution_json) VALUES (?, ?, ?, ?)"
)
_SET_VALUE = (
    "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, ?) "
    "ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type"
)
_SET_STEP = (
    "INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type) "
    "VALUES (?, ?, ?, ?) "
    "ON CONFLICT (trial_id, step) DO UPDATE SET intermediate_value = excluded.intermediate_value, "
    "intermediate_value_type = excluded.intermediate_value_type"
)
_SET_ATTRIBUTE = (
    "INSERT INTO trial_{}_attributes (trial_id, key, value_json) VALUES (?, ?, ?) "
    "ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json"
)


class FileStorage(BulkStorage):
    """Optuna's storage in a SQLite file. It raises what Optuna's does."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": _BUSY_S}})
        self._path = path
        self._lock = threading.RLock()
        self._at_work: dict[int, FrozenTrial] = {}
        """Trials as they are in the database at `_version`. One that changes is replaced: others may hold it."""
        self._version = -1

    @cached_property
    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        if template_trial is not None:
            return super()._create_new_trial(study_id, template_trial)
        start = datetime.now()
        with self._transaction() as connection:
            row = (TrialState.RUNNING.name, _pack_time(start), study_id)
            added = connection.execute(_ADD_TRIAL, row)
            trial_id = _expect(added.lastrowid if added.rowcount else None)
            (number,) = connection.execute("SELECT number FROM trials WHERE trial_id = ?", (trial_id,)).fetchone()
            trial = self._at_work[trial_id] = FrozenTrial(
                number=number,
                state=TrialState.RUNNING,
                value=None,
                datetime_start=start,
                datetime_complete=None,
                params={},
                distributions={},
                user_attrs={},
                system_attrs={},
                intermediate_values={},
                trial_id=trial_id,
            )
        return trial

    def _set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None,
    ) -> None:
        if previous_distribution is None:  # the first of its name in this process: Optuna looks for earlier ones
            super()._set_trial_param(trial_id, param_name, param_value_internal, distribution, None)
            return
        text = distribution_to_json(distribution)
        with self._transaction(trial_id) as connection:
            check_distribution_compatibility(previous_distribution, distribution)
            row = (trial_id, param_name, param_value_internal, text)
            if not connection.execute(_ADD_PARAM, row).rowcount:
                return
            kind = parse_distribution(text)
            self._add(trial_id, "distributions", param_name, kind)
            self._add(trial_id, "params", param_name, kind.to_external_repr(param_value_internal))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """End a trial, or let it run; False where it does already."""
        if not state.is_finished():
            return super().set_trial_state_values(trial_id, state, values)
        complete = datetime.now()
        with self._transaction(trial_id) as connection:
            rows = [(trial_id, objective, *_encode(value)) for objective, value in enumerate(values or ())]
            connection.executemany(_SET_VALUE, rows)
            connection.execute(_END_TRIAL, (state.name, _pack_time(complete), trial_id))
            self._replace(trial_id, state=state, datetime_complete=complete, values=values)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what a trial reported at a step."""
        with self._transaction(trial_id) as connection:
            connection.execute(_SET_STEP, (trial_id, step, *_encode(intermediate_value)))
            self._add(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of the user's."""
        self._set_attribute(trial_id, "user", key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set an attribute of Optuna's."""
        self._set_attribute(trial_id, "system", key, value)

    def _set_attribute(self, trial_id: int, kind: str, key: str, value: Any) -> None:
        text = json.dumps(value)
        with self._transaction(trial_id) as connection:
            connection.execute(_SET_ATTRIBUTE.format(kind), (trial_id, key, text))
            self._add(trial_id, f"{kind}_attrs", key, json.loads(text))

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial, which is the caller's to change."""
        with self._reading():
            if trial_id not in self._at_work:
                return super().get_trial(trial_id)
            trial = copy.copy(self._at_work[trial_id])
        for name in _DICTS:
            setattr(trial, name, dict(getattr(trial, name)))
        return trial

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        if states is not None:
            return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
        with self._reading() as connection:
            query = "SELECT trial_id FROM trials WHERE study_id = ? AND trial_id > ?"
            later = connection.execute(query, (study_id, trial_id_greater_than)).fetchall()
            wanted = included_trial_ids.union(trial_id for (trial_id,) in later)
            if not wanted:
                return super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)
            missing = wanted - self._at_work.keys()
            if missing:
                found = self._read_trials(study_id, missing if len(missing) <= _MANY else None)
                self._at_work |= {trial._trial_id: trial for trial in found}
            trials = [self._at_work[trial_id] for trial_id in sorted(wanted) if trial_id in self._at_work]
            self._at_work = {key: trial for key, trial in self._at_work.items() if not trial.state.is_finished()}
        return trials

    def _add(self, trial_id: int, name: str, key: Any, value: Any) -> None:
        if trial_id in self._at_work:
            self._replace(trial_id, **{name: {**getattr(self._at_work[trial_id], name), key: value}})

    def _replace(self, trial_id: int, **changes: Any) -> None:
        if trial_id in self._at_work:
            trial = self._at_work[trial_id] = copy.copy(self._at_work[trial_id])
            for name, value in changes.items():
                setattr(trial, name, value)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Forget what is remembered if somebody else has written since."""
        with self._lock, _translating_errors():
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
            if version != self._version:
                self._version, self._at_work = version, {}
            yield self._connection

    @contextmanager
    def _transaction(self, trial_id: int | None = None) -> Iterator[sqlite3.Connection]:
        """Write whole or not at all, about a trial that has not ended if one is named."""
        with self._lock, _translating_errors():
            try:
                with self._connection as connection:
                    connection.execute("BEGIN IMMEDIATE")
                    if trial_id is not None:
                        row = connection.execute("SELECT state FROM trials WHERE trial_id = ?", (trial_id,)).fetchone()
                        self.check_trial_is_updatable(trial_id, TrialState[_expect(row)[0]])
                    yield connection
            except BaseException:
                self._at_work = {}
                raise


def _expect(found: Any) -> Any:
    if found is None:
        raise KeyError("Record does not exist.")
    return found


@contextmanager
def _translating_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:  # in the words of Optuna's own way, which callers know
        raise StorageInternalError("the database of trials did not do what was asked") from error


def _encode(value: float) -> tuple[float | None, str]:
    """Return a number as Optuna keeps it."""
    if math.isnan(value):
        return None, "NAN"
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


def _pack_time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
