"""Put the look at a study's data on its parent run, once, while the first trials train.

On the whole of Cityscapes it takes a minute or two of one core, and no trial needs it: a thread of the coordinator
does it beside the training. What draws stands a floor above and is handed in.
"""

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cityopt.data.anchors import NamedAnchors
from cityopt.data.statistics import DataStatistics, measure_dataset
from cityopt.data.subset_quality import tabulate_subset
from cityopt.errors import CityoptError
from cityopt.search.observer import Observer
from cityopt.tracking.run_folder import ARTIFACTS, Tracker

Describe = Callable[[DataStatistics, NamedAnchors], Mapping[str, bytes]]
"""Turns statistics into files by name; the last one says that all are there."""
FOLDER = "data"
LAST_FILE, SUBSET_FILE = "stats.json", "subset.csv"

_NICENESS = 10
"""The training has the cores first."""
_PATIENCE_S = 2.0
"""Seconds of waiting without a word."""


class _StoppedError(Exception):
    """The sweep ends early; the next start measures the data again."""


@contextmanager
def drawing_data(
    parent: Tracker,
    root: Path,
    anchors: NamedAnchors,
    describe: Describe | None,
    observer: Observer,
    *,
    subset: Collection[str] = (),
) -> Iterator[Callable[[], None]]:
    """Measure and draw a dataset beside the block, as artifacts `data/…` of the parent run; yield what stops it.

    With the names of a `subset`, `data/subset.csv` has its objects by class and size beside those of all of train.
    Does nothing if an earlier start did it, or another coordinator writes to the parent run. The end of the block waits
    for it; an exception, or a call of what is yielded, stops it, and then the next start begins anew. What it cannot
    read or write is said, and harms nothing.
    """
    if describe is None or parent.folder is None or (parent.folder / ARTIFACTS / FOLDER / LAST_FILE).is_file():
        yield lambda: None
        return
    stopped = threading.Event()
    work = (parent, root, anchors, describe, observer, stopped, subset)
    thread = threading.Thread(target=_draw_data, args=work, name="data-portrait", daemon=True)
    thread.start()
    try:
        yield stopped.set
        thread.join(_PATIENCE_S)
        if thread.is_alive() and not stopped.is_set():
            observer.say("The look at the data is not finished yet. Ctrl-C leaves it to the next start.")
        thread.join()
    except BaseException:
        stopped.set()
        thread.join()
        raise


def _draw_data(
    parent: Tracker,
    root: Path,
    anchors: NamedAnchors,
    describe: Describe,
    observer: Observer,
    stopped: threading.Event,
    subset: Collection[str],
) -> None:
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

    def look_for_stop(*_: int) -> None:
        if stopped.is_set():
            raise _StoppedError

    try:
        statistics = measure_dataset(root, look_for_stop, workers=1)
        if subset:
            parent.write_artifact(f"{FOLDER}/{SUBSET_FILE}", _write_subset(statistics, subset))
        for name, content in describe(statistics, anchors).items():
            look_for_stop()
            parent.write_artifact(f"{FOLDER}/{name}", content)
    except _StoppedError:
        return
    except (CityoptError, OSError) as error:
        observer.say(f"Warning: the look at the data is missing from the parent run: {error}")


def _write_subset(statistics: DataStatistics, subset: Collection[str]) -> str:
    rows = tabulate_subset(statistics, frozenset(subset))
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    return "".join(f"{line}\n" for line in lines)
