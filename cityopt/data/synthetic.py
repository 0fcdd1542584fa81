"""Write a Cityscapes tree of procedural street scenes, for trying everything out without the real data.

`cityopt data synth` and `--data synthetic` end here. The layout, names and formats are those of the official
download: leftImg8bit, gtFine and, on demand, gtCoarse with train_extra; cityscapesScripts' own rasterisation of
the polygons gives the written rasters. Cities are invented, so that nobody takes the tree for the real one.

Source: Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016, section 2.
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.data.scenery.casting import draw_casting
from cityopt.data.scenery.coarse import coarsen
from cityopt.data.scenery.rasters import Annotated, labels_of, rasterise_instances
from cityopt.data.scenery.scene import Scene, paint_scene
from cityopt.errors import ConfigError, DataError
from cityopt.runtime import count_cores, die_with_parent

CITIES: dict[str, tuple[str, ...]] = {
    "train": ("ashmoor", "birchfeld", "cedarau", "dornhaven", "elmstadt", "fernwald"),
    "val": ("ginsterbruck", "hazelmere"),
    "test": ("irisport",),
    "train_extra": ("juniperau", "kastelholm", "lindenquay"),
}
RECIPE_FILE = "synthetic.json"
RECIPE_VERSION = 2
MIN_IMAGES = 3
MIN_SIDE_PX = 32
# Every scene draws from its own seed, so that no scene depends on how many came before it.
_SEED_STRIDE = 1_000_003
_SHOTS_PER_PROCESS = 32
"""Below that, the start of processes takes as long as the painting."""


@dataclass(frozen=True, slots=True)
class _Shot:
    number: int
    split: str
    city: str
    sequence: int

    @property
    def name(self) -> str:
        return f"{self.city}_{self.sequence:06d}_000019"


def parse_size(text: str) -> tuple[int, int]:
    """Return (height, width) of a text such as `256x512`. Raises ConfigError."""
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise ConfigError(f"`--size` must be HEIGHTxWIDTH in pixels, such as 256x512, but got {text!r}.")
    return int(height), int(width)


def write_synthetic(
    out: Path,
    *,
    num_images: int,
    size: tuple[int, int],
    seed: int,
    with_coarse: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `num_images` scenes of `size` (height, width) pixels as a Cityscapes tree; same arguments, same bytes.

    Splits: val gets a fifth and test a twentieth of the images, each rounded and at least one; train gets the rest.
    Test labels are dummies, as in the real data. `with_coarse` adds gtCoarse for train and val, and half as many
    train_extra images again, which have coarse labels only. `progress` is called with (done, total) per image.

    The tree appears whole or not at all. An `out` that holds this very tree already is left as it is.
    Raises DataError for fewer than 3 images, a side below 32 px, or an `out` that has other content or cannot be made.
    """
    _check_request(num_images, size)
    recipe = {
        "version": RECIPE_VERSION,
        "num_images": num_images,
        "size": list(size),
        "seed": seed,
        "coarse": with_coarse,
    }
    if _holds_already(out, recipe):
        return
    staging = _make_staging(out)
    try:
        shots = list(_plan_shots(num_images, with_coarse))
        work = partial(_draw_shot, staging, size=size, seed=seed, with_coarse=with_coarse)
        for done, _ in enumerate(_map_over_cores(work, shots), start=1):
            if progress:
                progress(done, len(shots))
        (staging / RECIPE_FILE).write_text(json.dumps(recipe) + "\n")
        _publish(staging, out, recipe)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def split_counts(num_images: int) -> dict[str, int]:
    """Divide images over train, val and test: about 75, 20 and 5 of 100, at least one each."""
    val, test = max(1, round(num_images * 0.20)), max(1, round(num_images * 0.05))
    return {"train": num_images - val - test, "val": val, "test": test}


def _check_request(num_images: int, size: tuple[int, int]) -> None:
    if num_images < MIN_IMAGES:
        raise DataError(
            f"A synthetic tree needs at least {MIN_IMAGES} images, one per split, but got num_images={num_images}. "
            f"Use --num-images {MIN_IMAGES} or more."
        )
    if min(size) < MIN_SIDE_PX:
        raise DataError(
            f"Both sides of a synthetic image must be at least {MIN_SIDE_PX} px, but got size={size[0]}x{size[1]} "
            "(height x width). Use for instance --size 256x512."
        )


