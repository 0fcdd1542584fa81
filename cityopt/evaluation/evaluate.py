"""Score a model on cached images: the validation of each epoch, and the evaluation after promotion.

Images stream through: predictions are run-length encoded as soon as they are made, each image is scored and
let go, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cityopt.data.cache import ImageCache
from cityopt.data.targets import find_train_ids
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.evaluation.semantic import SemanticEvaluator
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.models.semantic_model import SemanticModel, make_map

BATCH_PIXELS = 2**20
MAX_BATCH = 8

OnImage = Callable[[int, Prediction | SemanticMap], None]
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
    semantic_evaluator: SemanticEvaluator | None = None,
) -> dict[str, float]:
    """Return the metrics of the model's task, `<prefix>/coco/…` or `<prefix>/semantic/…`, NaN where nothing is to find.

    Semantic models also get `<prefix>/loss/…`, the mean over images of the loss that they train with; where the caller
    wants more than a summary, it gives the `semantic_evaluator` that judges them. The model must be on `device`; it is
    left in the mode, training or evaluation, that it came in.
    """
    if isinstance(model, SemanticModel):
        judge = semantic_evaluator or SemanticEvaluator()
        return _evaluate_semantic(model, cache, indices, device, batch_size, prefix, on_image, judge)
    evaluator = CocoEvaluator()
    for index, prediction in predict_images(model, cache, indices, device=device, batch_size=batch_size):
        assert isinstance(prediction, Prediction)
        evaluator.add(cache.names[index], np.asarray(cache.instances[index]), prediction)
        if on_image is not None:
            on_image(index, prediction)
    return {f"{prefix}/{name}": value for name, value in evaluator.summarize().items()}


def _evaluate_semantic(
    model: SemanticModel,
    cache: ImageCache,
    indices: Sequence[int],
    device: torch.device,
    batch_size: int,
    prefix: str,
    on_image: OnImage | None,
    evaluator: SemanticEvaluator,
) -> dict[str, float]:
    """Score maps of label ids and take the loss from the same logits."""
    sums, num_images = dict[str, float](), 0
    for some, images in _load_images(model, cache, indices, device, batch_size):
        for index, logits in zip(some, model.find_logits(images), strict=True):
            raster = np.asarray(cache.instances[index])
            labels = torch.from_numpy(find_train_ids(raster)).long().to(device)
            for name, loss in model.judge(logits[None], labels[None]).items():
                sums[name] = sums.get(name, 0.0) + float(loss)
            found = make_map(logits)
            evaluator.add(cache.names[index], raster, found.label_ids)
            num_images += 1
            if on_image is not None:
                on_image(index, found)
    losses = {name: value / num_images for name, value in sums.items()}
    losses["total"] = sum(losses.values())
    return {f"{prefix}/loss/{name}": value for name, value in losses.items()} | {
        f"{prefix}/{name}": value for name, value in evaluator.summarize().items()
    }


def predict_images(
    model: SegmentationModel,
    cache: ImageCache,
    indices: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[int, Prediction | SemanticMap]]:
    """Yield index and prediction of cached images in the order of `indices`, in full float32 precision."""
    for some, images in _load_images(model, cache, indices, device, batch_size):
        with torch.inference_mode():
            predictions = model.predict(images)
        yield from zip(some, predictions, strict=True)


def _load_images(
    model: SegmentationModel, cache: ImageCache, indices: Sequence[int], device: torch.device, batch_size: int
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield indices and images `(3, H, W)` float32 of each batch, with the model in evaluation mode meanwhile."""
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(indices), batch_size):
            some = list(indices[start : start + batch_size])
            pixels = torch.from_numpy(np.ascontiguousarray(cache.images[some])).to(device)
            with torch.inference_mode():
                images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
            yield some, list(images.unbind())
    finally:
        model.train(was_training)


def choose_batch_size(size: tuple[int, int]) -> int:
    """Return how many images of a size (height, width) are predicted at once: about a million pixels, at most 8.

    It depends on nothing else, so that the same model gets the same score to the last bit wherever it is judged.
    """
    return max(1, min(MAX_BATCH, BATCH_PIXELS // (size[0] * size[1])))
