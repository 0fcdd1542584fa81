"""COCO's layout as a dataset to judge on: `annotations/instances_<split>.json` and the images beside it.

Stands before the evaluation of models with COCO's 80 classes; nothing trains on it. The JSON is read as data that may
hold anything: what an evaluation stands on is checked here, so that nothing fails, or miscounts, in the middle of it.
Polygons and codes become compressed run-length codes of their image, and category ids become classes 1 … 80. Areas
and boxes stay what the annotators wrote, as pycocotools takes them.

Source: cocodataset.org/#format-data.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from pycocotools import mask as coco_mask

from cityopt.errors import DataError
from cityopt.labels import COCO_IDS, COCO_NAMES

SPLIT = "val2017"
_CLASS_OF_ID = {number: index for index, number in enumerate(COCO_IDS, start=1)}
_MAX_SIDE_PX, _FAR = 2**15, 2.0**31
_MAX_NAME_BYTES = 255
NUM_IMAGES = {"val2017": 5000}
"""Of a split as it is published: scores of other images are none of the split's."""


@dataclass(frozen=True)
class CocoImage:
    """One image and what the annotators found in it."""

    name: str
    path: Path
    size: tuple[int, int]
    """(height, width) in px."""
    annotations: tuple[Mapping[str, Any], ...]
    """As in the file, but for `category_id`, which is a class 1 … 80; with polygons or counts that fit the image."""


def index_coco(root: Path, split: str = SPLIT) -> list[CocoImage]:
    """List the images of a split in the order of their ids; no image is opened.

    Raises DataError: no root, no annotations, annotations that are none of COCO's or name an image twice, or images
    that are not there.
    """
    content = _read_annotations(root, split)
    _check_categories(content, root)
    images = _index_images(content, root / split)
    found: dict[int, list[Mapping[str, Any]]] = {number: [] for number in images}
    for entry in _list_entries(content, "annotations"):
        number = _read_whole(entry, "image_id")
        if number not in images:
            raise DataError(
                f"every annotation of {split} must be of one of its images, but {entry.get('id')!r} is of "
                f"{entry.get('image_id')!r}."
            )
        found[number].append(_check_annotation(entry, images[number]))
    if not images:
        raise DataError(f"{split} of {root} must have images, but its annotations name none.")
    listed = [replace(images[number], annotations=tuple(found[number])) for number in sorted(images)]
    missing = [image.path for image in listed if not image.path.is_file()]
    if missing:
        raise DataError(
            f"every image of {split} must be there, but {len(missing)} of {len(listed)} are missing, first "
            f"{missing[0]}. Unpack {split}.zip into {root}."
        )
    return listed


def encode_annotations(image: CocoImage) -> list[dict[str, Any]]:
    """Return the annotations of an image of `index_coco` with compressed run-length codes."""
    return [{**x, "segmentation": _encode(x["segmentation"], *image.size)} for x in image.annotations]


