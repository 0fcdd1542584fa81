"""Verbs about a trained model: score it, look at what it finds, bring one from elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from cityopt.commands.options import (
    STORE,
    DeviceOption,
    JsonOption,
    StoreOption,
    TrackingOption,
    join,
    open_console,
    show,
)


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
        str | None,
        typer.Option("--protocol", help="cityscapes, coco, semantic (the usual ones), boundary; with commas."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="New folder for the predictions: official trees and COCO JSON.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first N images by name: to try it, not to report it.")
    ] = None,
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a model at full resolution by the official protocols, or export its predictions.

    Example: cityopt evaluate --model models:/cityopt-demo@champion --split val --protocol cityscapes,coco --json
    """
    from cityopt.report.evaluation_table import print_evaluation
    from cityopt.report.terminal import open_observer
    from cityopt.store import place_store
    from cityopt.training.evaluation import run_evaluation

    place = place_store(join(store, None, tracking_uri))
    console = open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = run_evaluation(
            model,
            store=place,
            data=data,
            split=split,
            protocols=protocol,
            export=export,
            limit=limit,
            device=device,
            on_progress=observer.show_preparation,
        )
    show(as_json, found.to_json(), lambda: print_evaluation(console, found))
    if found.problem is not None:
        raise found.problem


def compare(
    model_a: Annotated[str, typer.Argument(help="A model, as `cityopt evaluate --model` takes it.")],
    model_b: Annotated[str, typer.Argument(help="The model to compare it with.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="Dataset root, or `synthetic`; else that of the first model."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or val.")] = "val",
    out: Annotated[Path | None, typer.Option("--out", help="File to write a page with pictures to.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first N images by name: to try it, not to report it.")
    ] = None,
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    tracking_uri: TrackingOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two models on the same images: differences with intervals, and the images on which each wins.

    Example: cityopt compare models:/cityopt-demo@champion models:/cityopt-demo@challenger --out compare.html
    """
    from cityopt.report.comparison_page import print_comparison, write_comparison
    from cityopt.report.terminal import open_observer
    from cityopt.store import place_store
    from cityopt.training.model_comparison import run_comparison

    place = place_store(join(store, None, tracking_uri))
    console = open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = run_comparison(
            (model_a, model_b),
            store=place,
            data=data,
            split=split,
            limit=limit,
            device=device,
            on_progress=observer.show_preparation,
        )
    show(as_json, found.to_json(), lambda: print_comparison(console, found))
    if out is not None:
        console.print(write_comparison(found, out), highlight=False, soft_wrap=True, markup=False)


def predict(
    inputs: Annotated[list[Path], typer.Argument(help="Pictures, and folders that are searched for them.")],
    model: Annotated[
        str, typer.Option("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, a run's id, or a checkpoint file.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for overlays/, detections/ and summary.json.")],
    score: Annotated[float, typer.Option("--score", help="Lowest score to show, in 0..1.")] = 0.5,
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    tracking_uri: TrackingOption = None,
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

    place = place_store(join(store, None, tracking_uri))
    console = open_console()
    with open_observer(console) as observer:
        summary = run_prediction(
            model,
            inputs,
            out=out,
            store=place,
            score=score,
            device=device,
            batch_size=batch_size,
            on_count=observer.reporter("pictures"),
        )
    print_prediction(console, summary, out)


def weights_convert(
    file: Annotated[
        Path, typer.Argument(help="File of detectron2 (.pkl of its zoo, or .pth), or torchvision's for COCO.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint to write.")],
    as_json: JsonOption = False,
) -> None:
    """Turn a file of detectron2's or torchvision's into a checkpoint and say what it holds; nothing in it is run.

    Example: cityopt weights convert model_final.pkl --out maskrcnn_coco.pt
    """
    from cityopt.report.tables import print_conversion
    from cityopt.training.conversion import convert_weights

    found = convert_weights(file, out)
    show(as_json, found.to_json(), lambda: print_conversion(open_console(), found.to_json()))


def transfer(
    weights: Annotated[
        list[str],
        typer.Option("--weights", help="Checkpoint file or reference, repeatable; others are compared with the first."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html, transfer.json and pictures.")],
    coco: Annotated[
        Path | None, typer.Option("--coco", help="COCO root: annotations/instances_val2017.json and val2017/.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Cityscapes root, or `synthetic`; else CITYSCAPES_DATASET.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="Only the first N images of each dataset: to try it.")
    ] = None,
    size: Annotated[str, typer.Option("--size", help="HEIGHTxWIDTH at which models see Cityscapes.")] = "1024x2048",
    device: DeviceOption = "auto",
    store: StoreOption = STORE,
    as_json: JsonOption = False,
) -> None:
    """Judge models of COCO as they are on Cityscapes, and on COCO, and compare them: numbers, pictures, one page.

    Example: cityopt transfer --weights maskrcnn_coco.pt --weights pointrend_coco.pt --coco COCO --data ROOT --out DIR
    """
    from cityopt.data.synthetic import parse_size
    from cityopt.report.terminal import open_observer
    from cityopt.report.transfer_table import print_transfer
    from cityopt.report.transfer_write import check_out, write_transfer
    from cityopt.store import open_store
    from cityopt.training.transfer import run_transfer

    console = open_console(quiet=as_json)
    check_out(out)
    place = open_store(store)
    with open_observer(console) as observer:
        study = run_transfer(
            weights,
            store=place,
            coco=coco,
            data=data,
            limit=limit,
            size=parse_size(size),
            device=device,
            on_progress=observer.show_preparation,
        )
    lines = write_transfer(study, out, place)
    show(as_json, study.to_json(), lambda: print_transfer(console, study, lines))
