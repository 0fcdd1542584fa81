"""One model on Cityscapes or on COCO, by every protocol that tells how well it carries over, and how fast it is.

Stands under the story of `cityopt transfer`, which compares models. What a model of COCO's 80 classes finds in a
street is first put in Cityscapes' classes. Metrics beside those of the protocols:

    shared/coco/…           COCO's protocol on the seven classes that both datasets know: what to compare them by. To
                            COCO a rider is a person: in streets, riders excuse persons, as COCO's crowds do
    riders_guessed/…        Cityscapes' and COCO's after `class_maps.guess_riders`; a rule of thumb, no protocol
    …_without_rider         the mean over seven classes, beside the official one in which riders count

Of every object that was found with a score of .5 and an IoU of .5 it is kept how well its mask and its boundary fit,
so that two models can be compared on the objects that both found.

Shapes: (H, W) an image's own height and width, (h, w) the size that the model sees.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from cityopt.data.cityscapes import Frame
from cityopt.data.coco import CocoImage, encode_annotations
from cityopt.data.pictures import read_picture
from cityopt.data.resizing import resize_image
from cityopt.errors import DataError
from cityopt.evaluation.boundary import (
    CITYSCAPES_RATIO,
    COCO_RATIO,
    BoundaryEvaluator,
    find_borders,
    measure_width,
)
from cityopt.evaluation.cityscapes_ap import CityscapesEvaluator
from cityopt.evaluation.cityscapes_matching import ImageMatches
from cityopt.evaluation.class_maps import PERSON, average_without_rider, guess_riders, map_prediction, select_rows
from cityopt.evaluation.coco_ap import Annotation, CocoEvaluator, annotate_raster
from cityopt.evaluation.full_resolution import decode_frames
from cityopt.evaluation.matching import SCORE, Instance, match_detections, pick_rows
from cityopt.labels import COCO_NAMES, RIDER, THING_OF_COCO
from cityopt.models.masks import Prediction, Rle
from cityopt.models.segmentation_model import InstanceModel

OnCount = Callable[[int], None]
SHORT_PX, LONG_PX = 800, 1333
"""What COCO's images are resized to: the short side, unless the long one were longer than this."""
SHARED, GUESSED = "shared", "riders_guessed"


@dataclass(frozen=True)
class FoundObject:
    """An object of the ground truth that a model found: its class, the mask found, and how well it fits."""

    class_index: int
    mask: Rle
    mask_iou: float
    boundary_iou: float


@dataclass
class Judged:
    """What a model was worth on a dataset."""

    metrics: dict[str, float] = field(default_factory=dict)
    """By name, without the images' prefix; NaN where there is nothing to find."""
    seconds: list[float] = field(default_factory=list)
    """Per image, from the resized pixels to coded masks."""
    found: dict[str, dict[int, FoundObject]] = field(default_factory=dict)
    """Objects by image and by their number in it."""
    matches: list[ImageMatches] = field(default_factory=list)
    """Cityscapes' protocol image by image; empty on COCO."""

    def time_prediction(
        self, model: InstanceModel, pixels: NDArray[np.uint8], size: tuple[int, int], device: torch.device
    ) -> Prediction:
        """Return what a model finds in pixels `(h, w, 3)`, drawn at `size`, and note the time that it takes."""
        begin = time.perf_counter()
        with torch.inference_mode():
            image = torch.from_numpy(np.array(pixels)).to(device).permute(2, 0, 1).float().div_(255)
            prediction = model.predict([image], [size])[0]
        self.seconds.append(time.perf_counter() - begin)
        return prediction

    @property
    def median_seconds(self) -> float:
        """Return the median; the first image, on which memory is made, counts only where it is alone."""
        return float(np.median(self.seconds[1:] or self.seconds))


def judge_streets(
    model: InstanceModel,
    frames: Sequence[Frame],
    *,
    is_coco: bool,
    size: tuple[int, int],
    device: torch.device,
    on_count: OnCount = lambda _: None,
) -> Judged:
    """Judge a model on labelled images in Cityscapes' layout, which it sees at `size` (h, w).

    Raises what `decode_frames` and the evaluators raise.
    """
    judge = StreetJudge(is_coco)
    for done, decoded in enumerate(decode_frames(frames, size), start=1):
        assert decoded.raster is not None
        prediction = judge.judged.time_prediction(model, decoded.image, decoded.size, device)
        judge.add(decoded.frame.name, decoded.raster, map_prediction(prediction) if is_coco else prediction)
        on_count(done)
    return judge.finish()


