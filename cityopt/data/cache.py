"""Decode and resize images and rasters once, into memory maps that every worker of every trial shares.

Stands between the PNGs and the loaders: reading a frame is then a copy from the page cache. A cache is a folder
named after everything that decides its content; it appears by one rename, when it is whole.

    <folder>/<key>/images.npy     (N, H, W, 3) uint8, RGB; Pillow's bilinear filter, which antialiases when it shrinks
    <folder>/<key>/instances.npy  (N, H, W) uint16, raw instanceIds, nearest pixel; zeros where there is no label
    <folder>/<key>/meta.json      names, size, checksums

Shapes: N images, H, W height and width in pixels.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from cityopt.data.cityscapes import Frame, OnCount, check_same_size, read_image, read_instance_ids
from cityopt.data.resizing import resize_image, resize_raster
from cityopt.errors import StoreError

_LOG = logging.getLogger("cityopt")
_VERSION = "1 bilinear nearest"
"""Format and interpolation; part of the key."""
_NUM_CHECKED = 8
"""Frames whose checksum is verified when a cache is opened."""


Array = TypeVar("Array", bound=np.generic)


class Rows(Generic[Array]):
    """Some rows of a memory map `(M, …)`; reads like an array `(N, …)` of them."""

    def __init__(self, array: "NDArray[Array] | Rows[Array]", rows: Sequence[int]) -> None:
        self._array, self._rows = array, np.asarray(rows, dtype=np.intp)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape that an array of the rows would have."""
        return len(self._rows), *self._array.shape[1:]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | Sequence[int] | NDArray[np.intp]) -> NDArray[Array]:
        found: NDArray[Array] = self._array[self._rows[index]]
        return found

    def __iter__(self) -> Iterator[NDArray[Array]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class ImageCache:
    """The images and rasters of N frames, by ascending name. It is pickled as path and names, never as its content."""

    path: Path
    names: tuple[str, ...]
    images: NDArray[np.uint8] | Rows[np.uint8]
    """(N, H, W, 3) memory map, RGB."""
    instances: NDArray[np.uint16] | Rows[np.uint16]
    """(N, H, W) memory map of raw instanceIds."""

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.names)

    @property
    def size(self) -> tuple[int, int]:
        """Return the (height, width) of all frames."""
        height, width = self.images.shape[1:3]
        return height, width

    def find(self, names: Sequence[str]) -> list[int]:
        """Return the indices of names, in their order. Raises StoreError: a name that the cache lacks."""
        index = {name: number for number, name in enumerate(self.names)}
        missing = [name for name in names if name not in index]
        if missing:
            raise StoreError(
                f"the cache {self.path} lacks {missing[0]} and {len(missing) - 1} more. Remove the folder."
            )
        return [index[name] for name in names]

    def select(self, names: Iterable[str]) -> "ImageCache":
        """Return a cache of some of the frames that reads from the same files. Raises StoreError: as `find`."""
        chosen = tuple(sorted(names))
        rows = self.find(chosen)
        return ImageCache(self.path, chosen, Rows(self.images, rows), Rows(self.instances, rows))


def open_cache(
    frames: Sequence[Frame],
    *,
    size: tuple[int, int],
    folder: Path,
    fingerprint: str,
    progress: OnCount | None = None,
    workers: int = 2,
) -> ImageCache:
    """Open the cache of frames at (height, width), and build it first if there is none or it is damaged.

    Processes that want the same cache at once get it from the first; what a killed one left behind is removed.
    Building decodes in `workers` threads. Raises DataError (a file is missing, broken or of another size) and
    StoreError (folder not writable, disk full); neither leaves anything behind.
    """
    frames = sorted(frames, key=lambda frame: frame.name)
    path = folder / _make_key(frames, size, fingerprint)
    try:
        return load_cache(path)
    except StoreError as error:
        reason = error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            return _load_or_build(path, frames, size, progress, workers, reason)
    except OSError as error:
        raise StoreError(
            f"the cache cannot be written to {folder}: {error}. Choose another store with --store."
        ) from error


