"""Measure every label of a dataset once: what stands in its images, how large it is and how much of it one sees.

The look at the data that comes first: `cityopt data stats` and the start of a study call `measure_dataset`, tallies.py
counts what it returns, the report draws it. Rasters are streamed, so memory grows with the objects, not the pixels.

An object is a single instance of the eight classes (targets.py); a group is none. Two things are said of it that the
labels do not say themselves:
  - it is truncated if it touches the edge of the view: the image border, or pixels labelled `rectification border` or
    `out of roi`, which frame most real images;
  - its parts are its 8-connected regions. Two or more mean that something stands before it. One does not mean that
    nothing does, so the share of objects in parts is a lower bound of those occluded.

Shapes: F frames, N objects, H, W height and width of a raster in pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cityopt.data.cityscapes import (
    Frame,
    OnCount,
    check_root,
    check_same_size,
    index_split,
    list_frames,
    read_instance_ids,
    read_size,
)
from cityopt.data.targets import Instances, find_instances
from cityopt.errors import DataError
from cityopt.labels import BY_NAME, CLASS_OF_ID, NUM_IDS

_OUTSIDE = tuple(BY_NAME[name].id for name in ("rectification border", "out of roi"))
_ID_OF_VALUE = np.arange(NUM_IDS * 1000) // 1000
_ID_OF_VALUE[:NUM_IDS] = range(NUM_IDS)
_THING_IDS = list(CLASS_OF_ID)
_TOUCHING = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class Objects:
    """N objects, of one raster or of many; all arrays have N rows, in the same order."""

    ids: NDArray[np.int64]
    """Values in the raster, such as 26003."""
    classes: NDArray[np.int64]
    """In 1 … 8."""
    areas: NDArray[np.int64]
    """Visible pixels."""
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) pixels; tight, the maximum exclusive."""
    num_parts: NDArray[np.int64]
    """8-connected regions, at least 1."""
    is_truncated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RasterMeasures:
    """What one raster shows."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    objects: Objects
    pixels: NDArray[np.int64]
    """(34,) pixels of each label id; those of an instance count for its label."""
    groups: NDArray[np.bool_]
    """(8,) whether the classes 1 … 8 are there as a group."""


@dataclass(frozen=True)
class DataStatistics:
    """What the labels of a dataset show, object by object and frame by frame. All arrays are in the frames' order."""

    root: Path
    frames: tuple[Frame, ...]
    sizes: NDArray[np.int64]
    """(F, 2) height and width in pixels."""
    pixels: NDArray[np.int64]
    """(F, 34) pixels of each label id."""
    groups: NDArray[np.bool_]
    """(F, 8) whether a class is there as a group."""
    objects: Objects
    frame_of: NDArray[np.int64]
    """(N,) index of each object's frame."""
    remarks: tuple[str, ...] = ()
    """What was left out, and why."""

    @property
    def splits(self) -> list[str]:
        """The splits that were measured, in their customary order."""
        return list(dict.fromkeys(frame.split for frame in self.frames))

    def in_split(self, split: str) -> NDArray[np.bool_]:
        """Return `(F,)` which frames belong to a split."""
        return np.array([frame.split == split for frame in self.frames])


def measure_dataset(root: str | Path, progress: OnCount | None = None, *, workers: int = 2) -> DataStatistics:
    """Measure the fine labels of train and val, with `workers` threads.

    A split without any label is left out with a remark. Raises DataError: no Cityscapes root, no labelled image at
    all, an image of train or val whose neighbours have labels and which has none, a broken raster.
    """
    path = check_root(root)
    frames, remarks = _pick_frames(path)
    found: list[RasterMeasures] = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for measures in pool.map(_measure_frame, frames):
                found.append(measures)
                if progress:
                    progress(len(found), len(frames))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return gather_measures(path, frames, found, remarks)


