"""Batches of cached images with their training targets, the same to the last bit however they are loaded.

Stands between cache and training loop (and evaluation, without augmentation). Order and augmentation derive from
(seed, epoch, image) alone, so neither the number of workers nor an earlier epoch can change them.

Shapes: B images of a batch, H, W height and width in pixels, N instances of an image.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cityopt.config import DataConfig, Task
from cityopt.data.augment import augment_sample
from cityopt.data.balance import draw_images
from cityopt.data.cache import ImageCache
from cityopt.data.targets import find_instances, find_train_ids
from cityopt.runtime import derive_seed, die_with_parent

Target = dict[str, Tensor]
"""Of instances: `boxes_xyxy` (N, 4) float32 pixels, `classes` (N,) int64 in 1 … 8, `instance_map` (H, W) int32:
i + 1 where i is. Semantic: `label_map` (H, W) uint8, training ids 0 … 18 or 255."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images, their targets, and their indices in the cache."""

    images: list[Tensor]
    """(3, H, W) uint8 each."""
    targets: list[Target]
    indices: list[int]

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory; DataLoader calls this where batches go to CUDA."""
        targets = [{key: value.pin_memory() for key, value in target.items()} for target in self.targets]
        return Batch([image.pin_memory() for image in self.images], targets, self.indices)


def build_loader(
    cache: ImageCache,
    indices: Sequence[int],
    *,
    data: DataConfig,
    batch_size: int,
    seed: int,
    epoch: int,
    train: bool,
    device: torch.device | str = "cpu",
    task: Task = "instance",
    weights: NDArray[np.float64] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterable[Batch]:
    """Return the batches of one epoch over cached images.

    In training they are shuffled and augmented, and an incomplete last batch is dropped unless it is the only one;
    otherwise they come in the order of `indices`, as they are, to the last one. No index, no batch. With `weights`,
    one for each index, a training epoch draws as many images in proportion to them: see `balance.draw_images`.
    `share` is (i, n): of each batch of `batch_size` only the i-th of n equal parts, counted from 0, comes.
    """
    order = list(indices)
    if train:
        rng = np.random.default_rng(derive_seed(seed, "order", epoch))
        drawn = rng.permutation(len(order)) if weights is None else draw_images(weights, rng)
        order = [order[place] for place in drawn]
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if train and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    part, num_parts = share
    batches = [batch[part * len(batch) // num_parts : (part + 1) * len(batch) // num_parts] for batch in batches]
    return DataLoader(
        _Samples(cache, data, seed, epoch, train, task),
        batch_sampler=batches,
        num_workers=data.num_workers,
        worker_init_fn=partial(_follow_training, os.getpid()),
        collate_fn=_collate_samples,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else each epoch would draw from torch's global generator
    )


def _follow_training(training: int, _: int) -> None:
    """Let a loader's process end with that of the training: a killed one cannot end it."""
    die_with_parent(training)


_Sample = tuple[Tensor, Target, int]


class _Samples(Dataset[_Sample]):
    def __init__(self, cache: ImageCache, data: DataConfig, seed: int, epoch: int, train: bool, task: Task) -> None:
        self.cache, self.data, self.seed, self.epoch, self.train = cache, data, seed, epoch, train
        self.find_target = _find_objects if task == "instance" else _find_labels

    def __getitem__(self, index: int) -> _Sample:
        image, raster = self.cache.images[index], self.cache.instances[index]
        if self.train:
            rng = np.random.default_rng(derive_seed(self.seed, "augment", self.epoch, index))
            image, raster = augment_sample(
                image,
                raster,
                rng,
                hflip=self.data.hflip,
                scale_jitter=self.data.scale_jitter,
                crop=self.data.crop,
                color_jitter=self.data.color_jitter,
                blur=self.data.blur,
            )
        return torch.from_numpy(image.transpose(2, 0, 1).copy()), self.find_target(raster), index


def _find_objects(raster: NDArray[np.uint16]) -> Target:
    found = find_instances(raster)
    return {
        "boxes_xyxy": torch.from_numpy(found.boxes_xyxy),
        "classes": torch.from_numpy(found.classes),
        "instance_map": torch.from_numpy(found.instance_map),
    }


def _find_labels(raster: NDArray[np.uint16]) -> Target:
    return {"label_map": torch.from_numpy(find_train_ids(raster))}


def _collate_samples(samples: Sequence[_Sample]) -> Batch:
    """Make a batch of samples: four tensors cut into views, since a worker sends each tensor by a file descriptor."""
    images, targets, indices = zip(*samples, strict=True)
    if "label_map" in targets[0]:
        maps = torch.stack([target["label_map"] for target in targets])
        return Batch(list(torch.stack(images)), [{"label_map": one} for one in maps], list(indices))
    counts = [len(target["classes"]) for target in targets]
    boxes = torch.split(torch.cat([target["boxes_xyxy"] for target in targets]), counts)
    classes = torch.split(torch.cat([target["classes"] for target in targets]), counts)
    maps = torch.stack([target["instance_map"] for target in targets])
    joined = [{"boxes_xyxy": boxes[i], "classes": classes[i], "instance_map": maps[i]} for i in range(len(samples))]
    return Batch(list(torch.stack(images)), joined, list(indices))
