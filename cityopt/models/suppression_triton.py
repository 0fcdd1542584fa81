"""Non-maximum suppression on a GPU for many groups of boxes at once, a program for each.

torchvision's operator takes one group after the other, and within it lets a single block of threads go through all
boxes, while the rest of the GPU waits. `proposals` comes here for boxes on CUDA; a group is a level of an image.

Shapes: G groups, K boxes of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NUM_WARPS = 8


def suppress_groups(boxes: Tensor, alive: Tensor, max_iou: float) -> Tensor:
    """Say which boxes stay when each that stays removes later ones of its group that overlap it more than `max_iou`.

    Args:
        boxes: `(G, K, 4)` float32, the best of a group first.
        alive: `(G, K)` bool, false for boxes that count for nothing.
        max_iou: The largest IoU of two boxes that both stay.

    Returns:
        `(G, K)` bool.
    """
    num_groups, count = alive.shape
    kept = alive.to(torch.int32)
    if count:
        block = triton.next_power_of_2(count)
        _suppress_group[(num_groups,)](boxes.contiguous(), kept, count, max_iou, BLOCK=block, num_warps=_NUM_WARPS)
    return kept.bool()


@triton.jit
def _suppress_group(boxes, kept, count, max_iou, BLOCK: tl.constexpr):
    boxes += tl.program_id(0) * count * 4
    kept += tl.program_id(0) * count
    lane = tl.arange(0, BLOCK)
    known = lane < count
    x0 = tl.load(boxes + lane * 4, mask=known, other=0.0)
    y0 = tl.load(boxes + lane * 4 + 1, mask=known, other=0.0)
    x1 = tl.load(boxes + lane * 4 + 2, mask=known, other=0.0)
    y1 = tl.load(boxes + lane * 4 + 3, mask=known, other=0.0)
    area = (x1 - x0) * (y1 - y0)
    stays = tl.load(kept + lane, mask=known, other=0)
    for i in range(count):
        if tl.sum(tl.where(lane == i, stays, 0), axis=0) > 0:
            left, top = tl.load(boxes + i * 4), tl.load(boxes + i * 4 + 1)
            right, bottom = tl.load(boxes + i * 4 + 2), tl.load(boxes + i * 4 + 3)
            width = tl.maximum(tl.minimum(x1, right) - tl.maximum(x0, left), 0.0)
            height = tl.maximum(tl.minimum(y1, bottom) - tl.maximum(y0, top), 0.0)
            shared = width * height
            iou = shared / ((right - left) * (bottom - top) + area - shared)
            stays = tl.where((lane > i) & (iou > max_iou), 0, stays)
    tl.store(kept + lane, stays, mask=known)
