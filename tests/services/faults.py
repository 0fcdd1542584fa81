"""Makes trainings fail as they do in earnest: copied as `sitecustomize.py` into a folder on a command's PYTHONPATH.

Python imports it first in every process of the command; it changes workers alone. FAULTS says which trial meets what,
such as `1=oom 2=nan`: an image that went bad before its data is opened, everything else in its second epoch.
"""

import ctypes
import os
import shutil
import sys
import time
from pathlib import Path

from cityopt.config import RunConfig


def ruin_images(config: RunConfig) -> None:
    """Let the images be broken on disk, and those be gone that were decoded while they were whole."""
    for image in Path(config.data.root).glob("leftImg8bit/**/*.png"):
        image.write_bytes(image.read_bytes()[:100])
    for meta in Path(config.cache).glob("*/meta.json"):
        shutil.rmtree(meta.parent)


def change_trainings(faults: dict[str, str]) -> None:
    """Replace what a worker trains with by what fails."""
    import torch

    from cityopt.training import run

    prepare_data, run_epoch = run.prepare_data, run.Trainer.run_epoch

    def prepare_or_fail(config, *arguments):
        if faults.get(config.name) == "data":
            ruin_images(config)
        return prepare_data(config, *arguments)

    def run_or_fail(trainer):
        fault = faults.get(trainer.config.name) if trainer.state.epoch else None
        if fault == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 MiB.")
        if fault == "nan":  # the training's own loop finds it
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(float("nan"))
        if fault == "crash":
            ctypes.string_at(0)  # a segmentation fault
        if fault == "hung":
            time.sleep(3600)
        return run_epoch(trainer)

    run.prepare_data, run.Trainer.run_epoch = prepare_or_fail, run_or_fail


if "cityopt.search.executors.worker" in sys.orig_argv:
    pairs = (pair.split("=") for pair in os.environ["FAULTS"].split())
    change_trainings({f"trial-{int(number):04d}": fault for number, fault in pairs})
