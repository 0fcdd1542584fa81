"""The command line of `scripts/bench`: run benchmarks by name, show a table or print JSON.

Nothing but the JSON goes to stdout with `--json`; progress goes to stderr.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Row

BENCHES = {
    "help": ("help_time", "bench_help"),
    "cached-input": ("cached_input", "bench_cached_input"),
    "training-step": ("training_step", "bench_training_step"),
    "unet": ("unet", "bench_unet"),
    "precision": ("precision", "bench_precision"),
    "coordinator": ("coordinator", "bench_coordinator"),
    "trials": ("null_trials", "bench_trials"),
    "between-trials": ("between_trials", "bench_between_trials"),
    "stored-trials": ("stored_trials", "bench_stored_trials"),
    "validation-memory": ("validation_memory", "bench_validation_memory"),
    "evaluate-memory": ("evaluate_memory", "bench_evaluate_memory"),
    "semantic-confusion": ("semantic_confusion", "bench_semantic_confusion"),
    "coco-segm": ("coco_segm", "bench_coco_segm"),
    "cityscapes-ap": ("cityscapes_ap", "bench_cityscapes_ap"),
    "point-rend": ("point_rend", "bench_point_rend"),
    "paste": ("paste", "bench_paste"),
}
"""Names, and the module and function of each; a module is imported when its turn comes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks that are asked for, all of them by default."""
    options = parse_arguments(arguments)
    set_threads(options.threads)
    rows = run_benches(options.names or list(BENCHES), quick=options.quick)
    if options.json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(build_table(rows))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a name that is no benchmark ends it with the names that are."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure cityopt beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"benchmarks to run: {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes: to try it, not to report it")
    parser.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch and BLAS (default: 1)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}. Benchmarks: {', '.join(BENCHES)}")
    if options.threads < 1:
        parser.error(f"`--threads` must be at least 1, but got {options.threads}")
    return options


def set_threads(count: int) -> None:
    """Bound the thread pools of this process and its children, before any of them is made."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


def run_benches(names: Sequence[str], *, quick: bool) -> list[Row]:
    """Run benchmarks one after the other; what they print goes to stderr."""
    rows: list[Row] = []
    console = Console(stderr=True)
    with contextlib.redirect_stdout(sys.stderr):
        for name in names:
            console.print(f"{name} …", highlight=False)
            module, function = BENCHES[name]
            bench: Callable[..., list[Row]] = getattr(import_module(f"benchmarks.{module}"), function)
            rows += bench(quick=quick)
    return rows


def build_table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for people."""
    table = Table("benchmark", "ours", "peer", "ratio", "target", "met", "unit and protocol")
    for column in table.columns[1:4]:
        column.justify = "right"
    for row in rows:
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met]
        numbers = (f"{value:.4g}" for value in (row.ours, row.peer, row.ratio))
        table.add_row(row.name, *numbers, str(row.bound or ""), met, row.unit)
    return table
