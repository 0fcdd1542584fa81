"""The `cityopt` command: one verb per function; each parses, calls one function of the library and prints.

Heavy imports (torch, optuna, mlflow) wait inside the verbs, so that `cityopt --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cityopt.errors import CityoptError

if TYPE_CHECKING:
    from rich.console import Console

    from cityopt.config import StudyConfig

app = typer.Typer(
    help="Find good training settings for Cityscapes segmentation on a small subset, then train the winner in full.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at a dataset, or make one.", no_args_is_help=True)
app.add_typer(data_app, name="data")
weights_app = typer.Typer(help="Bring weights from elsewhere.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")

StudyOption = Annotated[str, typer.Option("--study", help="Name of a study in sweeps/, or the path of a YAML.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Dataset root, or `synthetic`; else the study's, else CITYSCAPES_DATASET.")
]
StoreOption = Annotated[Path, typer.Option("--store", help="Folder that holds all state.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a config key: --set training.epochs=6 (repeatable).")
]
NameOption = Annotated[str | None, typer.Option("--name", help="Run the study under another name.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the study.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:1.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
STORE = Path("mlruns")


def main() -> None:
    """Run the command line; an error that is meant for the user ends it with a message and exit code 1."""
    try:
        app()
    except CityoptError as error:
        print(f"Error: {error}" if error.exit_code == 1 else error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


@app.command()
def sweep(
    study: StudyOption,
    data: DataOption = None,
    store: StoreOption = STORE,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Trials in all, earlier ones counted.")] = None,
    settings: SetOption = None,
    name: NameOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Search a study's settings, or go on where the last sweep stopped.

    Example: cityopt sweep --study demo --trials 8
    """
    from cityopt.report.data_report import build_data_report
    from cityopt.report.publish import publish_report
    from cityopt.report.tables import print_leaderboard
    from cityopt.report.terminal import open_observer
    from cityopt.search.status import read_status
    from cityopt.search.sweep import run_sweep

    config = _load(study, settings, name, seed, {"search.trials": trials})
    console = _open_console()
    with open_observer(console) as observer:
        summary = run_sweep(
            config, store=store, data=data, device=device, observer=observer, describe=build_data_report
        )
    print_leaderboard(console, read_status(summary.store, config.name))
    lines = [publish_report(summary.store, config.name), summary.advice]
    console.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
    raise SystemExit(summary.exit_code)


@app.command()
def promote(
    study: StudyOption,
    data: DataOption = None,
    store: StoreOption = STORE,
    settings: SetOption = None,
    name: NameOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train the best trial of a study in full, evaluate it on val and register it.

    Example: cityopt promote --study demo
    """
    from cityopt.report.publish import publish_report
    from cityopt.report.tables import print_promotion
    from cityopt.report.terminal import open_observer
    from cityopt.search.promote import run_promotion
    from cityopt.study_file import name_study, parse_setting

    console = _open_console()
    with open_observer(console) as observer:
        promotion = run_promotion(
            name_study(study, name),
            store=store,
            data=data,
            settings=dict(map(parse_setting, settings or ())),
            device=device,
            observer=observer,
        )
    print_promotion(console, promotion)
    said = publish_report(promotion.store, promotion.study)
    console.print(said, highlight=False, soft_wrap=True, markup=False)


@app.command()
def evaluate(
    model: Annotated[
        str, typer.Option("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a run's id, or a checkpoint file.")
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset root, or `synthetic`; else the model's own, else CITYSCAPES_DATASET."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="cityscapes, coco, semantic, with commas; all by default.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="New folder for the predictions: official trees and COCO JSON.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first N images by name: to try it, not to report it.")
    ] = None,
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Score a model at full resolution by the official protocols, or export its predictions.

    Example: cityopt evaluate --model models:/cityopt-demo@champion --split val --protocol cityscapes,coco --json
    """
    from cityopt.report.evaluation_table import print_evaluation
    from cityopt.report.terminal import open_observer
    from cityopt.store import place_store
    from cityopt.training.evaluation import run_evaluation

    console = _open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = run_evaluation(
            model,
            store=place_store(store),
            data=data,
            split=split,
            protocols=protocol,
            export=export,
            limit=limit,
            device=device,
            on_progress=observer.show_preparation,
        )
    _show(as_json, found.to_json(), lambda: print_evaluation(console, found))


@app.command()
def status(
    study: StudyOption, store: StoreOption = STORE, name: NameOption = None, as_json: JsonOption = False
) -> None:
    """Show a study's trials, the best first.

    Example: cityopt status --study demo --json
    """
    from cityopt.report.tables import print_leaderboard
    from cityopt.search.status import read_status
    from cityopt.study_file import name_study

    found = read_status(store, name_study(study, name))
    _show(as_json, found.to_json(), lambda: print_leaderboard(_open_console(), found))


@app.command()
def report(
    study: StudyOption,
    out: Annotated[Path, typer.Option("--out", help="File to write the page to.")] = Path("report.html"),
    store: StoreOption = STORE,
    name: NameOption = None,
) -> None:
    """Write a study as one HTML page that needs no network, and put it on the study's run in MLflow.

    Example: cityopt report --study demo --out report.html
    """
    from cityopt.report.publish import write_report
    from cityopt.study_file import name_study

    said = write_report(store, name_study(study, name), out)
    _open_console().print(said, highlight=False, soft_wrap=True, markup=False)


@app.command()
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
    from cityopt.search.preparation import prepare_study
    from cityopt.store import open_store

    config = _load(study, settings, None, seed, {})
    console = _open_console(quiet=as_json)
    with open_observer(console) as observer:
        report = prepare_study(config, open_store(store), data=data, observer=observer).anchor_report
    _show(as_json, report, lambda: print_anchors(console, report))


@app.command()
def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, and folders that are searched for them.")],
    model: Annotated[
        str, typer.Option("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a run's id, or a checkpoint file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays/, detections/ and summary.json.")],
    score: Annotated[float, typer.Option("--score", help="Lowest score to show, in 0..1.")] = 0.5,
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Pictures at once; by default about a million pixels.")
    ] = None,
) -> None:
    """Draw what a model finds in pictures, and write it as JSON with COCO's RLE masks.

    Example: cityopt predict photos/ --model models:/cityopt-demo@champion --out found
    """
    from cityopt.report.tables import print_prediction
    from cityopt.report.terminal import open_observer
    from cityopt.store import place_store
    from cityopt.training.prediction import run_prediction

    console = _open_console()
    with open_observer(console) as observer:
        summary = run_prediction(
            model,
            inputs,
            out=out,
            store=place_store(store),
            score=score,
            device=device,
            batch_size=batch_size,
            on_count=lambda done, total: observer.show_preparation("pictures", done, total),
        )
    print_prediction(console, summary, out)


