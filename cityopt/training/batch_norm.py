"""Batch norm whose statistics are those of all ranks, so that a shared batch trains as an undivided one does.

On CUDA it is torch's `SyncBatchNorm`, which knows no CPU. There it is the one below: mean and variance from sums over
all ranks, whose gradients are summed too.

Shapes: B images of this rank, C channels, `x (B, C, H, W)` of any float type.

Source: Ioffe & Szegedy 2015 (arXiv 1502.03167), algorithm 1, over a batch that lies on several devices.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable


def synchronise_norms(module: nn.Module) -> None:
    """Replace the batch norms that learn, in place, by ones of the same values that look at all ranks.

    Frozen ones, whose statistics are constant, stay.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d) and child.weight.requires_grad:
            setattr(module, name, _synchronise(child))
        else:
            synchronise_norms(child)


class CommonBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all ranks, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; in evaluation mode by the running statistics, which need no other rank."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        wide = x.float()
        size = wide.new_tensor([x.numel() / x.shape[1]])
        sums = _sum_over_ranks(torch.cat([wide.sum(dim=(0, 2, 3)), size]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean[:, None, None]
        variance = _sum_over_ranks(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _sum_over_ranks(values: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(values)
    return total


def _synchronise(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.is_cuda:
        common: nn.BatchNorm2d | nn.SyncBatchNorm = nn.SyncBatchNorm(norm.num_features, norm.eps, norm.momentum)
    else:
        common = CommonBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    common.weight, common.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(common, name, buffer)
    return common.train(norm.training)
