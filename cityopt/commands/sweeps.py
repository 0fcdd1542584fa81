"""Verbs that search a study's settings, alone or with others, and that say before what it will cost."""

from typing import TYPE_CHECKING, Annotated

import typer

from cityopt.commands.options import (
    STORE,
    AddressOption,
    DataOption,
    DeviceOption,
    ExecutorOption,
    JsonOption,
    NameOption,
    PerDeviceOption,
    SeedOption,
    SetOption,
    StorageOption,
    StoreOption,
    StudyOption,
    TrackingOption,
    WorkersOption,
    join,
    load,
    open_console,
    show,
)

if TYPE_CHECKING:
    from rich.console import Console

    from cityopt.search.sweep import SweepSummary


def sweep(
    study: StudyOption,
    data: DataOption = None,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials in all, earlier ones counted.")] = None,
    settings: SetOption = None,
    name: NameOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    workers_per_device: PerDeviceOption = None,
    executor: ExecutorOption = "local",
    address: AddressOption = None,
    max_hours: Annotated[
        float | None,
        typer.Option("--max-hours", help="Hours of this call: no trial begins that would not end in time."),
    ] = None,
    max_device_hours: Annotated[
        float | None, typer.Option("--max-device-hours", help="Hours that all trials may train, added up.")
    ] = None,
) -> None:
    """Search a study's settings, or go on where the last sweep stopped.

    Example: cityopt sweep --study demo --trials 8
    """
    from cityopt.report.data_report import build_data_report
    from cityopt.report.terminal import open_observer
    from cityopt.search.sweep import run_sweep

    limits = {"search.trials": trials, "search.max_hours": max_hours, "search.max_device_hours": max_device_hours}
    place = join(store, storage, tracking_uri)
    config = load(study, settings, name, seed, limits, place)
    console = open_console()
    with open_observer(console) as observer:
        summary = run_sweep(
            config,
            store=place,
            data=data,
            device=device,
            observer=observer,
            workers=workers,
            per_device=workers_per_device,
            executor=executor,
            address=address,
            describe=build_data_report,
        )
    _show_study(console, summary, config.name)
    console.print(summary.advice, highlight=False, soft_wrap=True, markup=False)
    raise SystemExit(summary.exit_code)


def worker(
    study: StudyOption,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    data: DataOption = None,
    store: StoreOption = STORE,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials of the study in all.")] = None,
    settings: SetOption = None,
    name: NameOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    max_hours: Annotated[
        float | None,
        typer.Option("--max-hours", help="Hours of this worker: no trial begins that would not end in time."),
    ] = None,
) -> None:
    """Join a study on a server with one worker, and leave when it is done: one line of a Slurm array.

    Example: cityopt worker --study demo --storage postgresql+psycopg://me@db/cityopt --tracking-uri http://mlflow:5000
    """
    from cityopt.report.data_report import build_data_report
    from cityopt.report.terminal import open_observer
    from cityopt.search.sweep import run_worker

    place = join(store, storage, tracking_uri)
    config = load(study, settings, name, seed, {"search.trials": trials, "search.max_hours": max_hours}, place)
    console = open_console()
    with open_observer(console) as observer:
        summary = run_worker(
            config, store=place, data=data, device=device, observer=observer, describe=build_data_report
        )
    if summary.is_over:  # of several workers, the last one shows what all came to
        _show_study(console, summary, config.name)
    console.print(summary.advice, highlight=False, soft_wrap=True, markup=False)
    raise SystemExit(summary.exit_code)


def plan(
    study: StudyOption,
    data: DataOption = None,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials of the sweep.")] = None,
    settings: SetOption = None,
    name: NameOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = None,
    workers_per_device: PerDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what a sweep will cost in time, memory and disk, before it is begun.

    Example: cityopt plan --study maskrcnn --trials 40
    """
    from cityopt.report.tables import print_forecast
    from cityopt.report.terminal import open_observer
    from cityopt.search.measurement import run_plan

    place = join(store, storage, tracking_uri)
    config = load(study, settings, name, seed, {"search.trials": trials}, place)
    console = open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = run_plan(
            config,
            store=place,
            data=data,
            device=device,
            observer=observer,
            workers=workers,
            per_device=workers_per_device,
        )
    show(as_json, found.to_json(), lambda: print_forecast(console, found))


def _show_study(console: "Console", summary: "SweepSummary", study: str) -> None:
    """Print the leaderboard, and put the report where people look for it."""
    from cityopt.report.publish import publish_report
    from cityopt.report.tables import print_leaderboard
    from cityopt.search.status import read_status

    print_leaderboard(console, read_status(summary.store, study))
    console.print(publish_report(summary.store, study), highlight=False, soft_wrap=True, markup=False)
