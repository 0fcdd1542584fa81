"""Score a model on cached images: the validation of each epoch, and the evaluation after promotion.

Images stream through: predictions are run-length encoded as soon as they are made, each image is scored and
let go, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Protocol

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

_Found = list[tuple[int, Prediction | SemanticMap, dict[str, float]]]
"""Of the images of a batch: index, what a model found, and the losses of a semantic one."""


class Spread(Protocol):
    """Applies a function to batches and yields the results in their order: `map`, or one of several processes."""

    def __call__(
        self, function: Callable[[Sequence[int]], _Found], items: Sequence[Sequence[int]], /
    ) -> Iterable[_Found]:
        """Yield the results."""


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
    spread: Spread = map,
) -> dict[str, float]:
    """Return the metrics of the model's task, `<prefix>/coco/…` or `<prefix>/semantic/…`, NaN where nothing is to find.

    Semantic models also get `<prefix>/loss/…`, the mean over images of the loss that they train with; where the caller
    wants more than a summary, it gives the `semantic_evaluator` that judges them. The model must be on `device`; it is
    left in the mode, training or evaluation, that it came in. `spread` may let other processes predict batches too.
    """
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    with _evaluating(model):
        if isinstance(model, SemanticModel):
            judge = semantic_evaluator or SemanticEvaluator()
            found = spread(lambda some: _judge_maps(model, cache, some, device), batches)
            return _score_maps(found, cache, prefix, on_image, judge)
        found = spread(lambda some: _find_objects(model, cache, some, device), batches)
        return _score_objects(found, cache, prefix, on_image)


def _find_objects(model: SegmentationModel, cache: ImageCache, some: Sequence[int], device: torch.device) -> _Found:
    predictions = _predict(model, cache, some, device)
    return [(index, prediction, {}) for index, prediction in zip(some, predictions, strict=True)]


def _judge_maps(model: SemanticModel, cache: ImageCache, some: Sequence[int], device: torch.device) -> _Found:
    """Return maps of label ids and the loss from the same logits."""
    found: _Found = []
    for index, logits in zip(some, model.find_logits(_load_images(cache, some, device)), strict=True):
        labels = torch.from_numpy(find_train_ids(np.asarray(cache.instances[index]))).long().to(device)
        losses = {name: float(loss) for name, loss in model.judge(logits[None], labels[None]).items()}
        found.append((index, make_map(logits), losses))
    return found


def _score_objects(
    found: Iterable[_Found], cache: ImageCache, prefix: str, on_image: OnImage | None
) -> dict[str, float]:
    evaluator = CocoEvaluator()
    for index, prediction, _ in chain.from_iterable(found):
        assert isinstance(prediction, Prediction)
        evaluator.add(cache.names[index], np.asarray(cache.instances[index]), prediction)
        if on_image is not None:
            on_image(index, prediction)
    return {f"{prefix}/{name}": value for name, value in evaluator.summarize().items()}


def _score_maps(
    found: Iterable[_Found], cache: ImageCache, prefix: str, on_image: OnImage | None, evaluator: SemanticEvaluator
) -> dict[str, float]:
    sums, num_images = dict[str, float](), 0
    for index, prediction, losses in chain.from_iterable(found):
        assert isinstance(prediction, SemanticMap)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss
        evaluator.add(cache.names[index], np.asarray(cache.instances[index]), prediction.label_ids)
        num_images += 1
        if on_image is not None:
            on_image(index, prediction)
    means = {name: value / num_images for name, value in sums.items()}
    means["total"] = sum(means.values())
    return {f"{prefix}/loss/{name}": value for name, value in means.items()} | {
        f"{prefix}/{name}": value for name, value in evaluator.summarize().items()
    }


def map_images(
    model: SemanticModel, cache: ImageCache, indices: Sequence[int], *, device: torch.device, batch_size: int
) -> Iterator[tuple[int, Prediction | SemanticMap, dict[str, float]]]:
    """Yield index, map and losses of cached images; a loss is that which the model trains with."""
    with _evaluating(model):
        for start in range(0, len(indices), batch_size):
            yield from _judge_maps(model, cache, indices[start : start + batch_size], device)


def predict_images(
    model: SegmentationModel,
    cache: ImageCache,
    indices: Sequence[int],
    *,
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[int, Prediction | SemanticMap]]:
    """Yield index and prediction of cached images in the order of `indices`, in full float32 precision."""
    with _evaluating(model):
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size]
            yield from zip(some, _predict(model, cache, some, device), strict=True)


def _predict(
    model: SegmentationModel, cache: ImageCache, some: Sequence[int], device: torch.device
) -> Sequence[Prediction | SemanticMap]:
    images = _load_images(cache, some, device)
    with torch.inference_mode():
        return model.predict(images)


def _load_images(cache: ImageCache, some: Sequence[int], device: torch.device) -> list[Tensor]:
    """Return images `(3, H, W)` float32 in [0, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(cache.images[list(some)])).to(device)
    with torch.inference_mode():
        return list(pixels.permute(0, 3, 1, 2).contiguous().float().div_(255).unbind())


@contextmanager
def _evaluating(model: SegmentationModel) -> Iterator[None]:
    """Put a model into evaluation mode for the block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def choose_batch_size(size: tuple[int, int]) -> int:
    """Return how many images of a size (height, width) are predicted at once: about a million pixels, at most 8.

    It depends on nothing else, so that the same model gets the same score to the last bit wherever it is judged.
    """
    return max(1, min(MAX_BATCH, BATCH_PIXELS // (size[0] * size[1])))
