"""Where studies and runs are: checked before it is believed, kept for the owner alone, never shown whole."""

import os

import pytest

from cityopt.commands.options import join
from cityopt.errors import ConfigError, StoreError
from cityopt.services import (
    SERVICES,
    Services,
    has_runs,
    hide_password,
    name_storage,
    parse_services,
    read_services,
    remember_services,
    settle_services,
)
from cityopt.store import find_store

URL = "postgresql+psycopg://ann:rose%2Fbud@db.example:5433/studies"
BOTH = Services(URL, "http://ann:rosebud@mlflow.example:5000")


@pytest.mark.parametrize("driver", ["postgres", "postgresql", "postgresql+psycopg"])
def test_storage_gets_the_driver_that_is_installed_whatever_the_spelling(driver):
    given = URL.replace("postgresql+psycopg", driver)
    assert parse_services(given, "https://mlflow.example/") == Services(URL, "https://mlflow.example")


@pytest.mark.parametrize(
    ("storage", "tracking_uri", "text"),
    [
        ("sqlite:///optuna.db", None, "file is what a store has without --storage"),
        ("postgresql+psycopg2://ann:rosebud@h/db", None, r"postgresql\+psycopg://USER"),
        ("mysql://ann:rosebud@h/db", None, "must be the address of a PostgreSQL database"),
        ("postgresql://ann:rosebud@h:54x/db", None, "HOST:PORT"),
        ("postgresql://ann:rose/bud@h/db", None, "special characters as %2F"),
        ("postgresql://ann:rose@rosebud@h/db", None, "special characters as %2F"),  # its end would be taken for a host
        ("", None, "must be the address of a PostgreSQL database"),
        (None, "sqlite:///mlflow.db", "without it a store has runs in a database of its own"),
        (None, "http://h:54x", "must be the address of an MLflow server"),
        (None, "http://", "must be the address of an MLflow server"),
        (None, "ftp://ann:rosebud@h", "must be the address of an MLflow server"),
    ],
)
def test_address_of_something_else_is_refused_without_its_password(storage, tracking_uri, text):
    with pytest.raises(ConfigError, match=text) as error:
        parse_services(storage, tracking_uri)
    assert "rosebud" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql+psycopg://ann:***@db.example:5433/studies"),
        ("postgresql://ann:p/a@s@h/db", "postgresql://ann:***@h/db"),
        (
            "postgresql://h/db?user=ann&password=secret&sslmode=require",
            "postgresql://h/db?user=ann&password=***&sslmode=require",
        ),
        ("http://mlflow.example:5000", "http://mlflow.example:5000"),
        ("GET http://ann:secret@h/api failed, mail to a@b", "GET http://ann:***@h/api failed, mail to a@b"),
    ],
)
def test_password_is_hidden_and_nothing_else(url, shown):
    assert hide_password(url) == shown


def test_store_remembers_its_services_for_the_owner_alone(tmp_path):
    assert read_services(tmp_path) == Services() and not has_runs(tmp_path)
    assert name_storage(tmp_path) == str(tmp_path / "optuna.db")
    remember_services(tmp_path, BOTH)
    assert read_services(tmp_path) == BOTH and has_runs(tmp_path)
    assert find_store(tmp_path) == tmp_path
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [(SERVICES, 0o600)]
    assert name_storage(tmp_path) == "postgresql+psycopg://ann:***@db.example:5433/studies"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"storage": "sqlite:///x", "tracking_uri": null}', "\0"])
def test_broken_file_is_named_with_the_way_out(tmp_path, text):
    (tmp_path / SERVICES).write_text(text)
    with pytest.raises(StoreError, match=rf"{tmp_path / SERVICES} must name.*--storage and --tracking-uri"):
        read_services(tmp_path)


def test_store_keeps_to_its_services(tmp_path):
    assert settle_services(tmp_path, BOTH) == BOTH
    remember_services(tmp_path, Services(URL))
    assert settle_services(tmp_path, Services()) == settle_services(tmp_path, Services(URL)) == Services(URL)
    with pytest.raises(StoreError, match=r"has no `--tracking-uri`, but got http://ann:\*\*\*@mlflow") as error:
        settle_services(tmp_path, BOTH)
    with pytest.raises(StoreError, match=r"`--storage postgres.*ann:\*\*\*@db.example:5433/studies`, but got"):
        settle_services(tmp_path, Services(URL.replace("studies", "others")))
    assert "rosebud" not in str(error.value)


def test_services_are_on_the_disk_before_anything_is_done_there(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(os, "fsync", lambda file: written.append(os.fstat(file).st_ino))
    remember_services(tmp_path, BOTH)
    assert written == [(tmp_path / SERVICES).stat().st_ino, tmp_path.stat().st_ino]


def test_password_may_change(tmp_path):
    remember_services(tmp_path, BOTH)
    new = URL.replace("rose%2Fbud", "tulip")
    assert settle_services(tmp_path, Services(new)) == Services(new, BOTH.tracking_uri)


@pytest.mark.parametrize(("file", "option"), [("optuna.db", "--storage"), ("mlflow.db", "--tracking-uri")])
def test_store_with_databases_of_its_own_takes_no_services(tmp_path, file, option):
    (tmp_path / file).touch()
    with pytest.raises(StoreError, match=rf"has {file}, but got `{option} .*leave {option} out"):
        settle_services(tmp_path, BOTH)
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_command_says_whom_it_asks_the_first_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cityopt.search.storage.join_services", lambda store, *_: store)
    assert BOTH.storage and BOTH.tracking_uri
    join(tmp_path, BOTH.storage, BOTH.tracking_uri)
    asked = "postgresql+psycopg://ann:***@db.example:5433/studies and http://ann:***@mlflow.example:5000"
    assert capsys.readouterr() == ("", f"asking {asked}\n")
    remember_services(tmp_path, BOTH)
    join(tmp_path, BOTH.storage, BOTH.tracking_uri)
    assert capsys.readouterr() == ("", "")
