"""Score a finished checkpoint on images of the dataset: what promotion and comparison stand on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from cityopt.config import RunConfig
from cityopt.data.cache import ImageCache
from cityopt.data.cityscapes import OnCount
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model, map_images, predict_images
from cityopt.evaluation.image_scores import ImageScores, InstanceScores, SemanticScores
from cityopt.image_set import ImageSet
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.models.semantic_model import SemanticModel
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.tracking.run_folder import Tracker
from cityopt.training.checkpoint import load_model
from cityopt.training.dataset import check_fingerprint, open_images, pick_facts, survey_dataset
from cityopt.training.failures import naming_failures
from cityopt.training.samples import ImageScore, write_gallery


def score_checkpoint(
    checkpoint: Path, config: RunConfig, image_set: ImageSet, *, prefix: str, on_count: OnCount | None = None
) -> dict[str, float]:
    """Return the metrics of a checkpoint as `evaluate_model` does, NaN where the images hold nothing to find.

    `config` says where the data lies, at which size it is judged and on which device. Raises DataError, WeightsError.
    """
    with _open_scored(checkpoint, config, image_set, on_count) as (model, cache, device):
        seen = iter(range(1, len(cache) + 1))
        return evaluate_model(
            model,
            cache,
            range(len(cache)),
            device=device,
            batch_size=choose_batch_size(config.data.size),
            prefix=prefix,
            on_image=lambda *_: on_count(next(seen), len(cache)) if on_count else None,
        )


def judge_images(
    checkpoint: Path, config: RunConfig, image_set: ImageSet, *, on_count: OnCount | None = None
) -> ImageScores:
    """Judge a checkpoint image by image, for a paired test with another one.

    Raises DataError, TrainingError (memory ran out), WeightsError.
    """
    with _open_scored(checkpoint, config, image_set, on_count) as (model, cache, device):
        some, batch_size = range(len(cache)), choose_batch_size(config.data.size)
        if isinstance(model, SemanticModel):
            maps = SemanticScores()
            for index, found, losses in map_images(model, cache, some, device=device, batch_size=batch_size):
                assert isinstance(found, SemanticMap)
                total = {"total": sum(losses.values())}
                maps.add(cache.names[index], np.asarray(cache.instances[index]), found.label_ids, losses | total)
                if on_count:
                    on_count(index + 1, len(cache))
            return maps
        scores = InstanceScores()
        for index, prediction in predict_images(model, cache, some, device=device, batch_size=batch_size):
            assert isinstance(prediction, Prediction)
            scores.add(cache.names[index], np.asarray(cache.instances[index]), prediction)
            if on_count:
                on_count(index + 1, len(cache))
        return scores


def draw_checkpoint(
    checkpoint: Path, config: RunConfig, image_set: ImageSet, tracker: Tracker, *, on_count: OnCount | None = None
) -> list[ImageScore]:
    """Write what a checkpoint does best and worst as `write_gallery` does.

    Raises DataError, WeightsError.
    """
    with _open_scored(checkpoint, config, image_set, on_count) as (model, cache, device):
        return write_gallery(tracker, model, cache, device, on_count)


@contextmanager
def _open_scored(
    checkpoint: Path, config: RunConfig, image_set: ImageSet, on_count: OnCount | None
) -> Iterator[tuple[SegmentationModel, ImageCache, torch.device]]:
    """Open a model and the images to judge it on, on its device. Raises TrainingError (`oom`), also from the block."""
    assert config.data.root is not None
    device = resolve_device(config.device)
    set_threads(config.threads)
    survey = survey_dataset(config.data.root, Path(config.cache))
    check_fingerprint(survey, config.fingerprint)
    cache = open_images(survey, pick_facts(survey, image_set), config, on_count)
    with repeatable(device), naming_failures("Take a device with more memory, or --device cpu."):
        yield load_model(checkpoint)[0].to(device), cache, device
