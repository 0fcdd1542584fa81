"""Read a Cityscapes tree: which images a split has, their pixels, and facts about every label.

First in the flow: `index_split` finds the frames, `scan_frames` looks once into each label (and remembers), and
subset, cache, anchors and statistics work on what these return. The instanceIds raster is the ground truth:
0 … 33 a plain label id (for a class with instances: a group), 1000 · id + number a single instance.

Shapes: H, W height and width of an image in pixels.
Source: cityscapesScripts, README (layout) and preparation/json2instanceImg.py (ids in the rasters).
"""

import hashlib
import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.config import Task
from cityopt.data.memo import read_memo, write_memo
from cityopt.data.targets import find_train_ids
from cityopt.errors import DataError
from cityopt.labels import CLASS_OF_ID, LABELS, VOID

Labels = Literal["fine", "coarse"]
OnCount = Callable[[int, int], None]
"""Called with (done, total)."""

SPLITS: dict[Labels, tuple[str, ...]] = {"fine": ("train", "val", "test"), "coarse": ("train", "train_extra", "val")}
IMAGE_FOLDER = "leftImg8bit"
IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_FOLDERS: dict[Labels, str] = {"fine": "gtFine", "coarse": "gtCoarse"}
RASTER_RULE = "0 … 33, or 1000 · id + number for a class with instances"
UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is truncated or no PNG."""

_MEMO_VERSION = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One image and its label files; a label file that is not there, or only a dummy (test), is None."""

    name: str
    """`aachen_000000_000019`."""
    split: str
    city: str
    image: Path
    instance_ids: Path | None
    label_ids: Path | None
    polygons: Path | None


@dataclass(frozen=True, slots=True)
class FrameFacts:
    """What selecting, hashing and counting need to know of a frame, without its pixels."""

    name: str
    split: str
    city: str
    size: tuple[int, int]
    """(height, width) in pixels."""
    class_counts: tuple[int, ...]
    """Single instances of the eight classes, in the order of `THING_LABELS`; zeros without a label."""
    num_crowds: int
    """Classes of which the frame shows a group."""
    image_bytes: int
    label_sha256: str | None
    train_ids: tuple[int, ...] = ()
    """Training ids of the evaluated classes that have a pixel, ascending; none without a label."""

    def list_classes(self, task: Task) -> tuple[int, ...]:
        """Return the classes that a task finds here, ascending: of the eight things, or training ids."""
        if task == "semantic":
            return self.train_ids
        return tuple(index for index, count in enumerate(self.class_counts) if count)


def index_split(root: str | Path, split: str, labels: Labels = "fine") -> list[Frame]:
    """List the frames of a split, sorted by name; each has its instanceIds, except those of test (dummies only).

    Raises DataError: no such root, no Cityscapes root, no such split, an image without label, or two of one name.
    """
    if split not in SPLITS[labels]:
        raise DataError(f"split of the {labels} labels must be one of {', '.join(SPLITS[labels])}, but got {split!r}.")
    folder = check_root(root) / IMAGE_FOLDER / split
    frames = list_frames(root, split, labels)
    if not frames:
        raise DataError(f"{folder} must hold <city>/<name>{IMAGE_SUFFIX}, but holds none. Unpack the images there.")
    check_names(frames)
    missing = [frame for frame in frames if frame.instance_ids is None]
    if missing and split != "test":
        label = label_path(root, missing[0], labels, "instanceIds.png")
        raise DataError(
            f"every image of {split} needs its label, but {len(missing)} of {len(frames)} have none: the first, "
            f"{missing[0].image}, lacks {label}. Unpack {LABEL_FOLDERS[labels]} there, or remove the image."
        )
    return frames


def check_completeness(root: str | Path, split: str, frames: Sequence[Frame]) -> None:
    """Check that no label of a split, also of test's dummies, lacks its image. Raises DataError: one does.

    Scores of a split whose images are not all there would pass for scores of the whole.
    """
    labels = sorted((Path(root) / LABEL_FOLDERS["fine"] / split).glob("*/*_gtFine_instanceIds.png"))
    known = {label_path(root, frame, "fine", "instanceIds.png") for frame in frames}
    missing = [path for path in labels if path not in known and not path.name.startswith(".")]
    if missing:
        raise DataError(
            f"every label of {split} needs its image, but {len(missing)} of {len(labels)} have none: the first is "
            f"{missing[0]}. Unpack {IMAGE_FOLDER} again, or remove the label."
        )


