"""A small COCO root: rectangles and triangles of a few classes, polygons in parts, and a crowd as counts of runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cityopt.labels import COCO_IDS, COCO_NAMES

SIZE = (60, 100)
CLASSES = {"person": (40, 40, 220), "car": (200, 40, 40), "dog": (40, 200, 40)}
GROUND = 90


def list_shapes(number: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Return name and box (x, y, width, height) of what an image shows, side by side."""
    rng = np.random.default_rng([5, number])
    shapes = []
    for place, name in enumerate(CLASSES):
        x, y = 33 * place + int(rng.integers(0, 6)), int(rng.integers(2, 20))
        shapes.append((name, (x, y, int(rng.integers(20, 26)), int(rng.integers(28, 38)))))
    return shapes


def write_coco(root: Path, num_images: int = 3) -> dict[str, Any]:
    """Write the root and return what its annotations hold; images have ids with gaps, the last holds nothing."""
    folder = root / "val2017"
    folder.mkdir(parents=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": list_categories()}
    for place in range(num_images):
        number = 7 * place + 3
        rng = np.random.default_rng(number)
        pixels = rng.integers(GROUND - 20, GROUND + 20, (*SIZE, 3), dtype=np.uint8)
        name = f"{number:012d}.png"
        content["images"].append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for shape, (x, y, width, height) in list_shapes(number) if place < num_images - 1 else ():
            pixels[y : y + height, x : x + width] = CLASSES[shape]
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            content["annotations"].append(describe(content, number, shape, [polygon], (x, y, width, height)))
        Image.fromarray(pixels).save(folder / name)
    add_crowd(content)
    write_annotations(root, content)
    return content


def describe(content: dict[str, Any], image: int, name: str, segmentation: Any, box: Any) -> dict[str, Any]:
    return {
        "id": 100 + len(content["annotations"]),
        "image_id": image,
        "category_id": COCO_IDS[COCO_NAMES.index(name)],
        "segmentation": segmentation,
        "bbox": [float(edge) for edge in box],
        "area": float(box[2] * box[3]),
        "iscrowd": 0,
    }


def add_crowd(content: dict[str, Any]) -> None:
    """Add a crowd of cars along the left edge of the first image: 5 columns, as runs down the columns."""
    height, width = SIZE
    code = {"size": [height, width], "counts": [0, 5 * height, height * width - 5 * height]}
    crowd = describe(content, content["images"][0]["id"], "car", code, (0, 0, 5, height))
    content["annotations"].append({**crowd, "iscrowd": 1})


def list_categories() -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in zip(COCO_IDS, COCO_NAMES, strict=True)]


def write_annotations(root: Path, content: Any) -> None:
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
