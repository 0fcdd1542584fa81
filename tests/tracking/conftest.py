from pathlib import Path

import pytest

from cityopt.tracking.mlflow_store import MlflowStore


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> MlflowStore:
    """One real store for all tests: making a database takes seconds. Each test has a study of its own."""
    return MlflowStore(tmp_path_factory.mktemp("a store"))


@pytest.fixture
def study(request: pytest.FixtureRequest) -> str:
    return request.node.name[:60].replace("[", "-").replace("]", "")


@pytest.fixture
def database(mlflow_store: MlflowStore) -> Path:
    mlflow_store.client  # noqa: B018
    return mlflow_store.store / "mlflow.db"