def list_frames(root: str | Path, split: str, labels: Labels) -> list[Frame]:
    """List the frames of a split, sorted by name, whether or not they have labels; none for a split that is absent."""
    folder = Path(root) / IMAGE_FOLDER / split
    images = sorted(path for path in folder.glob(f"*/*{IMAGE_SUFFIX}") if not path.name.startswith("."))
    frames = []
    for image in images:
        bare = Frame(image.name.removesuffix(IMAGE_SUFFIX), split, image.parent.name, image, None, None, None)
        paths = [label_path(root, bare, labels, kind) for kind in ("instanceIds.png", "labelIds.png", "polygons.json")]
        found = [path if split != "test" and path.is_file() else None for path in paths]
        frames.append(Frame(bare.name, split, bare.city, image, *found))
    return sorted(frames, key=lambda frame: frame.name)


def check_names(frames: Iterable[Frame]) -> None:
    """Check that no two images share a name, by which everything later tells them apart. Raises DataError: two do."""
    known: dict[str, Frame] = {}
    for frame in frames:
        other = known.setdefault(frame.name, frame)
        if other is not frame:
            raise DataError(
                f"every image of a dataset needs a name of its own, but {other.image} and {frame.image} share one. "
                "Begin the names with the city, as Cityscapes does, or remove one."
            )


def label_path(root: str | Path, frame: Frame, labels: Labels, kind: str) -> Path:
    """Return where a label file of a frame belongs; `kind` is such as `instanceIds.png`."""
    folder = LABEL_FOLDERS[labels]
    return Path(root) / folder / frame.split / frame.city / f"{frame.name}_{folder}_{kind}"


def check_root(root: str | Path) -> Path:
    """Return the root as a path. Raises DataError: it is not there, or is no Cityscapes tree."""
    path = Path(root)
    if not path.is_dir():
        raise DataError(
            f"the dataset root must be a folder, but there is none at {path}. "
            f"Give it with --data, or make scenes with `cityopt data synth {path}`."
        )
    if not (path / IMAGE_FOLDER).is_dir():
        near = next((p for p in (path.parent, *sorted(path.glob("*/"))) if (p / IMAGE_FOLDER).is_dir()), None)
        raise DataError(
            f"a Cityscapes root must hold {IMAGE_FOLDER}/ and gtFine/, but {path} has no {IMAGE_FOLDER}/. "
            + (f"Did you mean {near}?" if near else "Unpack the official archives into it.")
        )
    return path


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB. Raises DataError: not there, truncated, no 8-bit image."""
    with _naming(path), Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA", "P", "L"):
            raise ValueError(f"its mode must be RGB, but is {image.mode}")
        return np.asarray(image.convert("RGB"))


def read_instance_ids(path: Path) -> NDArray[np.uint16]:
    """Read an instanceIds raster as (H, W) uint16. Raises DataError: not there, truncated, impossible ids."""
    raster = _read_raster(path, path)
    list_ids(raster, path)
    return raster


def read_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) of an image, from its header alone. Raises DataError."""
    with _naming(path), Image.open(path) as image:
        return image.height, image.width


def read_labels(path: Path) -> NDArray[np.uint16]:
    """Read a labelIds raster as (H, W) uint16. Raises DataError: not there, truncated, impossible ids."""
    raster = _read_raster(path, path)
    highest = int(raster.max(initial=0))
    if highest > max(CLASS_OF_ID):
        raise DataError(f"a labelIds raster must hold 0 … 33, but {path} holds {highest}. Restore the file.")
    return raster


def check_same_size(image: Path, size: tuple[int, ...], label: Path | None, label_size: tuple[int, ...]) -> None:
    """Check that image and label have one size, (height, width). Raises DataError."""
    if size[:2] != label_size[:2]:
        raise DataError(
            f"image and label must have one size, but {image} has {size[0]} x {size[1]} and "
            f"{label} has {label_size[0]} x {label_size[1]} (height x width). Restore the pair."
        )