def _holds_already(out: Path, recipe: dict[str, object]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    found = _read_recipe(out / RECIPE_FILE)
    if found == recipe:
        return True
    what = "another synthetic tree" if found else "other files"
    raise DataError(f"{out} must be empty or missing, but holds {what}. Choose another directory, or remove it first.")


def _make_staging(out: Path) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out.parent} must be writable, but it is not ({error}). Choose another directory.") from error


def _publish(staging: Path, out: Path, recipe: dict[str, object]) -> None:
    """Move the finished tree to its place; if another process was faster with the same tree, keep that one."""
    staging.chmod(0o755)
    try:
        if out.exists():
            out.rmdir()
        staging.rename(out)
    except OSError:
        if not _holds_already(out, recipe):
            raise


def _read_recipe(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _plan_shots(num_images: int, with_coarse: bool) -> Iterator[_Shot]:
    counts = split_counts(num_images)
    if with_coarse:
        counts["train_extra"] = max(1, num_images // 2)
    number = 0
    for split, count in counts.items():
        cities = CITIES[split]
        for i in range(count):
            yield _Shot(number, split, cities[i % len(cities)], i // len(cities))
            number += 1


def _map_over_cores(work: Callable[[_Shot], None], shots: Sequence[_Shot]) -> Iterator[None]:
    """Do the work for each shot; where many pay for the start of processes, on all cores."""
    num_workers = min(count_cores(), len(shots) // _SHOTS_PER_PROCESS)
    if num_workers < 2:
        yield from map(work, shots)
        return
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_become_painter)
    try:
        yield from pool.map(work, shots, chunksize=4)
    except BrokenProcessPool as error:
        raise DataError(
            "a process that paints scenes was killed. If memory is short, ask for smaller scenes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _become_painter() -> None:
    """Leave Ctrl-C to the process that asked, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()


def _draw_shot(root: Path, shot: _Shot, *, size: tuple[int, int], seed: int, with_coarse: bool) -> None:
    scene = paint_scene(*size, seed * _SEED_STRIDE + shot.number, draw_casting(seed, shot.number))
    _write_shot(root, shot, scene, with_coarse)


def _write_shot(root: Path, shot: _Shot, scene: Scene, with_coarse: bool) -> None:
    height, width = scene.instances_HW.shape
    _save(root / "leftImg8bit" / shot.split / shot.city / f"{shot.name}_leftImg8bit.png", scene.image_HW3)
    if shot.split == "test":
        dummy = _dummy_objects(scene, height, width)
        _write_labels(root, "gtFine", shot, dummy, rasterise_instances(dummy, height, width))
        return
    if shot.split != "train_extra":
        _write_labels(root, "gtFine", shot, scene.objects, scene.instances_HW)
    if with_coarse:
        coarse = coarsen(scene.instances_HW)
        _write_labels(root, "gtCoarse", shot, coarse, rasterise_instances(coarse, height, width))


def _dummy_objects(scene: Scene, height: int, width: int) -> list[Annotated]:
    """Say of the whole image that it is out of the region of interest, as the public test labels do."""
    everything = [(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)]
    rims = [item for item in scene.objects if item[0] in ("ego vehicle", "rectification border")]
    return [("out of roi", everything), *rims]


def _write_labels(
    root: Path, kind: str, shot: _Shot, objects: list[Annotated], instances_HW: NDArray[np.uint16]
) -> None:
    stem = root / kind / shot.split / shot.city / f"{shot.name}_{kind}"
    _save(stem.with_name(stem.name + "_instanceIds.png"), instances_HW)
    _save(stem.with_name(stem.name + "_labelIds.png"), labels_of(instances_HW))
    height, width = instances_HW.shape
    document = {
        "imgHeight": height,
        "imgWidth": width,
        "objects": [{"label": label, "polygon": polygon} for label, polygon in objects],
    }
    stem.with_name(stem.name + "_polygons.json").write_text(json.dumps(document))


def _save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
