"""Quiet Optuna for all tests of the search floor."""

from collections.abc import Iterator

import optuna
import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)