@app.command()
def ui(
    store: StoreOption = STORE,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0 picks a free one.")
    ] = 5000,
) -> None:
    """Serve the MLflow UI of a store on loopback until Ctrl-C; prints the address when it answers.

    Example: cityopt ui --port 5001
    """
    from cityopt.report.terminal import wait_for_ui
    from cityopt.store import find_store
    from cityopt.tracking.mlflow_ui import serve_ui

    with wait_for_ui(_open_console()) as show:
        serve_ui(find_store(store), port=port, on_ready=show)


@data_app.command("check")
def data_check(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Say what a Cityscapes tree holds, what is missing and what is broken.

    Example: cityopt data check --data /data/cityscapes
    """
    from cityopt.data.check import check_dataset
    from cityopt.data.roots import choose_root
    from cityopt.report.tables import print_check

    found = check_dataset(Path(choose_root(data, None)))
    _show(as_json, found, lambda: print_check(_open_console(), found))


@data_app.command("stats")
def data_stats(
    out: Annotated[Path, typer.Option("--out", help="Folder for tables and pictures: new, or of an earlier call.")],
    data: DataOption = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Study whose data and anchors are meant; without: torchvision's.")
    ] = None,
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Measure and draw what the labels of a dataset show: classes, sizes, shapes, what is cut off or hidden.

    Example: cityopt data stats --data /data/cityscapes --out stats --study maskrcnn
    """
    from cityopt.report.data_report import report_dataset
    from cityopt.report.tables import print_statistics
    from cityopt.report.terminal import open_observer

    config = None if study is None else _load(study, None, None, None, {})
    console = _open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = report_dataset(out, data=data, config=config, store=store, observer=observer)
    _show(as_json, found, lambda: print_statistics(console, found))
    console.print(f"Tables and pictures: {out / 'README.md'}", highlight=False, soft_wrap=True)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Argument(help="Folder to write the tree into.")],
    num_images: Annotated[int, typer.Option("--num-images", help="Images in all splits together.")] = 300,
    size: Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH in pixels.")] = "256x512",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same bytes.")] = 0,
    with_coarse: Annotated[bool, typer.Option("--with-coarse", help="Also train_extra with coarse labels.")] = False,
) -> None:
    """Write procedural street scenes in Cityscapes' layout.

    Example: cityopt data synth scenes --num-images 100 --size 256x512
    """
    from cityopt.data.synthetic import parse_size, write_synthetic
    from cityopt.report.terminal import open_observer

    console = _open_console()
    with open_observer(console) as observer:
        write_synthetic(
            out,
            num_images=num_images,
            size=parse_size(size),
            seed=seed,
            with_coarse=with_coarse,
            progress=lambda done, total: observer.show_preparation("scenes", done, total),
        )
    text = f"{num_images} scenes in {out}. Look at them, or: cityopt data check --data {out}"
    console.print(text, soft_wrap=True, markup=False)


@weights_app.command("convert")
def weights_convert(
    file: Annotated[
        Path, typer.Argument(help="File of detectron2's model zoo (.pkl), or of a training with it (.pth).")
    ],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint to write.")],
    as_json: JsonOption = False,
) -> None:
    """Turn a detectron2 file into a checkpoint of cityopt and say what it holds; nothing in the file is run.

    Example: cityopt weights convert model_final.pkl --out maskrcnn_coco.pt
    """
    from cityopt.report.tables import print_conversion
    from cityopt.training.conversion import convert_weights

    found = convert_weights(file, out)
    _show(as_json, found.to_json(), lambda: print_conversion(_open_console(), found.to_json()))


def _load(
    study: str, settings: list[str] | None, name: str | None, seed: int | None, extra: dict[str, Any]
) -> "StudyConfig":
    from cityopt.study_file import load_study

    options = {key: value for key, value in {"seed": seed, **extra}.items() if value is not None}
    return load_study(study, settings=settings or (), name=name, extra=options)


def _open_console(*, quiet: bool = False) -> "Console":
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160
    return Console(quiet=quiet, width=width)


def _show(as_json: bool, document: Any, show: Callable[[], None]) -> None:
    """Print a document as JSON, or else as people read it."""
    print(json.dumps(document, indent=2, allow_nan=False)) if as_json else show()


if __name__ == "__main__":
    main()
