"""Benchmark: training a U-Net, its step, the wait for its input, and its labels.

`unet-step`: an optimiser step of our loop beside a bare loop of the same model, weights and tensors. `unet-input`: the
share of an epoch that training waits for images and label maps from the cache, loaded in the training process.
`unet-labels`: label maps of training ids for 2048 x 1024 images, read from the cache as a training does, beside what
cityscapesScripts' createTrainIdLabelImgs does for each image before any training: draw the polygons, write a PNG. The
maps must be equal.
"""

import copy
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from benchmarks.measuring import Bound, Row, alternate
from benchmarks.training_step import (
    BOUND,
    SWEEPS,
    Setup,
    choose_device,
    name_device,
    prepare_setup,
    train_bare,
    train_ours,
)
from cityopt.data.cache import ImageCache, open_cache
from cityopt.data.cityscapes import index_split
from cityopt.data.loaders import Batch, build_loader
from cityopt.data.synthetic import write_synthetic
from cityopt.data.targets import find_train_ids
from cityopt.models.build import build_model
from cityopt.study_file import load_study
from cityopt.training.loop import train_epoch
from cityopt.training.optim import build_optimizer

SMALL = {"data.size": [64, 128], "model.start_channels": 8, "training.batch_size": 4}


def bench_unet(*, quick: bool) -> list[Row]:
    """Measure step, input and labels; quick: a small network and small images."""
    device = choose_device()
    setup = prepare_setup("unet", device, 1, SMALL) if quick else prepare_setup("unet", device, 2)
    where = f"{setup.training.batch_size} x {setup.size[1]} x {setup.size[0]}, {name_device(device)}"
    return [
        _bench_step(setup, where, rounds=1 if quick else 7),
        _bench_input(setup, where, num_images=8 if quick else 32),
        _bench_labels(4, (256, 512), rounds=1) if quick else _bench_labels(12, (1024, 2048), rounds=5),
    ]


def _bench_step(setup: Setup, where: str, *, rounds: int) -> Row:
    model = build_model(setup.model).to(setup.device)
    sides = {"ours": train_ours(setup, copy.deepcopy(model)), "bare": train_bare(setup, copy.deepcopy(model))}
    seconds = alternate(sides, rounds=rounds)
    ms = {name: 1000 * value / len(setup.batches) for name, value in seconds.items()}
    return Row("unet-step", ms["ours"], ms["bare"], f"ms per step, {where}; peer: the same model in a bare loop", BOUND)


def _bench_input(setup: Setup, where: str, *, num_images: int) -> Row:
    model = build_model(setup.model).to(setup.device)
    optimizer = build_optimizer(model, setup.training)
    data = load_study(str(SWEEPS / "unet.yaml")).data.model_copy(update={"num_workers": 0})
    with tempfile.TemporaryDirectory() as folder:
        cache = _open_scenes(Path(folder), num_images, setup.size)
        loader = build_loader(
            cache,
            range(len(cache)),
            data=data,
            batch_size=setup.training.batch_size,
            seed=0,
            epoch=1,
            train=True,
            device=setup.device,
            task="semantic",
        )
        waited = Stopwatch(loader)
        begin = time.perf_counter()
        train_epoch(
            model,
            waited,
            optimizer,
            setup.training,
            device=setup.device,
            first_step=0,
            num_steps=len(cache),
            on_step=lambda report: None,
        )
        total = time.perf_counter() - begin
    text = f"percent of an epoch spent waiting for input, {where}; peer: the whole epoch"
    bound = Bound("ours", "<=", 2) if setup.device.type == "cpu" else None  # a GPU wants loaders beside the training
    return Row("unet-input", 100 * waited.seconds / total, 100.0, text, bound)


def _bench_labels(num_images: int, size: tuple[int, int], *, rounds: int) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        cache = _open_scenes(Path(folder), num_images, size)
        frames = index_split(Path(folder) / "scenes", "train")
        pngs = [Path(folder) / f"{frame.name}_labelTrainIds.png" for frame in frames]

        def draw() -> None:
            for frame, png in zip(frames, pngs, strict=True):
                json2labelImg(str(frame.polygons), str(png), "trainIds")

        def read() -> list[np.ndarray]:
            return [find_train_ids(raster) for raster in cache.instances]

        seconds = alternate({"ours": read, "official": draw}, rounds=rounds)
        for label_map, png in zip(read(), pngs, strict=True):
            np.testing.assert_array_equal(label_map, np.asarray(Image.open(png)))
    text = (
        f"label maps/s at {size[1]} x {size[0]}; peer: createTrainIdLabelImgs' json2labelImg, JSON to PNG; equal maps"
    )
    per_s = {name: len(frames) / value for name, value in seconds.items()}
    return Row("unet-labels", per_s["ours"], per_s["official"], text, Bound("ratio", ">=", 10))


def _open_scenes(folder: Path, num_images: int, size: tuple[int, int]) -> ImageCache:
    """Return the cache of the training images among some synthetic scenes."""
    write_synthetic(folder / "scenes", num_images=num_images, size=size, seed=0)
    frames = index_split(folder / "scenes", "train")
    return open_cache(frames, size=size, folder=folder / "cache", fingerprint="bench")


class Stopwatch:
    """Batches of a loader, and the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.seconds = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Batch]:
        begin = time.perf_counter()
        for batch in self._batches:
            self.seconds += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()
