"""Pictures of a run: a person must see at a glance whether the model works, and where it does not.

Each run draws a few, always of the same images. A promotion's last evaluation also ranks every image and draws the best
and the worst: for an instance model by its F1 at IoU .5 of the detections of score .5 or more (`matching.Matching.f1`),
for a semantic one by the mean IoU over the classes that the image shows or is said to show, counted officially.

    overlays/<image>.jpg
    overlays/worst/01_f1-0.00_<image>.jpg    the worst first; of equal F1, the one with more errors
    overlays/best/01_f1-1.00_<image>.jpg     the best first; of equal F1, the one with more found
    overlays/images.csv                      image, f1, found, false, missed: all images, the worst first

A semantic model's are named `…_miou-0.41_…`, and its table has the columns image and miou.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cityopt.data.cache import ImageCache
from cityopt.data.cityscapes import FrameFacts, OnCount
from cityopt.evaluation.evaluate import choose_batch_size, predict_images
from cityopt.evaluation.maps import draw_maps
from cityopt.evaluation.matching import list_instances, match_detections
from cityopt.evaluation.overlays import draw_overlay, encode_picture
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.tracking.run_folder import Tracker

NUM_SAMPLES = 4
NUM_RANKED = 8


@dataclass(frozen=True, slots=True)
class ImageScore:
    """How well a model did on one image."""

    index: int
    """In the cache."""
    name: str
    value: float
    """F1 or mean IoU, in [0, 1]."""
    num_found: int = 0
    num_false: int = 0
    num_missed: int = 0


def choose_samples(facts: Sequence[FrameFacts], num: int = NUM_SAMPLES) -> list[int]:
    """Return the indices of at most `num` images with instances: most classes first, then most instances."""

    def rank(index: int) -> tuple[int, int, int]:
        counts = facts[index].class_counts
        return -sum(count > 0 for count in counts), -sum(counts), index

    return sorted((i for i, fact in enumerate(facts) if any(fact.class_counts)), key=rank)[:num]


def write_overlays(
    tracker: Tracker, model: SegmentationModel, cache: ImageCache, indices: Sequence[int], device: torch.device
) -> None:
    """Write `overlays/<image>.jpg`: detections beside the ground truth."""
    _draw(tracker, model, cache, {index: cache.names[index] for index in indices}, device)


def write_gallery(
    tracker: Tracker, model: SegmentationModel, cache: ImageCache, device: torch.device, on_count: OnCount | None = None
) -> list[ImageScore]:
    """Rank all images of a cache, write the best and the worst, and return the ranking, the worst first.

    Images without an error are no worst ones, and those where nothing was found no best ones; of few images, each side
    has a half.
    """
    measure = "f1" if model.task == "instance" else "miou"
    ranking = rank_images(model, cache, device, on_count)
    count = min(NUM_RANKED, (len(ranking) + 1) // 2)
    worst = [score for score in ranking if score.value < 1][:count]
    rest = sorted(
        (score for score in ranking if (score.num_found or model.task == "semantic") and score not in worst),
        key=lambda score: (-score.value, -score.num_found, score.name),
    )
    ranked = {"worst": worst, "best": rest[:count]}
    names = {
        score.index: f"{side}/{rank:02d}_{measure}-{score.value:.2f}_{score.name}"
        for side, scores in ranked.items()
        for rank, score in enumerate(scores, start=1)
    }
    _draw(tracker, model, cache, names, device)
    tracker.write_artifact("overlays/images.csv", _write_table(ranking, measure))
    return ranking


def rank_images(
    model: SegmentationModel, cache: ImageCache, device: torch.device, on_count: OnCount | None = None
) -> list[ImageScore]:
    """Return the score of every image of a cache that has one, the worst first."""
    scores = []
    batch_size = choose_batch_size(cache.size)
    found = predict_images(model, cache, range(len(cache)), device=device, batch_size=batch_size)
    for done, (index, prediction) in enumerate(found, start=1):
        scores.append(score_image(index, cache.names[index], prediction, np.asarray(cache.instances[index])))
        if on_count:
            on_count(done, len(cache))
    known = [score for score in scores if not math.isnan(score.value)]
    return sorted(known, key=lambda score: (score.value, -score.num_false - score.num_missed, score.name))


def score_image(index: int, name: str, prediction: Prediction | SemanticMap, raster: NDArray[np.uint16]) -> ImageScore:
    """Return how well a model did on one image: F1 at IoU .5, or the mean IoU of its classes; NaN if it shows none."""
    if isinstance(prediction, SemanticMap):
        evaluator = SemanticEvaluator()
        evaluator.add(name, raster, prediction.label_ids)
        return ImageScore(index, name, evaluator.summarize()[f"{evaluator.prefix}/miou"])
    matching = match_detections(prediction, list_instances(raster))
    return ImageScore(index, name, matching.f1, matching.num_found, matching.num_false, matching.num_missed)


def _write_table(ranking: Sequence[ImageScore], measure: str) -> str:
    if measure == "miou":
        rows = ["image,miou", *(f"{s.name},{s.value:.6f}" for s in ranking)]
    else:
        rows = [f"{s.name},{s.value:.6f},{s.num_found},{s.num_false},{s.num_missed}" for s in ranking]
        rows.insert(0, "image,f1,found,false,missed")
    return "\n".join([*rows, ""])


def _draw(
    tracker: Tracker, model: SegmentationModel, cache: ImageCache, names: Mapping[int, str], device: torch.device
) -> None:
    """Write `overlays/<name>.jpg` for images by their index in the cache."""
    batch_size = choose_batch_size(cache.size)
    for index, prediction in predict_images(model, cache, list(names), device=device, batch_size=batch_size):
        image, raster = np.asarray(cache.images[index]), np.asarray(cache.instances[index])
        if isinstance(prediction, SemanticMap):
            picture = draw_maps(image, prediction.label_ids, raster)
        else:
            picture = draw_overlay(image, prediction, raster)
        tracker.write_artifact(f"overlays/{names[index]}.jpg", encode_picture(picture))
