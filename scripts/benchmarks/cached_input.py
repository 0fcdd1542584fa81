"""Benchmark: images per second from the cache, beside decoding and resizing the PNGs with Pillow.

`cached-input` is what a cache is for: image and raster of a frame, 1024 x 512, as fresh arrays in memory, in one
process, with all files in the page cache. The peer decodes both PNGs of 2048 x 1024 and resizes the image
bilinearly and the raster by nearest pixel, with Pillow alone. `cached-sample` adds what a loader does either way:
find the instances, order the channels, make tensors.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.measuring import Bound, Row, alternate
from cityopt.config import DataConfig
from cityopt.data.cache import ImageCache, open_cache
from cityopt.data.cityscapes import Frame, index_split
from cityopt.data.loaders import build_loader
from cityopt.data.synthetic import write_synthetic
from cityopt.data.targets import find_instances

FULL, HALF = (1024, 2048), (512, 1024)
CACHE_READS = 20
"""Passes over the cache per turn: one takes too little time to be measured well."""


def bench_cached_input(*, quick: bool) -> list[Row]:
    """Measure both sides on the same synthetic scenes."""
    num_images, rounds = (3, 1) if quick else (12, 9)
    with tempfile.TemporaryDirectory() as folder:
        write_synthetic(Path(folder) / "scenes", num_images=num_images, size=FULL, seed=0)
        frames = index_split(Path(folder) / "scenes", "train")
        cache = open_cache(frames, size=HALF, folder=Path(folder) / "cache", fingerprint="bench")
        return [_bench_arrays(frames, cache, rounds), _bench_samples(frames, cache, rounds)]


def _bench_arrays(frames: list[Frame], cache: ImageCache, rounds: int) -> Row:
    kept: list[NDArray[np.generic]] = []

    def read_cache() -> None:
        for _ in range(CACHE_READS):
            for index in range(len(cache)):
                kept[:] = np.array(cache.images[index]), np.array(cache.instances[index])

    def decode() -> None:
        for frame in frames:
            kept[:] = decode_frame(frame)

    unit = "images/s, image and raster at 1024 x 512 as arrays, 1 process, 1 thread; peer: Pillow on the PNGs"
    return _compare("cached-input", read_cache, decode, len(frames), rounds, unit, Bound("ratio", ">=", 50))


def _bench_samples(frames: list[Frame], cache: ImageCache, rounds: int) -> Row:
    data = DataConfig(size=HALF)
    kept: list[object] = []

    def load() -> None:
        for _ in range(CACHE_READS):
            samples = build_loader(cache, range(len(cache)), data=data, batch_size=1, seed=0, epoch=1, train=False)
            for batch in samples:
                kept[:] = [batch]

    def decode() -> None:
        for frame in frames:
            image, raster = decode_frame(frame)
            kept[:] = find_instances(raster), image.transpose(2, 0, 1).copy()

    unit = "images/s, the same as training samples (targets, tensors): our loader; peer: Pillow on the PNGs"
    return _compare("cached-sample", load, decode, len(frames), rounds, unit, None)


def decode_frame(frame: Frame) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return image and raster at half size, with Pillow and from the PNGs."""
    assert frame.instance_ids is not None
    size = HALF[::-1]
    with Image.open(frame.image) as image, Image.open(frame.instance_ids) as raster:
        small = np.array(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
        return small, np.array(raster.resize(size, Image.Resampling.NEAREST), dtype=np.uint16)


def _compare(
    name: str,
    ours: Callable[[], None],
    peer: Callable[[], None],
    num_images: int,
    rounds: int,
    unit: str,
    bound: Bound | None,
) -> Row:
    seconds = alternate({"ours": ours, "peer": peer}, rounds=rounds)
    return Row(name, CACHE_READS * num_images / seconds["ours"], num_images / seconds["peer"], unit, bound)
