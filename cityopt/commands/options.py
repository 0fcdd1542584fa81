"""What the verbs share: their common options, and how they load a study and print."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cityopt.config import StudyConfig

StudyOption = Annotated[str, typer.Option("--study", help="Name of a study in sweeps/, or the path of a YAML.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Dataset root, or `synthetic`; else the study's, else CITYSCAPES_DATASET.")
]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder that holds all state.")]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        envvar="CITYOPT_STORAGE",
        help="PostgreSQL database of the studies, once for a store: postgresql+psycopg://USER@HOST/DATABASE.",
    ),
]
TrackingOption = Annotated[
    str | None, typer.Option("--tracking-uri", help="MLflow server of the runs, once for a store: http://HOST:PORT.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a config key: --set training.epochs=6 (repeatable).")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Run the study under another name.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the study.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Trainings at once, each in a process; they share the CPU's cores.")
]
PerDeviceOption = Annotated[
    int | None, typer.Option("--workers-per-device", help="Workers on each GPU; alone it also says how many in all.")
]
ExecutorOption = Annotated[
    str, typer.Option("--executor", help="Where trials run: local, or ray for the nodes of a Ray cluster.")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="HOST:PORT of the Ray cluster; auto, the default, finds it.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
STORE = Path("mlruns")


def load(
    study: str,
    settings: list[str] | None,
    name: str | None,
    seed: int | None,
    extra: dict[str, Any],
    store: Path | None = None,
) -> "StudyConfig":
    """Return a study from its YAML, else from a store that keeps one of this name, and the command's options.

    Raises ConfigError: there is neither, or an impossible setting.
    """
    from cityopt.study_file import change_study, has_yaml, load_study

    options = {key: value for key, value in {"seed": seed, **extra}.items() if value is not None}
    if store is not None and not has_yaml(study):
        from cityopt.search.study import recall_config

        if stored := recall_config(store, study):
            return change_study(stored, settings=settings or (), name=name, extra=options)
    return load_study(study, settings=settings or (), name=name, extra=options)


def join(store: Path, storage: str | None, tracking_uri: str | None) -> Path:
    """Return a command's store, which points to the services that it gave from now on. Raises CityoptError."""
    if storage is None and tracking_uri is None:
        return store
    from cityopt.services import Services, hide_password, read_services
    from cityopt.store import place_store

    if read_services(place_store(store)) == Services():  # imports, and a server that is away, take their time
        asked = " and ".join(hide_password(address) for address in (storage, tracking_uri) if address)
        print(f"asking {asked}", file=sys.stderr, flush=True)
    from cityopt.search.storage import join_services

    return join_services(store, storage, tracking_uri)


def open_console(*, quiet: bool = False) -> "Console":
    """Return where a verb prints to; without a terminal lines are 160 columns wide."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(quiet=quiet, width=width)


def show(as_json: bool, document: Any, print_table: Callable[[], None]) -> None:
    """Print a document as JSON, or else as people read it."""
    print(json.dumps(document, indent=2, allow_nan=False)) if as_json else print_table()
