"""Score a model on cached images: the validation of each epoch, and the evaluation after promotion.

Images stream through: predictions are run-length encoded as soon as they are made, each image is scored and
let go, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from cityopt.data.cache import ImageCache
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.models.masks import Prediction
from cityopt.models.segmentation_model import SegmentationModel

BATCH_PIXELS = 2**20
MAX_BATCH = 8

OnImage = Callable[[int, Prediction], None]
"""Called with an image's index in the cache and what was found in it."""


def evaluate_model(
    model: SegmentationModel,
    cache: ImageCache,
    indices: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
    prefix: str = "val",
    on_image: OnImage | None = None,
) -> dict[str, float]:
    """Return every COCO metric as `<prefix>/coco/…`, in [0, 1], NaN where the images hold nothing to find.

    The model must be on `device`; it is left in the mode, training or evaluation, that it came in.
    """
    evaluator = CocoEvaluator()
    for index, prediction in predict_images(model, cache, indices, device=device, batch_size=batch_size):
        evaluator.add(cache.names[index], np.asarray(cache.instances[index]), prediction)
        if on_image is not None:
            on_image(index, prediction)
    return {f"{prefix}/{name}": value for name, value in evaluator.summarize().items()}


def predict_images(
    model: SegmentationModel,
    cache: ImageCache,
    indices: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[int, Prediction]]:
    """Yield index and prediction of cached images in the order of `indices`, in full float32 precision."""
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(indices), batch_size):
            some = list(indices[start : start + batch_size])
            pixels = torch.from_numpy(np.ascontiguousarray(cache.images[some])).to(device)
            with torch.inference_mode():
                images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
                predictions = model.predict(list(images.unbind()))
            yield from zip(some, predictions, strict=True)
    finally:
        model.train(was_training)


def choose_batch_size(size: tuple[int, int]) -> int:
    """Return how many images of a size (height, width) are predicted at once: about a million pixels, at most 8.

    It depends on nothing else, so that the same model gets the same score to the last bit wherever it is judged.
    """
    return max(1, min(MAX_BATCH, BATCH_PIXELS // (size[0] * size[1])))