def _read_annotations(root: Path, split: str) -> dict[str, Any]:
    path = root / "annotations" / f"instances_{split}.json"
    if not root.is_dir():
        raise DataError(f"`--coco` must be a folder, but {root} is none.")
    if not path.is_file():
        raise DataError(
            f"a COCO root must hold annotations, but there is no {path}. Unpack annotations_trainval2017.zip and "
            f"{split}.zip into {root}, or leave --coco out."
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} must hold JSON, but {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a mapping, but holds {type(content).__name__}.")
    return content


def _list_entries(content: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"COCO's annotations must have a list of mappings under {key!r}, but have not.")
    return entries


def _check_categories(content: Mapping[str, Any], root: Path) -> None:
    """Refuse others than COCO's, or COCO's under other ids: a prediction would be judged as something else."""
    names = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    entries = _list_entries(content, "categories")
    for entry in entries:
        if names.get(_read_whole(entry, "id")) != entry.get("name"):
            raise DataError(
                f"the categories of {root} must be COCO's 80, but {entry.get('id')!r} is {entry.get('name')!r}. "
                "Other datasets in COCO's layout cannot be judged."
            )
    if missing := sorted(names.keys() - {entry["id"] for entry in entries}):
        raise DataError(
            f"the categories of {root} must be COCO's 80, but {len(missing)} are missing, first {names[missing[0]]!r}. "
            "Other datasets in COCO's layout cannot be judged."
        )


def _index_images(content: Mapping[str, Any], folder: Path) -> dict[int, CocoImage]:
    """Return images by their ids, without annotations. Raises DataError: one would stand for another."""
    images: dict[int, CocoImage] = {}
    names: set[str] = set()
    for entry in _list_entries(content, "images"):
        number, image = _read_whole(entry, "id"), _describe(entry, folder)
        if number < 0 or number in images or image.name in names:
            raise DataError(
                "images must have an `id` that is a whole number from 0 and a `file_name`, no two the same, but got "
                f"{entry.get('id')!r}, {image.name}."
            )
        images[number] = image
        names.add(image.name)
    return images


def _read_whole(entry: Mapping[str, Any], key: str) -> int:
    """Return a whole number; -1, which is none of COCO's, where there is none."""
    number = entry.get(key)
    return number if type(number) is int else -1


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FAR  # NaN is not less


def _is_measure(value: object) -> bool:
    return _is_number(value) and value >= 0


def _describe(entry: Mapping[str, Any], folder: Path) -> CocoImage:
    name, height, width = entry.get("file_name"), _read_whole(entry, "height"), _read_whole(entry, "width")
    if not isinstance(name, str) or not _is_plain(name):
        raise DataError(f"the `file_name` of an image must be a plain name, but got {name!r}.")
    if not all(0 < side <= _MAX_SIDE_PX for side in (height, width)):
        raise DataError(f"{name} must have a height and a width in px, but its annotations say otherwise.")
    return CocoImage(name, folder / name, (height, width), ())


def _is_plain(name: str) -> bool:
    """Say whether a text can be the name of a file, and nothing but its name."""
    is_name = PurePosixPath(name).name == name and name.isprintable() and not name.startswith(".")
    return is_name and len(name.encode()) <= _MAX_NAME_BYTES


def _check_annotation(entry: Mapping[str, Any], image: CocoImage) -> Mapping[str, Any]:
    """Return an annotation with its class. Raises DataError: it misses what an evaluation reads."""
    class_index = _CLASS_OF_ID.get(_read_whole(entry, "category_id"))
    box, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd", 0)
    is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and all(map(_is_measure, box[2:]))
    if class_index is None or not is_box or not _is_measure(area) or crowd not in (0, 1):
        raise DataError(
            "an annotation must have a category of COCO's, a `bbox` of four numbers, an `area` and `iscrowd` 0 or 1, "
            f"no side and no area below 0, but annotation {entry.get('id')} has {entry.get('category_id')!r}, {box!r}, "
            f"{area!r}, {crowd!r}."
        )
    if not _is_segmentation(entry.get("segmentation"), *image.size):
        raise DataError(
            "a segmentation must be polygons or the counts of its image's runs, but that of annotation "
            f"{entry.get('id')} of {image.name} is neither."
        )
    return {
        "id": entry.get("id"),
        "category_id": class_index,
        "bbox": [float(edge) for edge in entry["bbox"]],
        "area": float(entry["area"]),
        "iscrowd": int(crowd),
        "segmentation": entry["segmentation"],
    }


def _is_segmentation(segmentation: object, height: int, width: int) -> bool:
    if isinstance(segmentation, list):
        return bool(segmentation) and all(map(_is_polygon, segmentation))
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return False
    counts = segmentation.get("counts")
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return False
    return sum(counts) == height * width


def _is_polygon(part: object) -> bool:
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(_is_number(place) and abs(place) < 2 * _MAX_SIDE_PX for place in part)
    )


def _encode(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Return polygons or counts as a compressed code of the image."""
    codes = coco_mask.frPyObjects(segmentation, height, width)
    code: dict[str, Any] = coco_mask.merge(codes) if isinstance(segmentation, list) else codes
    return code
