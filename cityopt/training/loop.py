"""One epoch of training: micro-batches in, optimiser steps done, mean losses out.

The loop knows neither datasets nor searches. On CUDA it never waits for the device within a step: losses
are summed there and looked at every `CHECK_STEPS` steps; NaN and infinity survive a sum, so none is missed.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cityopt.config import TrainingConfig
from cityopt.data.loaders import Batch
from cityopt.errors import TrainingError
from cityopt.models.segmentation_model import SegmentationModel, Target
from cityopt.training.distributed import ALONE, JointModel, Ranks, average_each
from cityopt.training.optim import find_learning_rate, set_learning_rate

CHECK_STEPS = 20
"""Steps between two looks at the loss on CUDA; on a CPU each step is looked at."""


@dataclass(frozen=True)
class StepReport:
    """What is known after an optimiser step; `loss` is the epoch's mean so far, None between two looks.

    `images_per_s` counts the images of all ranks.
    """

    step: int
    loss: float | None
    images_per_s: float


class LossMeter:
    """Sums losses on their device and averages them over an epoch's steps, and over ranks."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Begin with no step."""
        self.num_steps = 0
        self._ranks = ranks
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor], weight: float) -> None:
        """Add the losses of a micro-batch that holds the share `weight` of its step's images."""
        for name, loss in losses.items():
            part = loss.detach().float() * weight
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def compute_means(self) -> dict[str, float]:
        """Return the mean of each loss over the steps, and `total`. Waits for the device and all ranks, once.

        Raises TrainingError `nan`, on every rank: a loss was NaN or infinite in one of the steps.
        """
        if not self._sums:
            return {}
        values = average_each(self._sums.values(), self._ranks)
        means = {name: value / self.num_steps for name, value in zip(self._sums, values, strict=True)}
        bad = [name for name, mean in means.items() if not math.isfinite(mean)]
        if bad:
            raise TrainingError(
                "nan",
                f"losses must be finite, but {', '.join(bad)} became NaN or infinite by step {self.num_steps} of the "
                "epoch. Lower training.learning_rate or set training.clip_norm.",
            )
        return {**means, "total": sum(means.values())}


def count_steps(num_images: int, training: TrainingConfig) -> int:
    """Return the optimiser steps of an epoch: images that fill no batch are left out, unless there are no others."""
    return max(1, num_images // training.batch_size)


def train_epoch(
    model: SegmentationModel,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    training: TrainingConfig,
    *,
    device: torch.device,
    first_step: int,
    num_steps: int,
    on_step: Callable[[StepReport], None],
    joint: JointModel | None = None,
) -> dict[str, float]:
    """Train on all micro-batches once and return the mean of each loss, `total` being their sum.

    `first_step` and `num_steps` place the epoch on the schedule of the whole training. `on_step` is called after
    each optimiser step. With `joint`, the model with its ranks, batches are this rank's shares and losses everybody's.

    Raises TrainingError `nan`: a loss or, after the last step, a weight is not finite.
    """
    model.train()
    joint = joint or JointModel(model)
    meter = LossMeter(joint.ranks)
    precision = choose_precision(training, device)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    check_steps = 1 if device.type == "cpu" else CHECK_STEPS
    begin, num_images = time.perf_counter(), 0
    for micro_batches in group_batches(batches, training.accumulation):
        set_learning_rate(optimizer, find_learning_rate(first_step + meter.num_steps, num_steps, training))
        optimizer.zero_grad(set_to_none=True)
        num_images += _add_gradients(joint, micro_batches, meter, device, precision) * joint.ranks.world
        loss = meter.compute_means()["total"] if meter.num_steps % check_steps == 0 else None
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, training.clip_norm)
        optimizer.step()
        on_step(StepReport(meter.num_steps, loss, num_images / (time.perf_counter() - begin)))
    means = meter.compute_means()
    _check_weights(parameters)
    return means


def choose_precision(training: TrainingConfig, device: torch.device) -> torch.dtype | None:
    """Return the dtype of autocast, None for plain float32; `auto` means bfloat16 on CUDA alone."""
    wanted = training.precision == "bfloat16" or (training.precision == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else None


def group_batches(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Group micro-batches into optimiser steps of `size`; an incomplete group is dropped unless it is the only one."""
    iterator = iter(batches)
    group = list(islice(iterator, size))
    while group:
        yield group
        group = list(islice(iterator, size))
        if len(group) < size:
            return


def move_batch(batch: Batch, device: torch.device) -> tuple[list[Tensor], list[Target]]:
    """Return images as `(3, H, W) float32 in [0, 1]` and targets, both on the device.

    All images of a batch have one size, so that bytes travel and become floats in one go.
    """
    pixels = torch.stack([image.to(device, non_blocking=True) for image in batch.images])
    targets: list[Target] = [
        {name: value.to(device, non_blocking=True) for name, value in target.items()} for target in batch.targets
    ]
    return list(pixels.float().div_(255).unbind()), targets


def _add_gradients(
    joint: JointModel,
    micro_batches: list[Batch],
    meter: LossMeter,
    device: torch.device,
    precision: torch.dtype | None,
) -> int:
    """Add the gradients of one optimiser step, each micro-batch weighed by its images; return the number of images.

    Ranks average them with the last micro-batch.
    """
    num_images = sum(len(batch.images) for batch in micro_batches)
    meter.num_steps += 1
    for number, batch in enumerate(micro_batches, start=1):
        weight = len(batch.images) / num_images
        images, targets = move_batch(batch, device)
        with joint.adding_up() if number < len(micro_batches) else nullcontext():
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                losses = joint.loss(images, targets)
            torch.autograd.backward(torch.stack([loss.float() for loss in losses.values()]).sum() * weight)
        meter.add(losses, weight)
    return num_images


def _check_weights(parameters: list[nn.Parameter]) -> None:
    """Look at all weights after the last step, whose damage no later loss would show."""
    if not bool(nn.utils.get_total_norm([parameter.detach() for parameter in parameters]).isfinite()):
        raise TrainingError(
            "nan",
            "weights must be finite, but some became NaN or infinite. "
            "Lower training.learning_rate or set training.clip_norm.",
        )
