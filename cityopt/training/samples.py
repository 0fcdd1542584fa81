"""A few pictures per run, always of the same images: a person must see at a glance whether the model works."""

from collections.abc import Sequence

import numpy as np
import torch

from cityopt.data.cache import ImageCache
from cityopt.data.cityscapes import FrameFacts
from cityopt.evaluation.evaluate import choose_batch_size, predict_images
from cityopt.evaluation.overlays import draw_overlay, encode_picture
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.tracking.run_folder import Tracker

NUM_SAMPLES = 4


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
    batch_size = choose_batch_size(cache.images.shape[1:3])
    for index, prediction in predict_images(model, cache, indices, device=device, batch_size=batch_size):
        picture = draw_overlay(np.asarray(cache.images[index]), prediction, np.asarray(cache.instances[index]))
        tracker.write_artifact(f"overlays/{cache.names[index]}.jpg", encode_picture(picture, "jpeg"))
