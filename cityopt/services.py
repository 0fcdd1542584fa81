"""The services that a store may point to: PostgreSQL for its studies, an MLflow server for their runs.

    STORE/services.json     {"storage": "postgresql+psycopg://…", "tracking_uri": "http://…"}, either of them null

Without that file, studies and runs are in databases of the store's own. The file may hold a password: it is the
owner's alone to read, and no message shows more of an address than `hide_password` leaves.
"""

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cityopt.errors import ConfigError, StoreError

SERVICES = "services.json"
_POSTGRES = r"(postgres|postgresql)(\+psycopg)?://"


@dataclass(frozen=True, slots=True)
class Services:
    """Addresses of the databases of a store; None is a file in the store."""

    storage: str | None = None
    tracking_uri: str | None = None


def parse_services(storage: str | None, tracking_uri: str | None) -> Services:
    """Return services as the two options name them. Raises ConfigError: an address of something else."""
    return Services(
        None if storage is None else _parse_storage(storage),
        None if tracking_uri is None else _parse_tracking(tracking_uri),
    )


def read_services(store: Path) -> Services:
    """Return the services of a store; neither where it has databases of its own. Raises StoreError: a broken file."""
    path = store / SERVICES
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return parse_services(found["storage"], found["tracking_uri"])
    except FileNotFoundError:
        return Services()
    except (ValueError, KeyError, TypeError, OSError, ConfigError) as error:
        raise StoreError(
            f"{path} must name the services of the store, but cannot be read ({type(error).__name__}). "
            "Remove it, and name them again with --storage and --tracking-uri."
        ) from error


def remember_services(store: Path, services: Services) -> None:
    """Write down the services of a store, whole or not at all, for its owner alone; a power cut does not undo it."""
    with tempfile.NamedTemporaryFile("w", dir=store, prefix=f".{SERVICES}-", delete=False, encoding="utf-8") as file:
        json.dump(asdict(services), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(store / SERVICES)  # a temporary file has mode 0600 from its first byte on
    folder = os.open(store, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def settle_services(store: Path, given: Services) -> Services:
    """Return the services of a store for a command that gave some of them, or none.

    Raises StoreError: the store belongs to others, or has studies or runs of its own.
    """
    known = read_services(store)
    if known == Services():
        _refuse_own_databases(store, given)
        return given
    for option, old, new in (
        ("--storage", known.storage, given.storage),
        ("--tracking-uri", known.tracking_uri, given.tracking_uri),
    ):
        if new is not None and hide_password(new) != hide_password(old or ""):
            raise StoreError(
                f"a store belongs to the services that it began with, and {store} has "
                f"{f'`{option} {hide_password(old)}`' if old else f'no `{option}`'}, but got {hide_password(new)}. "
                f"Leave {option} out, or give another store with --store DIR."
            )
    return Services(given.storage or known.storage, given.tracking_uri or known.tracking_uri)


def hide_password(text: str) -> str:
    """Return an address, or a text with some, with three stars in place of every password."""
    shown = re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)
    return re.sub(r"([?&](?:ssl)?password=)[^&\s]*", r"\1***", shown)


def name_storage(store: Path) -> str:
    """Return where the studies of a store are, for a message."""
    storage = read_services(store).storage
    return hide_password(storage) if storage else str(store / "optuna.db")


def has_runs(store: Path) -> bool:
    """Say whether a store has a place for runs: a database of its own, or a server."""
    return (store / "mlflow.db").is_file() or read_services(store).tracking_uri is not None


def _parse_storage(url: str) -> str:
    if (found := re.match(_POSTGRES, url)) and _has_sane_port(url) and urlsplit(url).netloc.count("@") <= 1:
        return f"postgresql+psycopg://{url[found.end() :]}"
    why = "The database in a file is what a store has without --storage. " if url.startswith("sqlite") else ""
    raise ConfigError(
        f"`--storage` must be the address of a PostgreSQL database, but got {hide_password(url)!r}. {why}"
        "Write it as postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE, special characters as %2F and the like."
    )


def _has_sane_port(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False


def _parse_tracking(url: str) -> str:
    if re.match(r"https?://[^/]", url) and _has_sane_port(url):
        return url.rstrip("/")
    raise ConfigError(
        f"`--tracking-uri` must be the address of an MLflow server, but got {hide_password(url)!r}. "
        "Write it as http://HOST:PORT; without it a store has runs in a database of its own."
    )


def _refuse_own_databases(store: Path, given: Services) -> None:
    for option, file, new in (
        ("--storage", "optuna.db", given.storage),
        ("--tracking-uri", "mlflow.db", given.tracking_uri),
    ):
        if new is not None and (store / file).is_file():
            raise StoreError(
                f"a store keeps its studies in one place, and {store} has {file}, but got "
                f"`{option} {hide_password(new)}`. Give another store with --store DIR, or leave {option} out."
            )