def load_cache(path: Path) -> ImageCache:
    """Open a cache that exists. Raises StoreError: not there, truncated, or not what was once written."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        names = tuple(meta["names"])
        images = np.load(path / "images.npy", mmap_mode="r")
        instances = np.load(path / "instances.npy", mmap_mode="r")
        shape = (len(names), *meta["size"])
        if (images.shape, images.dtype) != ((*shape, 3), np.uint8) or (instances.shape, instances.dtype) != (
            shape,
            np.uint16,
        ):
            raise ValueError(f"its arrays are not of {shape}")
        for index in {*np.linspace(0, len(names) - 1, _NUM_CHECKED, dtype=int).tolist()}:
            if _sum_up(images[index], instances[index]) != meta["checksums"][index]:
                raise ValueError(f"{names[index]} has another checksum than when it was written")
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        raise StoreError(f"{path} must be a whole image cache, but cannot be opened: {error}. Remove it.") from error
    return ImageCache(path, names, images, instances)


def _reopen(path: Path, names: tuple[str, ...]) -> ImageCache:
    cache = load_cache(path)
    return cache if cache.names == names else cache.select(names)


def _load_or_build(
    path: Path,
    frames: Sequence[Frame],
    size: tuple[int, int],
    progress: OnCount | None,
    workers: int,
    reason: Exception,
) -> ImageCache:
    """Build a cache unless another process did meanwhile. Only the holder of the lock comes here."""
    if path.exists():
        try:
            return load_cache(path)
        except StoreError:
            _LOG.warning("%s The cache is built again.", reason)
            shutil.rmtree(path)
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    needed = len(frames) * size[0] * size[1] * 5
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise StoreError(
            f"the cache of {len(frames)} images of {size[0]} x {size[1]} needs {needed / 2**30:.1f} GiB, but "
            f"{path.parent} has {free / 2**30:.1f}. Choose another store with --store, or a smaller data.size or "
            "data.num_images."
        )
    try:
        partial.mkdir()
        _write_cache(partial, frames, size, progress, workers)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_cache(path)


def _write_cache(
    partial: Path, frames: Sequence[Frame], size: tuple[int, int], progress: OnCount | None, workers: int
) -> None:
    checksums = []
    shape = (len(frames), *size)
    with (partial / "images.npy").open("wb") as images, (partial / "instances.npy").open("wb") as instances:
        _write_header(images, (*shape, 3), np.uint8)
        _write_header(instances, shape, np.uint16)
        for image, raster in _decode_frames(frames, size, workers):
            images.write(image.data)
            instances.write(raster.data)
            checksums.append(_sum_up(image, raster))
            if progress:
                progress(len(checksums), len(frames))
        for file in (images, instances):
            file.flush()
            os.fsync(file.fileno())
    meta = {"names": [frame.name for frame in frames], "size": size, "checksums": checksums}
    (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _decode_frames(
    frames: Sequence[Frame], size: tuple[int, int], workers: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint16]]]:
    """Decode frames in threads (Pillow lets others run meanwhile), a few ahead of whoever consumes them."""
    changed = False
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(frames), 4 * workers):
            for image, raster, aspect in pool.map(
                lambda f: _decode_frame(f, size), frames[start : start + 4 * workers]
            ):
                if not changed and abs(aspect * size[0] / size[1] - 1) > 0.02:
                    _LOG.warning("`data.size` %d x %d distorts images of width / height %.3f", *size, aspect)
                    changed = True
                yield image, raster


def _decode_frame(frame: Frame, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint16], float]:
    """Return image, raster, and the width of the original by its height."""
    image = read_image(frame.image)
    aspect = image.shape[1] / image.shape[0]
    small = resize_image(image, size)
    if frame.instance_ids is None:
        return small, np.zeros(size, dtype=np.uint16), aspect
    raster = read_instance_ids(frame.instance_ids)
    check_same_size(frame.image, image.shape, frame.instance_ids, raster.shape)
    return small, np.ascontiguousarray(resize_raster(raster, size)), aspect


def _make_key(frames: Sequence[Frame], size: tuple[int, int], fingerprint: str) -> str:
    lines = [_VERSION, fingerprint, str(size)]
    lines += [f"{frame.name} {frame.instance_ids.name if frame.instance_ids else None}" for frame in frames]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return f"{size[0]}x{size[1]}-{digest}"


def _sum_up(image: NDArray[np.uint8], raster: NDArray[np.uint16]) -> int:
    return zlib.crc32(raster.data, zlib.crc32(image.data))


def _write_header(file: BinaryIO, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the system takes back when the process dies. Waits for another holder, and says so."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOG.warning("waiting for another process that builds the same image cache (%s)", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
