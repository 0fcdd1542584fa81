"""The database of a store's studies: a file in the store, or the PostgreSQL server that the store points to.

`join_services` lets a store point there: it asks both services before it believes their addresses.
"""

import fcntl
import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from cityopt.errors import StoreError
from cityopt.search.bulk_reading import BulkStorage
from cityopt.search.file_storage import FileStorage
from cityopt.services import Services, hide_password, parse_services, read_services, remember_services, settle_services
from cityopt.store import open_store, place_store
from cityopt.tracking.mlflow_store import MlflowStore

_CONNECT_TIMEOUT_S = 10
_POSTGRES_OPTIONS: dict[str, Any] = {
    "pool_pre_ping": True,  # a connection that a restart of the server cut is replaced, not used
    "connect_args": {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "keepalives_idle": 30,  # a server that vanished from the network is noticed within a minute
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # also while it owes an answer to what was sent
        "application_name": "cityopt",
    },
}
_FIND_LOCK = sqlalchemy.text("""
    SELECT 1 FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database()
    WHERE locktype = 'advisory' AND mode = 'ExclusiveLock' AND granted
        AND classid = CAST(:high AS bigint) AND objid = CAST(:low AS bigint) AND objsubid = 1""")


def join_services(path: str | Path, storage: str | None, tracking_uri: str | None) -> Path:
    """Let a store point to services from now on, and return its absolute path; without services, nothing else is done.

    Raises ConfigError: an address is none. Raises StoreError: the store belongs to other services, or one of those
    that are new to it does not answer.
    """
    store, given = place_store(path), parse_services(storage, tracking_uri)
    if given == Services():
        return store
    known, services = read_services(store), settle_services(store, given)
    if services.storage and services.storage != known.storage:
        open_database(services.storage).engine.dispose()
    if services.tracking_uri and services.tracking_uri != known.tracking_uri:
        MlflowStore(store, services.tracking_uri).check()
    if services != known:
        remember_services(open_store(store), services)
    return store


def open_storage(store: Path) -> RDBStorage:
    """Open the trials' database of a store. Readers never wait for a writer.

    Raises StoreError: it is broken or cannot be written, or its server cannot be reached.
    """
    url = read_services(store).storage
    return open_database(url) if url else _open_file(store / "optuna.db")


def open_database(url: str) -> RDBStorage:
    """Open studies on a PostgreSQL server. Raises StoreError: it does not answer, or has other tables than Optuna's."""
    with hold_lock(url, "tables"), _translating(url):  # two processes that make the tables at once would fail
        storage = BulkStorage(url, engine_kwargs=_POSTGRES_OPTIONS)
        storage.get_all_studies()
        return storage


@contextmanager
def connect(url: str) -> Iterator[sqlalchemy.Connection]:
    """Connect to a PostgreSQL database for the block; each statement is kept at once.

    Raises StoreError: the server does not answer.
    """
    with _translating(url):
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **_POSTGRES_OPTIONS)
        connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    with connection:
        yield connection


@contextmanager
def hold_lock(url: str, name: str, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Hold the lock of this name in a PostgreSQL database; gives whether it was had, which with `wait` it always is.

    Several may hold it that `shared` it, and none beside one that did not. It ends with the block, or with the
    process. Raises StoreError: the server does not answer.
    """
    verb = f"pg_{'' if wait else 'try_'}advisory_lock{'_shared' if shared else ''}"
    with connect(url) as connection:
        with _translating(url):
            answer = connection.execute(sqlalchemy.text(f"SELECT {verb}(:key)"), {"key": _name_key(name)}).scalar()
        yield wait or bool(answer)


def is_lock_held(connection: sqlalchemy.Connection, name: str) -> bool:
    """Say whether somebody holds a lock of `hold_lock` alone."""
    key = _name_key(name) % 2**64
    numbers = {"high": key >> 32, "low": key % 2**32}
    return connection.execute(_FIND_LOCK, numbers).first() is not None


def _name_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"cityopt:{name}".encode()).digest()[:8], "big", signed=True)


def name_cause(error: BaseException) -> str:
    """Return what the database itself said, in one line, without the statement and the links put around it."""
    while (inner := getattr(error, "orig", None) or error.__cause__) is not None:
        error = inner
    return " ".join(str(error).split())


@contextmanager
def _translating(url: str) -> Iterator[None]:
    shown = hide_password(url)
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:  # psycopg without its library is there, and is none
        raise StoreError(
            f"studies in {shown} need a driver for PostgreSQL. Install it with: pip install 'cityopt[postgres]'"
        ) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        raise StoreError(
            f"the studies' database {shown} must answer, but does not: {name_cause(error)}. Is PostgreSQL up, may this "
            "machine reach it, and are the user, the password and the database's name right?"
        ) from error
    except RuntimeError as error:  # Optuna's, of tables that another version of it made
        raise StoreError(f"the studies' database {shown} does not suit this version of Optuna: {error}") from error


def _open_file(path: Path) -> RDBStorage:
    try:
        with _making_tables(path):
            storage = FileStorage(path)
        sqlalchemy.event.listen(storage.engine, "connect", _set_pragmas)
        storage.engine.dispose()
        storage.get_all_studies()
    except (SQLAlchemyError, sqlite3.Error, StorageInternalError) as error:
        raise StoreError(
            f"{path} must be a database of trials that can be written, but cannot be opened: {name_cause(error)}. "
            "Restore the file, or give another store with --store DIR."
        ) from error
    return storage


@contextmanager
def _making_tables(path: Path) -> Iterator[None]:
    """Let one process at a time make a new database's tables."""
    with path.with_suffix(".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _set_pragmas(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