def gather_measures(
    root: Path, frames: Sequence[Frame], found: Sequence[RasterMeasures], remarks: Sequence[str] = ()
) -> DataStatistics:
    """Put the measures of at least one frame together."""
    columns = {
        field.name: np.concatenate([getattr(measures.objects, field.name) for measures in found])
        for field in fields(Objects)
    }
    return DataStatistics(
        root=root,
        frames=tuple(frames),
        sizes=np.array([measures.size for measures in found], dtype=np.int64),
        pixels=np.stack([measures.pixels for measures in found]),
        groups=np.stack([measures.groups for measures in found]),
        objects=Objects(**columns),
        frame_of=np.repeat(np.arange(len(found)), [len(measures.objects.ids) for measures in found]),
        remarks=tuple(remarks),
    )


def measure_raster(raster: NDArray[np.uint16]) -> RasterMeasures:
    """Measure an (H, W) raster of valid instanceIds; it may show no object."""
    instances = find_instances(raster)
    pixels = _count_pixels(raster)
    objects = Objects(
        ids=instances.ids,
        classes=instances.classes,
        areas=instances.areas,
        boxes_xyxy=instances.boxes_xyxy,
        num_parts=_count_parts(instances),
        is_truncated=_find_truncated(raster, instances),
    )
    height, width = raster.shape
    by_label = np.bincount(_ID_OF_VALUE, pixels, minlength=NUM_IDS).astype(np.int64)
    return RasterMeasures((height, width), objects, by_label, pixels[_THING_IDS] > 0)


def _pick_frames(root: Path) -> tuple[list[Frame], list[str]]:
    """Return the labelled frames of train and val, and a remark on each split that has images and is left out."""
    frames: list[Frame] = []
    remarks = []
    for split in ("train", "val"):
        some = list_frames(root, split, "fine")
        if any(frame.instance_ids for frame in some):
            frames += index_split(root, split)
        elif some:
            remarks.append(f"{split} is left out: none of its {len(some)} images has a label in gtFine")
    for split, reason in (("train_extra", "it has coarse labels only"), ("test", "its labels are not public")):
        count = len(list_frames(root, split, "fine"))
        if count:
            remarks.append(f"{split} ({count} images) is left out: {reason}")
    if not frames:
        raise DataError(
            f"statistics need labelled images of train or val, but {root} has none. "
            "Unpack gtFine there (`cityopt data check` lists what is missing)."
        )
    return frames, remarks


def _measure_frame(frame: Frame) -> RasterMeasures:
    assert frame.instance_ids is not None
    raster = read_instance_ids(frame.instance_ids)
    check_same_size(frame.image, read_size(frame.image), frame.instance_ids, raster.shape)
    return measure_raster(raster)


def _count_pixels(raster: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Return the pixels of each value 0 … 33999. Counts runs of equal pixels, which are far fewer than the pixels."""
    flat = raster.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(starts, append=flat.size)
    return np.bincount(flat[starts], lengths, minlength=len(_ID_OF_VALUE)).astype(np.int64)


def _count_parts(instances: Instances) -> NDArray[np.int64]:
    """Return the number `(N,)` of 8-connected regions of each instance."""
    counts = np.zeros(len(instances), dtype=np.int64)
    for index, (left, top, right, bottom) in enumerate(instances.boxes_xyxy.astype(int).tolist()):
        mask = instances.instance_map[top:bottom, left:right] == index + 1
        counts[index] = ndimage.label(mask, structure=_TOUCHING)[1]
    return counts


def _find_truncated(raster: NDArray[np.uint16], instances: Instances) -> NDArray[np.bool_]:
    """Return which instances `(N,)` touch the edge of the view with a side of a pixel."""
    shown = instances.instance_map
    outside = (raster == _OUTSIDE[0]) | (raster == _OUTSIDE[1])
    touching: list[NDArray[Any]] = [shown[0], shown[-1], shown[:, 0], shown[:, -1]]
    if outside.any():
        touching += [shown[1:][outside[:-1]], shown[:-1][outside[1:]]]
        touching += [shown[:, 1:][outside[:, :-1]], shown[:, :-1][outside[:, 1:]]]
    cut = np.zeros(len(instances) + 1, dtype=bool)
    cut[np.concatenate(touching)] = True
    return cut[1:]
