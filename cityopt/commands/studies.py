"""Verbs about a study that was searched: promote, cross-validate, look, stop, try again."""

from pathlib import Path
from typing import Annotated

import typer

from cityopt.commands.options import (
    STORE,
    DataOption,
    DeviceOption,
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


def promote(
    study: StudyOption,
    finalists: Annotated[
        int | None, typer.Option("--finalists", min=1, help="Best trials that compete with trial 0; else the study's.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Trainings of each finalist; else the study's.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Finalists' trainings at once.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Make it the champion whatever the paired test says.")] = False,
    data: DataOption = None,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    settings: SetOption = None,
    name: NameOption = None,
    device: DeviceOption = "auto",
    devices: Annotated[
        str, typer.Option("--devices", help="Train on N devices at once, or on all GPUs: auto. They share each batch.")
    ] = "1",
) -> None:
    """Let the best trials compete, train the winner in full, evaluate it on val and register it.

    Example: cityopt promote --study demo --finalists 2 --seeds 2
    """
    from cityopt.report.finalist_table import print_trust
    from cityopt.report.publish import publish_report
    from cityopt.report.tables import print_promotion
    from cityopt.report.terminal import open_observer
    from cityopt.search.promote import run_promotion
    from cityopt.study_file import name_study, parse_setting

    place = join(store, storage, tracking_uri)
    options = {"promotion.finalists": finalists, "promotion.seeds": seeds}
    given = {key: value for key, value in options.items() if value is not None}
    console = open_console()
    with open_observer(console) as observer:
        promotion = run_promotion(
            name_study(study, name),
            store=place,
            data=data,
            settings={**dict(map(parse_setting, settings or ())), **given},
            device=device,
            devices=devices,
            observer=observer,
            workers=workers,
            force=force,
        )
    if promotion.finalists is not None:
        print_trust(console, promotion.finalists)
    print_promotion(console, promotion)
    said = publish_report(promotion.store, promotion.study)
    console.print(said, highlight=False, soft_wrap=True, markup=False)


def trust(
    study: StudyOption,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    name: NameOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a study's subset ranks settings as more data does, from the finalists of its promotion.

    Example: cityopt trust --study demo --json
    """
    from cityopt.report.finalist_table import print_trust
    from cityopt.search.finalist_result import read_last_finalists
    from cityopt.study_file import name_study

    place = join(store, storage, tracking_uri)
    found = read_last_finalists(place, name_study(study, name))
    show(as_json, found.to_json(), lambda: print_trust(open_console(), found))


def crossval(
    study: StudyOption,
    folds: Annotated[int, typer.Option("--folds", help="Number of folds, 2 or more.")] = 5,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="Fold contiguous blocks of each city's frames, not whole cities.")
    ] = False,
    workers: WorkersOption = None,
    workers_per_device: PerDeviceOption = None,
    no_final: Annotated[bool, typer.Option("--no-final", help="Train no model on all images afterwards.")] = False,
    data: DataOption = None,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    settings: SetOption = None,
    name: NameOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Cross-validate a study's best settings: mean ± std over folds, then a model on all training images.

    Example: cityopt crossval --study unet_resnet34 --folds 5
    """
    from cityopt.report.crossval_table import print_crossval
    from cityopt.report.terminal import open_observer
    from cityopt.search.crossvalidation import run_crossval
    from cityopt.study_file import load_study, name_study, parse_setting

    place = join(store, storage, tracking_uri)
    study_name = name_study(study, name)
    console = open_console()
    with open_observer(console) as observer:
        found = run_crossval(
            study_name,
            begin=lambda own: load_study(study, name=study_name, extra=own),
            store=place,
            data=data,
            settings=dict(map(parse_setting, settings or ())),
            folds=folds,
            blocks=blocks,
            workers=workers,
            per_device=workers_per_device,
            final=not no_final,
            device=device,
            observer=observer,
        )
    print_crossval(console, found)


def status(
    study: StudyOption,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    name: NameOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a study's trials, the best first, and what it has spent.

    Example: cityopt status --study demo --json
    """
    from cityopt.runtime import pausing_collector

    with pausing_collector():  # for the imports too
        from cityopt.report.tables import print_leaderboard
        from cityopt.report.terminal import watch_leaderboard
        from cityopt.search.status import read_status
        from cityopt.study_file import name_study

        place = join(store, storage, tracking_uri)
        study_name = name_study(study, name)
        if not watch or as_json:
            found = read_status(place, study_name)
            show(as_json, found.to_json(), lambda: print_leaderboard(open_console(), found))
            return
    watch_leaderboard(open_console(), lambda: read_status(place, study_name))


def stop(
    study: StudyOption,
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    name: NameOption = None,
) -> None:
    """Let the sweep, promotion or cross-validation of a study end in good order, from wherever you are.

    Example: cityopt stop --study demo
    """
    from cityopt.search.requests import stop_study
    from cityopt.study_file import name_study

    place = join(store, storage, tracking_uri)
    print(stop_study(name_study(study, name), store=place))


def retry(
    study: StudyOption,
    failed: Annotated[str, typer.Option("--failed", help="nan, oom, crash, hung, config, data, or any.")],
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    name: NameOption = None,
) -> None:
    """Enqueue the settings of failed trials again, as new trials that take their places.

    Example: cityopt retry --study demo --failed oom
    """
    from cityopt.search.requests import retry_failed
    from cityopt.study_file import name_study

    place = join(store, storage, tracking_uri)
    print(retry_failed(name_study(study, name), failed, store=place))


def report(
    study: StudyOption,
    out: Annotated[Path, typer.Option("--out", help="File to write the page to.")] = Path("report.html"),
    store: StoreOption = STORE,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    name: NameOption = None,
) -> None:
    """Write a study as one HTML page that needs no network, and put it on the study's run in MLflow.

    Example: cityopt report --study demo --out report.html
    """
    from cityopt.report.publish import write_report
    from cityopt.study_file import name_study

    place = join(store, storage, tracking_uri)
    said = write_report(place, name_study(study, name), out)
    open_console().print(said, highlight=False, soft_wrap=True, markup=False)


def anchors(
    study: StudyOption,
    data: DataOption = None,
    store: StoreOption = STORE,
    settings: SetOption = None,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fit a study's anchors by k-means and show their recall beside torchvision's defaults.

    Example: cityopt anchors --study demo --json
    """
    from cityopt.report.tables import print_anchors
    from cityopt.report.terminal import open_observer
    from cityopt.search.preparation import fit_anchors

    config = load(study, settings, None, seed, {})
    console = open_console(quiet=as_json)
    with open_observer(console) as observer:
        report = fit_anchors(config, store=store, data=data, observer=observer)
    show(as_json, report, lambda: print_anchors(console, report))


def ui(
    store: StoreOption = STORE,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 5000,
) -> None:
    """Serve the MLflow UI of a store on loopback until Ctrl-C; prints the address when it answers.

    Where the store's runs are on an MLflow server, that server's address is all that is printed.

    Example: cityopt ui --port 5001
    """
    from cityopt.report.terminal import wait_for_ui
    from cityopt.services import hide_password, read_services
    from cityopt.store import find_store
    from cityopt.tracking.mlflow_ui import serve_ui

    place = find_store(store)
    server = read_services(place).tracking_uri
    if server is not None:
        print(f"The runs of {place} are on an MLflow server: {hide_password(server)}")
        return
    with wait_for_ui(open_console()) as announce:
        serve_ui(place, port=port, on_ready=announce)
