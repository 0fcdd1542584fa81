"""RoIAlign on a GPU, straight from the pyramid as the backbone leaves it: any float type, channels last, all levels.

torchvision's operator reads float32 with channels first, so each call converts whole levels and its gradients are
converted back: more work than cutting. Here a program makes one cell of one region; its channels lie side by side in
memory. `roi_heads` comes here for features on CUDA; without triton it takes torchvision's operator.

Shapes: B images, R regions, C channels, M cells per side; H, W height and width of a level.

Source: He et al., Mask R-CNN (1703.06870), section 3; the rules at borders are torchvision's, aligned.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_NUM_LEVELS = 4
_NUM_WARPS = 2


def cut_pyramid(features: Sequence[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, side: int) -> Tensor:
    """Cut each box out of its level.

    Args:
        features: P2..P5, `(B, C, H, W)` of one float type, strides 4, 8, 16 and 32.
        boxes: `(R, 4)` float32 px.
        images: `(R,)` int64, the image of each box.
        levels: `(R,)` int64 in 0..3.
        side: M.

    Returns:
        `(R, C, M, M)` of the features' type, channels last. Gradients are summed in float32.
    """
    if not len(boxes):
        return features[0].new_zeros(0, features[0].shape[1], side, side)
    levels_BCHW = [level.contiguous(memory_format=torch.channels_last) for level in features[:_NUM_LEVELS]]
    cut: Tensor = _Cut.apply(boxes.float(), images, levels, side, *levels_BCHW)
    return cut


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boxes: Tensor, images: Tensor, levels: Tensor, side: int, *features: Tensor) -> Tensor:
        """Return the regions."""
        ctx.save_for_backward(boxes, images, levels)
        ctx.side, ctx.dtype, ctx.shapes = side, features[0].dtype, [level.shape for level in features]
        channels = features[0].shape[1]
        cut_RMMC = features[0].new_empty(len(boxes), side, side, channels)
        _launch(_cut_cell, features, ctx.shapes, (boxes, images, levels), cut_RMMC)
        return cut_RMMC.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the levels."""
        given_RMMC = gradients[0].permute(0, 2, 3, 1).contiguous()
        sums = [given_RMMC.new_zeros(b, h, w, c, dtype=torch.float32) for b, c, h, w in ctx.shapes]
        _launch(_spread_cell, sums, ctx.shapes, ctx.saved_tensors, given_RMMC)
        return None, None, None, None, *(total.to(ctx.dtype).permute(0, 3, 1, 2) for total in sums)


def _launch(
    kernel: Any, maps: Sequence[Tensor], shapes: Sequence[torch.Size], where: Sequence[Tensor], cells_RMMC: Tensor
) -> None:
    num_regions, side, _, channels = cells_RMMC.shape
    heights, widths = [shape[2] for shape in shapes], [shape[3] for shape in shapes]
    kernel[(num_regions * side * side,)](
        *maps,
        *where,
        cells_RMMC,
        *heights,
        *widths,
        channels,
        SIDE=side,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=_NUM_WARPS,
    )


