"""Losses of semantic segmentation: per-pixel and region losses that know pixels without a class.

Stands under the semantic models. Every function leaves out pixels with the target 255, and returns 0 with a gradient
of 0 where nothing else is left: a batch of nothing but void must not turn into NaN.

Shapes: B images, C classes, `logits (B, C, H, W)` of any float type, `target (B, H, W)` int64 in 0 … C - 1 or 255.

Sources: focal loss, Lin et al. 2017 (arXiv 1708.02002), equation 4; Dice loss, Milletari et al. 2016
(arXiv 1606.04797), section 3, with squares in the denominator; class weights, Paszke et al. 2016 (arXiv 1606.02147),
section 5.1.
"""

import torch
from torch import Tensor
from torch.nn import functional

from cityopt.labels import VOID

_WEIGHT_OFFSET = 1.02


def cross_entropy(logits: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy over pixels with a class, each weighing as much as `weights (C,)` says."""
    logits = logits.float()
    total = functional.cross_entropy(logits, target, weights, ignore_index=VOID, reduction="sum")
    known = target != VOID
    mass = known.sum() if weights is None else weights[target.where(known, 0)].where(known, 0).sum()
    return total / mass.clamp(min=torch.finfo(torch.float32).tiny)


def focal(logits: Tensor, target: Tensor, weights: Tensor | None = None, *, gamma: float = 2.0) -> Tensor:
    """Return the focal loss: cross-entropy times (1 - p)^gamma, averaged as `cross_entropy` does."""
    logits = logits.float()
    known = target != VOID
    chosen = target.where(known, 0)
    log_probability = functional.log_softmax(logits, dim=1).gather(1, chosen[:, None])[:, 0]
    scale = known.float() if weights is None else weights[chosen].where(known, 0)
    loss = -((1 - log_probability.exp()) ** gamma) * log_probability
    return (loss * scale).sum() / scale.sum().clamp(min=torch.finfo(torch.float32).tiny)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Return 1 - the mean soft Dice coefficient over the classes that the batch holds."""
    known = (target != VOID)[:, None]
    probability = functional.softmax(logits.float(), dim=1) * known
    truth = functional.one_hot(target.where(known[:, 0], 0), logits.shape[1]).permute(0, 3, 1, 2) * known
    overlap = (probability * truth).sum(dim=(0, 2, 3))
    mass = (probability**2 + truth).sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    score = 2 * overlap / mass.clamp(min=torch.finfo(torch.float32).tiny)
    return ((1 - score) * present).sum() / present.sum().clamp(min=1)


def weigh_classes(num_pixels: Tensor) -> Tensor:
    """Return class weights `(C,)` in 1.42 … 50.5 from the pixels of each class: 1 / ln(1.02 + share)."""
    share = num_pixels.double() / num_pixels.sum().clamp(min=1)
    return (1 / torch.log(_WEIGHT_OFFSET + share)).float()
