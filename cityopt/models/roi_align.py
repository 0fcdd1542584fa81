"""RoIAlign: the part of a feature map that a box covers, on a small grid.

Aligned, with as many samples per cell as it has pixels (`sampling_ratio` 0), as detectron2 cuts regions.
Bilinear sampling and averaging act on each axis alone, so with one matrix of weights per axis the cut is
`weights_y @ map @ weights_x^T`. On a CPU and small maps that is several times as fast as torchvision's
operator, above all backward, which there is one serial scatter; elsewhere torchvision's is used.
`mask_targets` cuts masks with the same weights.

Shapes: B images, R boxes, C channels, M cells per side, L pixels along an axis.

Source: He et al., Mask R-CNN (1703.06870), section 3.
"""

import torch
from torch import Tensor
from torchvision.ops import roi_align

_LARGEST_MAP = 2**14
"""Pixels of the largest map that is cut by matrix products."""
_ELEMENTS_AT_ONCE = 2**24


def cut_map(features: Tensor, boxes: Tensor, images: Tensor, *, side: int, stride: int) -> Tensor:
    """Cut boxes out of one feature map.

    Args:
        features: `(B, C, H, W)`.
        boxes: `(R, 4)` float32 in pixels of the image, within it.
        images: `(R,)` int64 ascending, the image of each box.
        side: M.
        stride: Pixels of the image per pixel of the map.

    Returns:
        `(R, C, M, M)`.
    """
    if features.is_cpu and features.shape[2] * features.shape[3] <= _LARGEST_MAP:
        return _cut_by_products(features, boxes / stride, images, side)
    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    cut: Tensor = roi_align(features, regions, (side, side), 1 / stride, aligned=True)
    return cut


def weigh_cells(
    low: Tensor, high: Tensor, limit: Tensor, *, cells: int, length: int, origin: Tensor | None = None
) -> Tensor:
    """Return how much each pixel counts in each cell along one axis.

    A cell averages `ceil(size of the cell)` bilinear samples; one beyond the outer pixel centres of the
    map takes the outer pixel.

    Args:
        low: `(R,)` where the boxes begin, in pixels of the map.
        high: `(R,)` where they end.
        limit: `(R,)` int64, or `()`: pixels of the map along the axis.
        cells: M.
        length: L, the pixels for which weights are wanted.
        origin: `(R,)` int64, the first of these pixels; 0 if None.

    Returns:
        `(R, M, L)` float32; the weights of a cell sum to 1.
    """
    begin_R = low - 0.5
    cell_R = (high - 0.5 - begin_R) / cells  # this, and the order of sums below, round as torchvision's operator does
    count_R = cell_R.ceil().clamp(min=1)
    step_K = torch.arange(int(count_R.max()) if len(count_R) else 1, device=low.device)
    first_RM = begin_R[:, None] + torch.arange(cells, device=low.device) * cell_R[:, None]
    position = first_RM[:, :, None] + ((step_K + 0.5) * cell_R[:, None] / count_R[:, None])[:, None]
    position = position.clamp(min=0).minimum((limit - 1).expand_as(low)[:, None, None].to(position.dtype))
    if origin is not None:
        position = position - origin[:, None, None]
    first = position.floor().clamp(0, max(length - 2, 0))
    share = ((step_K < count_R[:, None]).float() / count_R[:, None])[:, None].expand_as(position)
    weights = torch.zeros(len(low), cells, length + 1, device=low.device)
    weights.scatter_add_(2, first.long(), share * (1 - position + first))
    weights.scatter_add_(2, first.long() + 1, share * (position - first))
    return weights[..., :length]


def _cut_by_products(features: Tensor, boxes: Tensor, images: Tensor, side: int) -> Tensor:
    num_images, channels, height, width = features.shape
    with torch.no_grad():
        limit_y, limit_x = torch.tensor(height), torch.tensor(width)
        weights_y = weigh_cells(boxes[:, 1], boxes[:, 3], limit_y, cells=side, length=height)
        weights_x = weigh_cells(boxes[:, 0], boxes[:, 2], limit_x, cells=side, length=width)
        counts = images.bincount(minlength=num_images).tolist()
    at_once = max(1, _ELEMENTS_AT_ONCE // (side * width * channels))
    parts = []
    rows = zip(
        features.permute(0, 2, 3, 1), torch.split(weights_y, counts), torch.split(weights_x, counts), strict=True
    )
    for map_HWC, all_y_RMH, all_x_RMW in rows:
        map_HK = map_HWC.reshape(height, width * channels)
        for y_RMH, x_RMW in zip(torch.split(all_y_RMH, at_once), torch.split(all_x_RMW, at_once), strict=True):
            lines = (y_RMH.reshape(-1, height) @ map_HK).reshape(-1, side, width, channels)
            parts.append(x_RMW[:, None] @ lines)
    return torch.cat(parts).permute(0, 3, 1, 2)
