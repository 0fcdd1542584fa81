import uuid
from pathlib import Path

import pytest

from cityopt.tracking.mlflow_store import MlflowStore


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """One real store for all tests: making a database takes seconds. Each test has a study of its own."""
    store = MlflowStore(tmp_path_factory.mktemp("a store"))
    store.open_experiment("first")
    return store


@pytest.fixture
def study() -> str:
    return f"study-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def database(mlflow_store: MlflowStore) -> Path:
    return mlflow_store.store / "mlflow.db"
