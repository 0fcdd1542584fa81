"""A Cityscapes tree of a few small frames, for tests that care for files rather than for scenes."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.data.cityscapes import FrameFacts

THINGS = (24, 25, 26, 27, 28, 31, 32, 33)


def paint_raster(size: tuple[int, int], rng: np.random.Generator, num_instances: int = 4) -> NDArray[np.uint16]:
    """Paint rectangles of random classes on road and sky; some are groups, some caravans."""
    height, width = size
    raster = np.full(size, 7, dtype=np.uint16)
    raster[: height // 2] = 23
    for number in range(num_instances):
        label = int(rng.choice((*THINGS, 29)))
        value = label if rng.random() < 0.2 else label * 1000 + number
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        raster[top : top + rng.integers(2, height), left : left + rng.integers(2, width // 2)] = value
    return raster


def write_frame(
    root: Path,
    split: str,
    city: str,
    number: int,
    *,
    size: tuple[int, int] = (24, 48),
    raster: NDArray[np.uint16] | None = None,
    kind: str = "gtFine",
    labelled: bool = True,
) -> str:
    """Write image and label files of one frame and return its name."""
    name = f"{city}_{number:06d}_000019"
    rng = np.random.default_rng([number, *city.encode()])
    image = root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    if labelled:
        raster = paint_raster(size, rng) if raster is None else raster
        stem = root / kind / split / city / f"{name}_{kind}"
        stem.parent.mkdir(parents=True, exist_ok=True)
        write_raster(Path(f"{stem}_instanceIds.png"), raster)
        plain = np.where(raster >= 1000, raster // 1000, raster).astype(np.uint8)
        Image.fromarray(plain).save(f"{stem}_labelIds.png")
        polygon = {"label": "sky", "polygon": [[0, 0], [size[1], 0], [0, size[0]]]}
        content = {"imgHeight": size[0], "imgWidth": size[1], "objects": [polygon]}
        Path(f"{stem}_polygons.json").write_text(json.dumps(content), encoding="utf-8")
    return name


def write_raster(path: Path, raster: NDArray[np.uint16]) -> None:
    Image.fromarray(raster.astype(np.uint16)).save(path)


def write_tree(root: Path, splits: Mapping[str, Mapping[str, int]], *, size: tuple[int, int] = (24, 48)) -> Path:
    """Write a tree of `{split: {city: number of frames}}`; test gets no labels, train_extra coarse ones."""
    for split, cities in splits.items():
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        for city, count in cities.items():
            for number in range(count):
                write_frame(root, split, city, number, size=size, kind=kind, labelled=split != "test")
    return root


def make_fact(
    city: str, number: int, shown: tuple[int, ...] = (), split: str = "train", train_ids: tuple[int, ...] = ()
) -> FrameFacts:
    """Make the facts of a frame: one instance of each of some classes in 1 … 8, pixels of some training ids."""
    counts = tuple(int(index in shown) for index in range(1, 9))
    name = f"{city}_{number:06d}_000019"
    return FrameFacts(name, split, city, (24, 48), counts, 0, 1000 + number, f"{number:064x}", train_ids)
