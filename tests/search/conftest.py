"""Quiet and hasty: Optuna says little, and no test waits until a disk has what it wrote."""

import os
from collections.abc import Iterator

import optuna
import pytest
import sqlalchemy


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
