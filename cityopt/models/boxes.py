"""Boxes as numbers that a network can learn: anchors, offsets, matches, samples.

The region proposal network and the RoI heads are both made of these.

Shapes: B images, N boxes, G ground-truth boxes; boxes are `(…, 4)` x0, y0, x1, y1 in pixels.

Source: Ren et al., Faster R-CNN (1506.01497), section 3.1; torchvision's and detectron2's constants.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest growth of a side that offsets may ask for."""


def build_cells(sizes: Sequence[Sequence[float]], ratios: Sequence[Sequence[float]]) -> Tensor:
    """Return anchors `(levels, A, 4)` float32 around the origin, unrounded; ratios are height / width."""
    size = torch.tensor(sizes, dtype=torch.float64)
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    width, height = size / root, size * root
    return (torch.stack([-width, -height, width, height], dim=-1) / 2).float()


def place_anchors(cells: Tensor, grids: Sequence[tuple[int, int]], strides: Sequence[int]) -> Tensor:
    """Return all anchors `(N, 4)` of an image, level by level, row by row, anchors of a cell together.

    Cell (i, j) of a level lies at `(j * stride, i * stride)`, whatever the image's size.
    """
    levels = []
    for cell_A4, (height, width), stride in zip(cells, grids, strides, strict=True):
        y = torch.arange(height, device=cells.device) * stride
        x = torch.arange(width, device=cells.device) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((shift + cell_A4).reshape(-1, 4))
    return torch.cat(levels)


def encode_boxes(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the offsets `(N, 4)` dx, dy, dw, dh that lead from references to boxes."""
    size = references[:, 2:] - references[:, :2]
    wanted = boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + wanted / 2 - references[:, :2] - size / 2) / size
    return torch.cat([shift, torch.log(wanted / size)], dim=1) * shift.new_tensor(weights)


def decode_boxes(offsets: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """Apply offsets `(…, 4)` to references `(…, 4)`: the inverse of `encode_boxes`."""
    offsets = offsets.float() / torch.tensor(weights, device=offsets.device)
    size = references[..., 2:] - references[..., :2]
    centre = references[..., :2] + size / 2 + offsets[..., :2] * size
    half = offsets[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes `(…, 4)` to an image of size (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def clip_each(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip boxes `(B, N, 4)` to their images, of sizes (height, width)."""
    limit = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return boxes.clamp(min=0).minimum(limit[:, None])


def match_boxes(
    truth: Tensor, boxes: Tensor, *, low: float, high: float, keep_best: bool = False
) -> tuple[Tensor, Tensor]:
    """Give every box the ground-truth box that it overlaps most.

    Args:
        truth: `(G, 4)`; with G = 0 every box is background.
        boxes: `(N, 4)`.
        low: Boxes with a smaller IoU are background.
        high: Boxes with at least this IoU are foreground; those between are neither.
        keep_best: The boxes that overlap some ground truth most are foreground at any IoU.

    Returns:
        `(N,)` int64 index of the ground-truth box, and `(N,)` int64: 1 foreground, 0 background, -1 neither.
    """
    if not len(truth):
        none = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return none, none.clone()
    overlap_GN = box_iou(truth, boxes)
    best_N, index_N = overlap_GN.max(dim=0)
    state_N = (best_N >= high).long() - ((best_N >= low) & (best_N < high)).long()
    if keep_best:
        top_G1 = overlap_GN.amax(dim=1, keepdim=True)
        state_N[((overlap_GN == top_G1) & (top_G1 > 0)).any(dim=0)] = 1
    return index_N, state_N


def sample_boxes(state: Tensor, *, count: int, positive_fraction: float) -> tuple[Tensor, Tensor]:
    """Draw foreground and background rows at random, `count` in all and at most a fraction foreground.

    Args:
        state: `(N,)`: 1 foreground, 0 background, anything else is never drawn.
        count: Rows to draw; fewer come back where there are fewer.
        positive_fraction: Largest share of foreground.

    Returns:
        Indices of the foreground rows and of the background rows.
    """
    positive, negative = (state == 1).nonzero()[:, 0], (state == 0).nonzero()[:, 0]
    num_positive = min(len(positive), int(count * positive_fraction))
    num_negative = min(len(negative), count - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]
