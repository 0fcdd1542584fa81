"""The folder of all state: made by what begins something, found by the rest, named the same way by all."""

import pytest

from cityopt.errors import StoreError
from cityopt.store import describe_option, find_store, open_store


def test_store_is_made_absolute_when_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("new/store") == tmp_path / "new" / "store"
    assert list((tmp_path / "new" / "store").iterdir()) == []


def test_store_is_refused_when_it_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"store must be a folder that can be written.*--store DIR"):
        open_store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match=r"file is not"):
        open_store(tmp_path / "file")


@pytest.mark.parametrize("database", ["optuna.db", "mlflow.db"])
def test_store_is_found_at_its_absolute_path_when_it_has_a_database(tmp_path, monkeypatch, database):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / database).touch()
    assert [find_store(path) for path in ("store", "~/store", tmp_path / "store")] == [tmp_path / "store"] * 3
    assert open_store("~/store") == tmp_path / "store"


def test_mistyped_store_is_refused_with_path_and_command_and_never_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as error:
        find_store("mlrnus", "demo")
    assert str(tmp_path / "mlrnus") in str(error.value)
    assert "--store DIR" in str(error.value) and "cityopt sweep --study demo --store mlrnus" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "README.md").touch()  # a fresh checkout has no more
    with pytest.raises(StoreError, match=r"cityopt sweep --study NAME$"):
        find_store("mlruns")


def test_option_is_needed_only_when_the_store_is_another_than_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe_option(tmp_path / "mlruns") == ""
    assert describe_option(tmp_path / "other" / "store") == " --store other/store"
    assert describe_option(tmp_path / "my store") == " --store 'my store'"
