"""Score a finished checkpoint on images of the dataset: what promotion and comparison stand on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cityopt.config import RunConfig
from cityopt.data.cache import ImageCache
from cityopt.data.cityscapes import OnCount
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model
from cityopt.image_set import ImageSet
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.tracking.run_folder import Tracker
from cityopt.training.checkpoint import load_model
from cityopt.training.dataset import open_images, pick_facts, survey_dataset
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
    """Open a model and the images to judge it on, on its device."""
    assert config.data.root is not None
    device = resolve_device(config.device)
    set_threads(config.threads)
    survey = survey_dataset(config.data.root, Path(config.cache))
    cache = open_images(survey, pick_facts(survey, image_set), config, on_count)
    model = load_model(checkpoint)[0].to(device)
    with repeatable(device):
        yield model, cache, device