@triton.jit
def _place_cell(boxes, levels, images, h2, h3, h4, h5, w2, w3, w4, w5, SIDE: tl.constexpr):
    """Return image, level, its height and width, and begin, step and number of the samples along y and x."""
    cell = tl.program_id(0)
    region = cell // (SIDE * SIDE)
    row, column = (cell // SIDE) % SIDE, cell % SIDE
    level = tl.load(levels + region)
    height = tl.where(level == 0, h2, tl.where(level == 1, h3, tl.where(level == 2, h4, h5)))
    width = tl.where(level == 0, w2, tl.where(level == 1, w3, tl.where(level == 2, w4, w5)))
    scale = tl.where(level == 0, 1 / 4, tl.where(level == 1, 1 / 8, tl.where(level == 2, 1 / 16, 1 / 32)))
    left = tl.load(boxes + region * 4) * scale - 0.5
    top = tl.load(boxes + region * 4 + 1) * scale - 0.5
    cell_w = (tl.load(boxes + region * 4 + 2) * scale - 0.5 - left) / SIDE
    cell_h = (tl.load(boxes + region * 4 + 3) * scale - 0.5 - top) / SIDE
    num_y = tl.maximum(tl.ceil(cell_h).to(tl.int32), 1)
    num_x = tl.maximum(tl.ceil(cell_w).to(tl.int32), 1)
    image = tl.load(images + region)
    return (
        image,
        level,
        height,
        width,
        top + row * cell_h,
        cell_h / num_y,
        num_y,
        left + column * cell_w,
        cell_w / num_x,
        num_x,
    )


@triton.jit
def _weigh(position, length):
    """Return the two pixels around a position along an axis, and their weights; both are 0 outside the map."""
    inside = ((position >= -1) & (position <= length)).to(tl.float32)
    position = tl.maximum(position, 0.0)
    low = tl.minimum(position.to(tl.int32), length - 1)
    share = tl.where(low == length - 1, 0.0, position - low)
    return low, tl.minimum(low + 1, length - 1), inside * (1 - share), inside * share


@triton.jit
def _cut_cell(
    p2, p3, p4, p5, boxes, images, levels, cells, h2, h3, h4, h5, w2, w3, w4, w5, channels,
    SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Average the samples of one cell."""
    image, level, height, width, y0, step_y, num_y, x0, step_x, num_x = _place_cell(
        boxes, levels, images, h2, h3, h4, h5, w2, w3, w4, w5, SIDE
    )
    if level == 0:
        level_map = p2
    elif level == 1:
        level_map = p3
    elif level == 2:
        level_map = p4
    else:
        level_map = p5
    channel = tl.arange(0, BLOCK)
    known = channel < channels
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for i in range(num_y):
        top, bottom, weight_t, weight_b = _weigh(y0 + (i + 0.5) * step_y, height)
        line_t = (image * height + top) * width
        line_b = (image * height + bottom) * width
        for j in range(num_x):
            left, right, weight_l, weight_r = _weigh(x0 + (j + 0.5) * step_x, width)
            a = tl.load(level_map + (line_t + left) * channels + channel, mask=known, other=0.0).to(tl.float32)
            b = tl.load(level_map + (line_t + right) * channels + channel, mask=known, other=0.0).to(tl.float32)
            c = tl.load(level_map + (line_b + left) * channels + channel, mask=known, other=0.0).to(tl.float32)
            d = tl.load(level_map + (line_b + right) * channels + channel, mask=known, other=0.0).to(tl.float32)
            total += weight_t * (weight_l * a + weight_r * b) + weight_b * (weight_l * c + weight_r * d)
    place = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(cells + place, (total / (num_y * num_x)).to(cells.dtype.element_ty), mask=known)


@triton.jit
def _spread_cell(
    p2, p3, p4, p5, boxes, images, levels, cells, h2, h3, h4, h5, w2, w3, w4, w5, channels,
    SIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add the gradient of one cell to that of the pixels that it was made of."""
    image, level, height, width, y0, step_y, num_y, x0, step_x, num_x = _place_cell(
        boxes, levels, images, h2, h3, h4, h5, w2, w3, w4, w5, SIDE
    )
    if level == 0:
        level_map = p2
    elif level == 1:
        level_map = p3
    elif level == 2:
        level_map = p4
    else:
        level_map = p5
    channel = tl.arange(0, BLOCK)
    known = channel < channels
    place = tl.program_id(0).to(tl.int64) * channels + channel
    given = tl.load(cells + place, mask=known, other=0.0).to(tl.float32) / (num_y * num_x)
    for i in range(num_y):
        top, bottom, weight_t, weight_b = _weigh(y0 + (i + 0.5) * step_y, height)
        line_t = (image * height + top) * width
        line_b = (image * height + bottom) * width
        for j in range(num_x):
            left, right, weight_l, weight_r = _weigh(x0 + (j + 0.5) * step_x, width)
            tl.atomic_add(level_map + (line_t + left) * channels + channel, given * weight_t * weight_l, mask=known)
            tl.atomic_add(level_map + (line_t + right) * channels + channel, given * weight_t * weight_r, mask=known)
            tl.atomic_add(level_map + (line_b + left) * channels + channel, given * weight_b * weight_l, mask=known)
            tl.atomic_add(level_map + (line_b + right) * channels + channel, given * weight_b * weight_r, mask=known)
