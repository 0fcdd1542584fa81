"""Optimiser, its parameter groups, and the learning rate of each step.

The learning rate is a closed form of the step number, so a resumed training needs no scheduler state
but that number. Steps are optimiser steps, counted from 0 over the whole training.

Source: linear scaling and warm-up, Goyal et al. 2017 (arXiv 1706.02677), sections 2.1 and 2.2; no decay on
norms and biases, He et al. 2019 (arXiv 1812.01187), section 3.1.
"""

import math
from typing import Any

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from cityopt.config import TrainingConfig

REFERENCE_BATCH = 8
WARMUP_START = 0.01
STEP_FACTOR = 0.1


def build_optimizer(model: nn.Module, training: TrainingConfig) -> Optimizer:
    """Build the optimiser over the parameters that train; its learning rate is set before each step."""
    groups = group_parameters(model, training.weight_decay)
    rate = scale_learning_rate(training)
    if training.optimizer == "sgd":
        return SGD(groups, lr=rate, momentum=training.momentum)
    return (AdamW if training.optimizer == "adamw" else Adam)(groups, lr=rate)


def group_parameters(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters: matrices and kernels decay; norms and biases, which are vectors, do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def scale_learning_rate(training: TrainingConfig) -> float:
    """Return the peak learning rate: the config's, which is per batch of 8, times batch / 8."""
    return training.learning_rate * training.batch_size / REFERENCE_BATCH


def find_learning_rate(step: int, num_steps: int, training: TrainingConfig) -> float:
    """Return the learning rate of `step` in 0..num_steps - 1: scaled peak x warm-up x schedule."""
    num_warmup = round(training.warmup_fraction * num_steps)
    warmup = 1.0
    if step < num_warmup:
        warmup = WARMUP_START + (1 - WARMUP_START) * step / num_warmup
    return scale_learning_rate(training) * warmup * _find_decay(step, num_steps, num_warmup, training)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def _find_decay(step: int, num_steps: int, num_warmup: int, training: TrainingConfig) -> float:
    if training.schedule == "step":
        passed = sum(step >= round(share * num_steps) for share in training.milestones)
        return float(STEP_FACTOR**passed)
    if training.schedule == "cosine" and step >= num_warmup:
        return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / (num_steps - num_warmup)))
    return 1.0
