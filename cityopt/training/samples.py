"""Pictures of a run: a person must see at a glance whether the model works, and where it does not.

Each run draws a few, always of the same images. A promotion's last evaluation also ranks every image by its F1 at
IoU .5 of the detections of score .5 or more (`matching.Matching.f1`) and draws the best and the worst.

    overlays/<image>.jpg
    overlays/worst/01_f1-0.00_<image>.jpg    the worst first; of equal F1, the one with more errors
    overlays/best/01_f1-1.00_<image>.jpg     the best first; of equal F1, the one with more found
    overlays/images.csv                      image, f1, found, false, missed: all images, the worst first
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cityopt.data.cache import ImageCache
from cityopt.data.cityscapes import FrameFacts, OnCount
from cityopt.evaluation.evaluate import choose_batch_size, predict_images
from cityopt.evaluation.maps import draw_maps
from cityopt.evaluation.matching import list_instances, match_detections
from cityopt.evaluation.overlays import draw_overlay, encode_picture
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import InstanceModel, SegmentationModel
from cityopt.tracking.run_folder import Tracker

NUM_SAMPLES = 4
NUM_RANKED = 8


@dataclass(frozen=True, slots=True)
class ImageScore:
    """How well a model did on one image, at score .5 and IoU .5."""

    index: int
    """In the cache."""
    name: str
    f1: float
    num_found: int
    num_false: int
    num_missed: int


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
    tracker: Tracker, model: InstanceModel, cache: ImageCache, device: torch.device, on_count: OnCount | None = None
) -> list[ImageScore]:
    """Rank all images of a cache, write the best and the worst, and return the ranking, the worst first.

    Images without an error are no worst ones, and those where nothing was found no best ones.
    """
    ranking = rank_images(model, cache, device, on_count)
    worst = [score for score in ranking if score.f1 < 1][:NUM_RANKED]
    rest = sorted(
        (score for score in ranking if score.num_found and score not in worst),
        key=lambda score: (-score.f1, -score.num_found, score.name),
    )
    names = {score.index: f"worst/{_name_rank(rank, score)}" for rank, score in enumerate(worst, start=1)}
    names |= {score.index: f"best/{_name_rank(rank, score)}" for rank, score in enumerate(rest[:NUM_RANKED], start=1)}
    _draw(tracker, model, cache, names, device)
    rows = [f"{s.name},{s.f1:.6f},{s.num_found},{s.num_false},{s.num_missed}" for s in ranking]
    tracker.write_artifact("overlays/images.csv", "\n".join(["image,f1,found,false,missed", *rows, ""]))
    return ranking


def rank_images(
    model: InstanceModel, cache: ImageCache, device: torch.device, on_count: OnCount | None = None
) -> list[ImageScore]:
    """Return the score of every image of a cache, the worst first."""
    scores = []
    batch_size = choose_batch_size(cache.size)
    for index, prediction in predict_images(model, cache, range(len(cache)), device=device, batch_size=batch_size):
        assert isinstance(prediction, Prediction)
        matching = match_detections(prediction, list_instances(np.asarray(cache.instances[index])))
        counts = matching.num_found, matching.num_false, matching.num_missed
        scores.append(ImageScore(index, cache.names[index], matching.f1, *counts))
        if on_count:
            on_count(len(scores), len(cache))
    return sorted(scores, key=lambda score: (score.f1, -score.num_false - score.num_missed, score.name))


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


def _name_rank(rank: int, score: ImageScore) -> str:
    return f"{rank:02d}_f1-{score.f1:.2f}_{score.name}"
