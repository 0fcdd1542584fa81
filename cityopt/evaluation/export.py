"""Write predictions as others read them: the official submission trees, and COCO's JSON.

Stands beside the protocols, on the same stream of full-size predictions. The official scripts and pycocotools find in
these files the numbers that the protocols give. An export appears when it is whole.

    <folder>/instances/<image>_pred.txt        lines `masks/<image>_<k>.png labelId score`; a test submission's tree
    <folder>/instances/masks/<image>_<k>.png   one binary mask of full size per line
    <folder>/pixels/<image>_pred.png           raw label ids of the masks of at least .5, the best on top, 0 elsewhere
    <folder>/coco/ground_truth.json            images, annotations with groups as crowds, categories 1 … 8
    <folder>/coco/segm.json, coco/bbox.json    results, apart: with both, pycocotools takes a mask's area from its box

Scores are written with all their digits: two that differ must not become a tie.

Source: cityscapesScripts, evaluation/evalInstanceLevelSemanticLabeling.py (readPredInfo) and
evalPixelLevelSemanticLabeling.py (getPrediction); the data format on cocodataset.org.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cityopt.config import Task
from cityopt.data.cityscapes import Frame
from cityopt.errors import StoreError
from cityopt.evaluation.coco_ap import KINDS, CocoEvaluator, describe_results
from cityopt.evaluation.semantic import paint_prediction
from cityopt.labels import THING_LABELS
from cityopt.models.masks import Prediction, Rle, SemanticMap
from cityopt.tracking.partial_folder import PartialFolder

INSTANCES, MASKS, PIXELS, COCO = "instances", "masks", "pixels", "coco"


class Export:
    """An export that is being written; `open_export` opens and ends it."""

    def __init__(self, folder: Path, task: Task = "instance") -> None:
        """Begin in an empty folder; of a semantic model there are only `pixels/`."""
        self.folder, self._task = folder, task
        if task == "semantic":
            (folder / PIXELS).mkdir()
            return
        for name in (f"{INSTANCES}/{MASKS}", PIXELS, COCO):
            (folder / name).mkdir(parents=True)
        self._evaluator = CocoEvaluator()
        self._images: list[dict[str, Any]] = []
        self._truth = JsonList(folder / COCO / "ground_truth.json", '{"annotations": [')
        self._results = {kind: JsonList(folder / COCO / f"{kind}.json") for kind in KINDS}

    def add(self, frame: Frame, raster: NDArray[Any] | None, prediction: Prediction | SemanticMap) -> None:
        """Add one image; `raster` is its raw instanceIds `(H, W)`, None without label. Raises StoreError: disk full."""
        with _naming(self.folder):
            if isinstance(prediction, SemanticMap):
                Image.fromarray(prediction.label_ids).save(self.folder / PIXELS / f"{frame.name}_pred.png")
                return
            write_instances(self.folder / INSTANCES, frame.name, prediction)
            Image.fromarray(paint_prediction(prediction)).save(self.folder / PIXELS / f"{frame.name}_pred.png")
            number = len(self._images) + 1
            height, width = prediction.size
            file = f"{frame.split}/{frame.city}/{frame.image.name}"
            self._images.append({"id": number, "file_name": file, "height": height, "width": width})
            if raster is not None:
                self._truth.extend(self._evaluator.annotate(raster, number))
            for kind, results in self._results.items():
                results.extend(describe_results(prediction, number, kind))

    def finish(self) -> None:
        """Write what ends the JSON files."""
        if self._task == "semantic":
            return
        categories = [
            {"id": index, "name": label.name, "supercategory": label.category}
            for index, label in enumerate(THING_LABELS, start=1)
        ]
        images, kinds = json.dumps(self._images), json.dumps(categories)
        self._truth.finish(f'], "images": {images}, "categories": {kinds}, "info": {{}}}}')
        for results in self._results.values():
            results.finish()

    def close(self) -> None:
        """Let go of the files, whole or not."""
        for file in () if self._task == "semantic" else (self._truth, *self._results.values()):
            file.close()


class JsonList:
    """A JSON list that is written item by item: masks of a whole split need not stay in memory."""

    def __init__(self, path: Path, head: str = "[") -> None:
        """Begin with `head`, which opens the list."""
        self._file = path.open("w", encoding="utf-8")
        self._file.write(head)
        self._comma = ""

    def extend(self, items: Iterable[dict[str, Any]]) -> None:
        """Add items, one per line; the bytes of RLE codes become text."""
        for item in items:
            self._file.write(f"{self._comma}\n{json.dumps(item, default=bytes.decode)}")
            self._comma = ","

    def finish(self, tail: str = "]") -> None:
        """Close the list with `tail`, and the file."""
        self._file.write(f"\n{tail}\n")
        self._file.close()

    def close(self) -> None:
        """Let go of the file as it is: what a full disk no longer takes was told when it was written."""
        with suppress(OSError):
            self._file.close()


def write_instances(folder: Path, name: str, prediction: Prediction) -> None:
    """Write `<name>_pred.txt` and the masks that it lists, best score first; an empty file where nothing was found."""
    lines = []
    for index, (code, class_index, score) in enumerate(
        zip(prediction.masks, prediction.classes.tolist(), prediction.scores.tolist(), strict=True)
    ):
        path = f"{MASKS}/{name}_{index:03d}.png"
        draw_mask(code).save(folder / path, compress_level=1)
        lines.append(f"{path} {THING_LABELS[class_index - 1].id} {score!r}\n")
    (folder / f"{name}_pred.txt").write_text("".join(lines), encoding="utf-8")


def draw_mask(code: Rle) -> Image.Image:
    """Return a mask as a picture of one bit per pixel; only the part with the object is unpacked."""
    from hotcoco import mask as rle_mask

    height, width = code["size"]
    picture = Image.new("1", (width, height))
    left, top, columns, rows = (int(edge) for edge in rle_mask.to_bbox(dict(code)))
    if columns and rows:
        crop = rle_mask.decode(dict(code))[top : top + rows, left : left + columns]
        picture.paste(Image.fromarray(np.ascontiguousarray(crop) > 0), (left, top))
    return picture


def check_export(folder: Path) -> None:
    """Refuse a place to write to before any work is done.

    Raises StoreError: it is a file, holds files, or cannot be looked into.
    """
    with _naming(folder):
        found = next((path.name for path in folder.iterdir()), None) if folder.is_dir() else None
        is_file = folder.exists() and not folder.is_dir()
    if is_file or found is not None:
        what = "is a file" if is_file else f"holds {found!r}"
        raise StoreError(f"`--export` must name a folder that is new or empty, but {folder} {what}. Choose another.")


@contextmanager
def open_export(folder: Path, task: Task = "instance") -> Iterator[Export]:
    """Give an export to fill; at the end it is moved to `folder`, after an error or Ctrl-C nothing stays of it.

    Raises StoreError: `folder` holds files, or cannot be written (no right to, disk full).
    """
    check_export(folder)
    with _naming(folder):
        partial = PartialFolder(folder)
    try:
        with _naming(folder):
            export = Export(partial.path, task)
        try:
            yield export
            with _naming(folder):
                export.finish()
                partial.finish()
        finally:
            export.close()
    finally:
        partial.discard()


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"the export cannot be written to {folder}: {error}. Choose another place.") from error
