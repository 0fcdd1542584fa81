"""Verbs about a dataset: check it, measure it, make one."""

from pathlib import Path
from typing import Annotated

import typer

from cityopt.commands.options import (
    STORE,
    DataOption,
    JsonOption,
    StoreOption,
    load,
    open_console,
    show,
)


def data_check(data: DataOption = None, as_json: JsonOption = False) -> None:
    """Say what a Cityscapes tree holds, what is missing and what is broken; exit code 1 if anything is.

    Example: cityopt data check --data /data/cityscapes
    """
    from cityopt.data.check import check_dataset
    from cityopt.data.roots import choose_folder
    from cityopt.report.tables import print_check
    from cityopt.report.terminal import open_observer

    console = open_console(quiet=as_json)
    root = choose_folder(data)
    with open_observer(console) as observer:
        found = check_dataset(root, observer.reporter("reading every file"))
    show(as_json, found, lambda: print_check(console, found))
    raise SystemExit(int(any(split["problems"] for split in found["splits"].values())))


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

    config = None if study is None else load(study, None, None, None, {})
    console = open_console(quiet=as_json)
    with open_observer(console) as observer:
        found = report_dataset(out, data=data, config=config, store=store, observer=observer)
    show(as_json, found, lambda: print_statistics(console, found))
    console.print(f"Tables and pictures: {out / 'README.md'}", highlight=False, soft_wrap=True, markup=False)


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

    console = open_console()
    with open_observer(console) as observer:
        write_synthetic(
            out,
            num_images=num_images,
            size=parse_size(size),
            seed=seed,
            with_coarse=with_coarse,
            progress=observer.reporter("scenes"),
        )
    text = f"{num_images} scenes in {out}. Look at them, or: cityopt data check --data {out}"
    console.print(text, soft_wrap=True, markup=False)
