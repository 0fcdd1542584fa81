"""Pictures of any kind: found in folders, read upright as 8-bit RGB, and fitted to a model's size.

First in the flow of `predict`, where the tree is whatever the user has. Pictures that lie in a Cityscapes tree bring
their ground truth along. `cityscapes.py` reads datasets, and is strict about them.

Shapes: H, W height and width of a picture in pixels, after its EXIF orientation was applied.
"""

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cityopt.data.cityscapes import (
    IMAGE_FOLDER,
    IMAGE_SUFFIX,
    UNREADABLE,
    Frame,
    label_path,
    read_instance_ids,
)
from cityopt.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
_LABEL_RASTER = re.compile(r"_(gtFine|gtCoarse)_\w+\.png$|_(disparity|depth)\.png$")
_PAPER = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Picture:
    """A file to look at, and the name of what is made from it: a relative path, one of its kind."""

    path: Path
    name: str


def find_pictures(inputs: Sequence[Path], *, outside: Path | None = None) -> tuple[list[Picture], dict[Path, str]]:
    """List the pictures that files and folders mean, each once; and what means none or cannot be read, with the reason.

    Folders are searched for png, jpg, jpeg, webp, tif and tiff, through all that lies below them except hidden
    files, label rasters of a Cityscapes tree, and the folder `outside`. A file that is named is taken as it is.
    A name keeps the folders below the deepest one that all inputs share, and all keep their suffixes if two were alike.
    """
    paths: dict[Path, Path] = {}
    problems: dict[Path, str] = {}
    for given in inputs:
        try:
            found = _list_input(given, outside, problems)
        except OSError as error:
            problems[given] = _describe(error)
            continue
        for path in found:
            paths.setdefault(path.resolve(), path)
    searched = [given for given in inputs if given not in problems and given.is_dir()]
    return _name_all(list(paths.values()), searched), problems


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture as (H, W, 3) uint8 RGB, upright.

    Grey becomes RGB, 16 bits become 8 (65535 becomes 255), what is transparent shows white, of several frames the
    first counts. Raises DataError: not there, broken, or with channels of 32 bits.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # large pictures and odd metadata; what cannot be read raises
            with Image.open(path) as opened:
                image = ImageOps.exif_transpose(opened)
                return np.array(_convert(image))
    except (*UNREADABLE, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def find_label(path: Path) -> Path | None:
    """Return the instanceIds raster of a picture that lies in a Cityscapes tree with gtFine labels, else None."""
    if not path.name.endswith(IMAGE_SUFFIX) or len(path.absolute().parents) < 4:
        return None
    city, split, folder, root = path.absolute().parents[:4]
    if folder.name != IMAGE_FOLDER or split.name == "test":  # the labels of test are dummies
        return None
    frame = Frame(path.name.removesuffix(IMAGE_SUFFIX), split.name, city.name, path, None, None, None)
    label = label_path(root, frame, "fine", "instanceIds.png")
    return label if label.is_file() else None


def read_truth(path: Path, size: tuple[int, int]) -> NDArray[np.uint16] | None:
    """Read the raster `(H, W)` of a picture of this size, None where there is none. Raises DataError: it is broken."""
    label = find_label(path)
    if label is None:
        return None
    raster = read_instance_ids(label)
    if raster.shape != size:
        raise DataError(f"{label} must have the picture's size {size} (height, width), but has {raster.shape}.")
    return raster


def fit_size(size: tuple[int, int], limits: tuple[int, int]) -> tuple[int, int]:
    """Return the largest (height, width) of a picture's aspect within limits: at least 1 px, larger or smaller."""
    scale = min(limits[0] / size[0], limits[1] / size[1])
    height, width = (max(1, min(round(side * scale), limit)) for side, limit in zip(size, limits, strict=True))
    return height, width


def _list_input(given: Path, outside: Path | None, problems: dict[Path, str]) -> list[Path]:
    """Return the pictures that a file or folder means; why it means none, or less than all, goes to `problems`."""
    if not given.is_dir():
        if given.exists():
            return [given]
        problems[given] = "is not there"
        return []
    closed: dict[Path, str] = {}
    found = list(_search(given, outside, closed))
    if not found and not closed:
        problems[given] = f"holds no picture ({', '.join(SUFFIXES)})"
    problems |= closed
    return found


def _describe(error: OSError) -> str:
    return f"cannot be searched: {error.strerror or error}"


def _search(folder: Path, outside: Path | None, closed: dict[Path, str]) -> Iterator[Path]:
    """Yield the pictures below a folder, sorted, and add to `closed` the folders that cannot be read.

    Links to folders are not followed.
    """

    def add(error: OSError) -> None:
        closed[Path(error.filename or folder)] = _describe(error)

    for place, folders, files in os.walk(folder, onerror=add):
        here = Path(place)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (here / f).resolve() != outside)
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not _LABEL_RASTER.search(name):
                yield here / name


def _name_all(paths: Sequence[Path], searched: Sequence[Path]) -> list[Picture]:
    """Name pictures by their places below what they share: never above it, so that a name leads out of no folder."""
    if not paths:
        return []
    places = [Path(os.path.normpath(path.absolute())) for path in paths]
    folders = [os.path.normpath(given.absolute()) for given in searched]
    base = os.path.commonpath([*(str(place.parent) for place in places), *folders])
    names = [place.relative_to(base).with_suffix("").as_posix() for place in places]
    if len(set(names)) < len(names):
        names = [place.relative_to(base).as_posix() for place in places]
    return [Picture(path, name) for path, name in zip(paths, names, strict=True)]


def _convert(image: Image.Image) -> Image.Image:
    """Return any picture as 8-bit RGB."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its channels must have 8 or 16 bits, but its mode is {image.mode}")
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, (*_PAPER, 255))
        return Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
