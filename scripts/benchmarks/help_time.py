"""Benchmark: how long `cityopt --help` takes, beside an interpreter that does nothing."""

import subprocess
import sys

from benchmarks.measuring import Bound, Row, alternate


def bench_help(*, quick: bool) -> list[Row]:
    """Start both by turns, each in a fresh process."""
    seconds = alternate(
        {
            "ours": lambda: start("from cityopt.cli import main; main()", "--help"),
            "peer": lambda: start("pass"),
        },
        rounds=3 if quick else 15,
    )
    unit = "s per call of `cityopt --help`, a fresh process each; peer: python that does nothing"
    return [Row("help", seconds["ours"], seconds["peer"], unit, Bound("ours", "<", 0.5))]


def start(code: str, *arguments: str) -> None:
    """Run code in a fresh interpreter and wait for its end."""
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