def list_ids(raster: NDArray[np.uint16], path: Path) -> list[int]:
    """Return the ids that a raster holds, sorted. Raises DataError: an id that no official raster has."""
    present = np.zeros(1 << 16, dtype=bool)
    present[raster] = True
    ids = np.flatnonzero(present)
    bad = ids[~_VALID_IDS[ids]]
    if bad.size:
        some = ", ".join(str(value) for value in bad[:5])
        raise DataError(
            f"an instanceIds raster must hold {RASTER_RULE}, but {path} holds {some}. "
            "Restore the file (is it a labelTrainIds or instanceTrainIds raster?)."
        )
    return [int(value) for value in ids]


def scan_frames(
    frames: Sequence[Frame], memo: Path, progress: OnCount | None = None, *, workers: int = 2
) -> list[FrameFacts]:
    """Look once into the label of every frame, with `workers` threads, and return the facts in the frames' order.

    What was seen is remembered in the JSON `memo` by path, size and time of change, also after an error or Ctrl-C.
    Several processes may share the memo. Raises DataError (label unreadable, of another size than the image, with
    impossible ids; image truncated) and StoreError (memo not writable).
    """
    known = read_memo(memo, _MEMO_VERSION)
    keys = [_memo_key(frame) for frame in frames]
    seen: dict[str, dict[str, Any]] = {}
    facts = []
    try:
        with ThreadPoolExecutor(workers) as pool:
            todo = [frame if key not in known else None for frame, key in zip(frames, keys, strict=True)]
            fresh = pool.map(lambda frame: frame and _scan_frame(frame), todo)
            try:
                for done, (key, found) in enumerate(zip(keys, fresh, strict=True), start=1):
                    if found is not None:
                        seen[key] = asdict(found)
                    facts.append(found or _restore_facts(known[key]))
                    if progress:
                        progress(done, len(frames))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        if seen:
            write_memo(memo, _MEMO_VERSION, seen)
    return facts


def fingerprint(facts: Iterable[FrameFacts]) -> str:
    """Return 16 hex digits that change with any name, image size in bytes or label, not with the root's location."""
    lines = sorted(f"{fact.split} {fact.name} {fact.image_bytes} {fact.label_sha256}\n" for fact in facts)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what Pillow raises about a broken file into a DataError that names the file."""
    try:
        yield
    except UNREADABLE as error:
        raise DataError(f"{path} must be a whole PNG, but cannot be read: {error}. Restore it.") from error


def _read_raster(source: Path | io.BytesIO, path: Path) -> NDArray[np.uint16]:
    with _naming(path), Image.open(source) as image:
        if image.mode not in ("I;16", "I", "L"):
            raise ValueError(f"a label raster has one channel of 8 or 16 bits, but its mode is {image.mode}")
        return np.asarray(image).astype(np.uint16, copy=False)


def _scan_frame(frame: Frame) -> FrameFacts:
    size = read_size(frame.image)
    with _naming(frame.image), frame.image.open("rb") as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes - 64))
        whole = b"IEND" in file.read()
    if not whole:
        read_image(frame.image)
    ids: list[int] = []
    sha = None
    if frame.instance_ids is not None:
        with _naming(frame.instance_ids):
            content = frame.instance_ids.read_bytes()
        sha = hashlib.sha256(content).hexdigest()
        raster = _read_raster(io.BytesIO(content), frame.instance_ids)
        check_same_size(frame.image, size, frame.instance_ids, raster.shape)
        ids = list_ids(raster, frame.instance_ids)
    counts = [sum(value // 1000 == thing for value in ids) for thing in CLASS_OF_ID]
    crowds = sum(value in CLASS_OF_ID for value in ids)
    shown = sorted(set(find_train_ids(np.array(ids, dtype=np.int64)).tolist()) - {VOID})
    return FrameFacts(frame.name, frame.split, frame.city, size, tuple(counts), crowds, num_bytes, sha, tuple(shown))


def _memo_key(frame: Frame) -> str:
    parts = []
    for path in (frame.image, frame.instance_ids):
        if path is not None:
            with _naming(path):
                status = path.stat()
            parts.append(f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}")
    return "|".join(parts)


def _restore_facts(entry: dict[str, Any]) -> FrameFacts:
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    return FrameFacts(**values)


def _mark_valid_ids() -> NDArray[np.bool_]:
    valid = np.zeros(1 << 16, dtype=bool)
    for label in LABELS:
        if label.id >= 0:
            valid[label.id] = True
        if label.has_instances:
            valid[label.id * 1000 : label.id * 1000 + 1000] = True
    return valid


_VALID_IDS = _mark_valid_ids()
