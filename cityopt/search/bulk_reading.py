"""Optuna's database, read in bulk where all trials are wanted: by `status`, a report, a sweep that is resumed.

Optuna builds six objects of its mapper per trial and parses each setting's range anew, which takes 10,000 trials
several seconds. Here each table is read once, as plain rows. What comes out is the same (a test compares them).
"""

import json
from collections import defaultdict
from collections.abc import Collection, Container
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, String, select, type_coerce
from sqlalchemy.exc import SQLAlchemyError

from cityopt.runtime import pausing_collector

_NO_NUMBERS = {"NAN": float("nan"), "INF_POS": float("inf"), "INF_NEG": float("-inf")}
Rows = dict[int, list[Any]]
"""Rows of a table by the trial that they belong to."""


class BulkStorage(RDBStorage):
    """Optuna's storage with another way to read all trials of a study."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        is_all = states is None and trial_id_greater_than < 0
        trials = self._read_trials(study_id) if is_all else []
        return trials or super()._get_trials(study_id, states, included_trial_ids, trial_id_greater_than)

    def _read_trials(self, study_id: int, ids: Collection[int] | None = None) -> list[FrozenTrial]:
        try:
            with pausing_collector(), self.engine.connect() as connection:
                if self.engine.dialect.name == "postgresql":  # others write meanwhile: all tables as of one moment
                    connection = connection.execution_options(isolation_level="REPEATABLE READ")
                return read_trials(connection, study_id, ids)
        except SQLAlchemyError as error:  # in the words of Optuna's own way, which callers know
            raise StorageInternalError("the trials cannot be read") from error


def read_trials(connection: Connection, study_id: int, ids: Collection[int] | None = None) -> list[FrozenTrial]:
    """Return all trials of a study, or those with some ids, in the order of their ids.

    Their states come first: what a trial that has ended holds was there before its end, whoever writes meanwhile.
    """
    trials = _columns(models.TrialModel)
    is_wanted = trials["study_id"] == study_id
    if ids is not None:
        is_wanted &= trials["trial_id"].in_(ids)
    heads = connection.execute(
        select(*(trials[n] for n in ("trial_id", "number", "state", "datetime_start", "datetime_complete")))
        .where(is_wanted)
        .order_by(trials["trial_id"])
    ).all()

    def read(model: Any, order: str, *names: str) -> Rows:
        columns = _columns(model)
        wanted = (type_coerce(columns[n], String) if n.endswith("_type") else columns[n] for n in names)
        query = select(columns["trial_id"], *wanted).where(columns["trial_id"] == trials["trial_id"])
        found: Rows = defaultdict(list)
        for row in connection.execute(query.where(is_wanted).order_by(columns[order])).all():
            found[row[0]].append(row[1:])
        return found

    params = read(models.TrialParamModel, "param_id", "param_name", "param_value", "distribution_json")
    values = read(models.TrialValueModel, "objective", "value", "value_type")
    names = ("step", "intermediate_value", "intermediate_value_type")
    steps = read(models.TrialIntermediateValueModel, "trial_intermediate_value_id", *names)
    user = read(models.TrialUserAttributeModel, "trial_user_attribute_id", "key", "value_json")
    system = read(models.TrialSystemAttributeModel, "trial_system_attribute_id", "key", "value_json")
    return [
        FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=[_decode(*row) for row in values[trial_id]] or None,
            datetime_start=_localize(start),
            datetime_complete=_localize(complete),
            params={name: parse_distribution(kind).to_external_repr(inner) for name, inner, kind in params[trial_id]},
            distributions={name: parse_distribution(kind) for name, _, kind in params[trial_id]},
            user_attrs={key: json.loads(text) for key, text in user[trial_id]},
            system_attrs={key: json.loads(text) for key, text in system[trial_id]},
            intermediate_values={epoch: _decode(*row) for epoch, *row in steps[trial_id]},
            trial_id=trial_id,
        )
        for trial_id, number, state, start, complete in heads
    ]


def _columns(model: Any) -> Any:
    return model.__table__.c


def _decode(number: float | None, kind: str) -> float:
    return _NO_NUMBERS[kind] if number is None else number


def _localize(moment: datetime | None) -> datetime | None:
    """Return a moment, which is kept in UTC, by the local clock."""
    return moment and moment.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)


@lru_cache(maxsize=1000)
def parse_distribution(text: str) -> BaseDistribution:
    """Return what Optuna wrote down of a setting's range."""
    return json_to_distribution(text)
