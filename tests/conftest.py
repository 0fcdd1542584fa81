"""A store of the study `tests/studies/tiny.yaml` with all that takes long and is the same each time, made once."""

import shutil
from pathlib import Path

import pytest

TINY = Path(__file__).parent / "studies" / "tiny.yaml"


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, decoded images, and both databases with tables and nothing in them. Copy it, do not write to it."""
    from cityopt.config import load_study
    from cityopt.search.observer import Observer
    from cityopt.search.preparation import prepare_study
    from cityopt.search.study import open_storage
    from cityopt.tracking.mlflow_store import MlflowStore

    store = tmp_path_factory.mktemp("template") / "store"
    store.mkdir()
    prepare_study(load_study(str(TINY)), store, data=None, observer=Observer())
    open_storage(store).engine.dispose()
    MlflowStore(store).open_experiment("another study")
    return store


@pytest.fixture
def tiny_store(template_store: Path, tmp_path: Path) -> Path:
    """A store to write to."""
    return Path(shutil.copytree(template_store, tmp_path / "store"))
