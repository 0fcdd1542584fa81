"""Check a whole Cityscapes tree, every file to its last byte, and say what is missing or broken.

Stands beside the flow: `cityopt data check` calls it. Nothing here stops at the first problem; the commands that
train read through data/cityscapes.py and do.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cityopt.data.cityscapes import (
    IMAGE_FOLDER,
    LABEL_FOLDERS,
    Frame,
    Labels,
    OnCount,
    check_names,
    check_root,
    check_same_size,
    label_path,
    list_frames,
    read_image,
    read_instance_ids,
    read_labels,
)
from cityopt.errors import DataError
from cityopt.labels import BY_NAME

_SPLITS = ("train", "train_extra", "val", "test")
_KINDS = ("instanceIds.png", "labelIds.png", "polygons.json")
_Problem = dict[str, str]


def check_dataset(root: str | Path, progress: OnCount | None = None, *, workers: int = 2) -> dict[str, Any]:
    """Read every file of a tree and return what `data check --json` prints.

    That is `{"root", "splits": {split: {"images", "labels", "problems": [{"file", "problem"}]}}}`, files relative to
    the root; `labels` counts images with instanceIds (train_extra: coarse ones). Splits that are absent are left out.
    Raises DataError: no such root, or no Cityscapes root.
    """
    path = check_root(root)
    frames = {split: list_frames(path, split, _main_labels(split)) for split in _SPLITS}
    total, done = sum(len(some) for some in frames.values()), 0
    named: dict[str, Frame] = {}
    splits: dict[str, Any] = {}
    for split, some in frames.items():
        problems = _list_orphans(path, split, some) + _list_namesakes(path, some, named)
        with ThreadPoolExecutor(workers) as pool:
            for found in pool.map(lambda frame: list(_check_frame(path, frame)), some):
                problems += found
                done += 1
                if progress:
                    progress(done, total)
        if some or problems:
            labels = sum(label_path(path, frame, _main_labels(split), _KINDS[0]).is_file() for frame in some)
            splits[split] = {"images": len(some), "labels": labels, "problems": problems}
    return {"root": str(path), "splits": splits}


def read_polygons(path: Path) -> dict[str, Any]:
    """Read a polygons JSON: `{"imgHeight", "imgWidth", "objects": [{"label", "polygon": [[x, y], …]}, …]}`.

    Raises DataError: not there, no JSON, another structure, an unknown label, a point that is no pair of numbers.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        problem = _find_polygon_problem(content)
    except (OSError, ValueError, RecursionError) as error:
        problem = f"it cannot be read: {error}"
    if problem:
        raise DataError(f"{path} must be an official polygons JSON, but {problem}. Restore it.")
    return dict(content)


def _main_labels(split: str) -> Labels:
    return "coarse" if split == "train_extra" else "fine"


def _check_frame(root: Path, frame: Frame) -> Iterator[_Problem]:
    size = None
    try:
        size = read_image(frame.image).shape
    except DataError as error:
        yield _describe(root, frame.image, error)
    for labels in ("fine", "coarse"):
        optional = frame.split == "test" or labels != _main_labels(frame.split)
        if optional and not (root / LABEL_FOLDERS[labels] / frame.split).is_dir():
            continue
        for kind in _KINDS:
            path = label_path(root, frame, labels, kind)
            try:
                _check_label(frame, path, size, needed=kind == _KINDS[0] and frame.split != "test")
            except DataError as error:
                yield _describe(root, path, error)


def _check_label(frame: Frame, path: Path, size: tuple[int, ...] | None, *, needed: bool) -> None:
    if not path.is_file():
        if needed:
            raise DataError(f"{frame.image} has no label {path}. Unpack it, or remove the image.")
        return
    if path.suffix == ".json":
        polygons = read_polygons(path)
        found: tuple[int, ...] = polygons["imgHeight"], polygons["imgWidth"]
    else:
        read = read_instance_ids if path.name.endswith(_KINDS[0]) else read_labels
        found = read(path).shape
    if size is not None:
        check_same_size(frame.image, size, path, found)


def _list_orphans(root: Path, split: str, frames: list[Frame]) -> list[_Problem]:
    """List the instanceIds that have no image."""
    problems = []
    for labels, folder in LABEL_FOLDERS.items():
        known = {label_path(root, frame, labels, _KINDS[0]) for frame in frames}
        for path in sorted((root / folder / split).glob(f"*/*_{folder}_{_KINDS[0]}")):
            if path not in known and not path.name.startswith("."):
                name = path.name.removesuffix(f"_{folder}_{_KINDS[0]}")
                image = f"{IMAGE_FOLDER}/{split}/{path.parent.name}/{name}_{IMAGE_FOLDER}.png"
                problems.append(_describe(root, path, DataError(f"the label has no image {image}. Unpack it.")))
    return problems


def _list_namesakes(root: Path, frames: list[Frame], named: dict[str, Frame]) -> list[_Problem]:
    """List the images whose names are taken already; `named` grows from split to split."""
    problems = []
    for frame in frames:
        try:
            check_names((named.setdefault(frame.name, frame), frame))
        except DataError as error:
            problems.append(_describe(root, frame.image, error))
    return problems


def _describe(root: Path, path: Path, error: DataError) -> _Problem:
    return {"file": str(path.relative_to(root)), "problem": str(error)}


def _find_polygon_problem(content: Any) -> str | None:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__} in place of an object"
    for key in ("imgHeight", "imgWidth"):
        if not isinstance(content.get(key), int):
            return f"{key} is {content.get(key)!r}, no whole number"
    objects = content.get("objects")
    if not isinstance(objects, list):
        return "it has no list of objects"
    for number, item in enumerate(objects):
        problem = _find_object_problem(item)
        if problem:
            return f"object {number} {problem}"
    return None


def _find_object_problem(item: Any) -> str | None:
    if not isinstance(item, dict) or not isinstance(item.get("label"), str):
        return "has no label"
    if item["label"] not in BY_NAME and item["label"].removesuffix("group") not in BY_NAME:
        return f"has the unknown label {item['label']!r}"
    points = item.get("polygon")
    if not isinstance(points, list) or not points or not all(_is_point(point) for point in points):
        return f"({item['label']}) has a polygon that is no list of [x, y]"
    return None


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(type(value) in (int, float) for value in point)
