"""Quiet and hasty: Optuna says little, and no test waits until a disk has what it wrote."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from cityopt.tracking.mlflow_store import MlflowStore


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(autouse=True, scope="package")
def hasty() -> Iterator[None]:
    def skip_fsync(link, _):
        link.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", skip_fsync)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", skip_fsync)


@pytest.fixture(scope="session")
def mlflow_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's database takes seconds, so all tests share one; each has a study of its own."""
    store = MlflowStore(tmp_path_factory.mktemp("mlflow store"))
    store.open_experiment("first")
    return store.store


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the clock of this place differ from the database's, which goes by UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()