def judge_coco(
    model: InstanceModel, images: Sequence[CocoImage], *, device: torch.device, on_count: OnCount = lambda _: None
) -> Judged:
    """Judge a model with COCO's 80 classes on COCO, resized as detectron2 does it.

    Raises DataError: an image that cannot be read, or of another size than its annotations say.
    """
    judged, shared = Judged(), CocoEvaluator()
    judges = (CocoEvaluator(COCO_NAMES), BoundaryEvaluator(COCO_NAMES, ratio=COCO_RATIO))
    for done, image in enumerate(images, start=1):
        pixels = read_picture(image.path)
        if pixels.shape[:2] != image.size:
            raise DataError(f"{image.path} must be {image.size} (height, width), but is {pixels.shape[:2]}.")
        annotations = encode_annotations(image)
        seen = resize_image(pixels, fit_short_side(image.size))
        prediction = judged.time_prediction(model, seen, image.size, device)
        for judge in judges:
            judge.add_annotated(image.name, image.size, annotations, prediction)
        _add_shared(shared, image.name, image.size, _map_annotations(annotations), map_prediction(prediction))
        judged.found[image.name] = find_objects(prediction, annotations, COCO_RATIO)
        on_count(done)
    for judge in judges:
        judged.metrics |= judge.summarize()
    judged.metrics |= {f"{SHARED}/{name}": value for name, value in shared.summarize().items()}
    return judged


class StreetJudge:
    """The protocols that judge a model in streets, and what they gave."""

    def __init__(self, is_coco: bool) -> None:
        """Begin without images; what a model of COCO's classes finds is also judged with guessed riders."""
        self.judged = Judged()
        self._cityscapes, self._coco, self._shared = CityscapesEvaluator(), CocoEvaluator(), CocoEvaluator()
        self._boundary = BoundaryEvaluator()
        self._guessed = (CityscapesEvaluator(), CocoEvaluator()) if is_coco else ()

    def add(self, name: str, raster: NDArray[Any], prediction: Prediction) -> None:
        """Add an image: its raw instanceIds `(H, W)`, and what was found in it, in Cityscapes' classes."""
        annotations = list(annotate_raster(raster))
        self._cityscapes.add(name, raster, prediction)
        for judge in (self._coco, self._boundary):
            judge.add_annotated(name, raster.shape, annotations, prediction)
        _add_shared(self._shared, name, raster.shape, annotations, prediction)
        if self._guessed:
            riders = guess_riders(prediction)
            self._guessed[0].add(name, raster, riders)
            self._guessed[1].add_annotated(name, raster.shape, annotations, riders)
        self.judged.found[name] = find_objects(prediction, annotations, CITYSCAPES_RATIO)

    def finish(self) -> Judged:
        """Return all that was found; no image can be added afterwards."""
        metrics = self._cityscapes.summarize() | self._coco.summarize() | self._boundary.summarize()
        metrics |= average_without_rider(metrics)
        metrics |= {f"{SHARED}/{name}": value for name, value in self._shared.summarize().items()}
        for judge in self._guessed:
            metrics |= {f"{GUESSED}/{name}": value for name, value in judge.summarize().items()}
        self.judged.metrics, self.judged.matches = metrics, self._cityscapes.list_matches()
        return self.judged


def find_objects(prediction: Prediction, annotations: Sequence[Annotation], ratio: float) -> dict[int, FoundObject]:
    """Return the objects that were found, by their place in `annotations`, by the rules of `match_detections`."""
    objects = [Instance(x["category_id"], x["segmentation"], bool(x["iscrowd"])) for x in annotations]
    rows, matching = pick_rows(prediction, SCORE), match_detections(prediction, objects)
    pairs = [(row, truth) for row, truth in zip(rows, matching.truth_of, strict=True) if truth >= 0]
    width = measure_width(prediction.size, ratio)
    masks = [prediction.masks[row] for row, _ in pairs], [objects[truth].mask for _, truth in pairs]
    borders = [find_borders(codes, width) for codes in masks]
    found = {}
    for place, (row, truth) in enumerate(pairs):
        mask_iou, boundary_iou = (
            float(coco_mask.iou([own[place]], [wanted[place]], [0])[0, 0]) for own, wanted in (masks, borders)
        )
        found[truth] = FoundObject(int(prediction.classes[row]), prediction.masks[row], mask_iou, boundary_iou)
    return found


def fit_short_side(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) at which detectron2 shows an image: 800 px short, but at most 1333 px long."""
    # In detectron2's order of steps, which decides where a side lies between two pixels, as at 1 : 2.
    scale = SHORT_PX / min(size)
    sides = [SHORT_PX if side == min(size) else scale * side for side in size]
    scale = min(1.0, LONG_PX / max(sides))
    height, width = (int(side * scale + 0.5) for side in sides)
    return height, width


def _map_annotations(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return COCO's annotations of the classes that Cityscapes has too, in its classes."""
    classes = [THING_OF_COCO.get(annotation["category_id"]) for annotation in annotations]
    return [{**x, "category_id": known} for x, known in zip(annotations, classes, strict=True) if known is not None]


def _add_shared(
    judge: CocoEvaluator, name: str, size: tuple[int, ...], annotations: Sequence[Annotation], prediction: Prediction
) -> None:
    """Add an image without the riders that were found; real ones are persons that need not be found, but may be."""
    rows = np.flatnonzero(prediction.classes != RIDER)
    excused = [{**x, "category_id": PERSON, "iscrowd": 1} if x["category_id"] == RIDER else x for x in annotations]
    judge.add_annotated(name, size, excused, select_rows(prediction, rows))
