"""Points instead of pixels: what PointRend samples, picks and refines. Pure functions; `point_rend` has the modules.

A point is x, y in [0, 1] of its box, in continuous coordinates: cell i of a grid with S cells covers
[i / S, (i + 1) / S], and a cell's value stands at its centre. Maps are read by bilinear interpolation, and are
zero outside.

Shapes: B images, R boxes, P points per box, N points in all, S cells per side of a mask, C channels.

Source: Kirillov et al., PointRend (1912.08193), section 3.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Classify = Callable[[Tensor], Tensor]
"""From points `(R, P, 2)` to logits `(R, P)`."""


def place_grid(side: int, *, device: torch.device | None = None) -> Tensor:
    """Return the centres `(S * S, 2)` of a regular grid, row by row."""
    centre = (torch.arange(side, device=device) + 0.5) / side
    y, x = torch.meshgrid(centre, centre, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def place_points(points: Tensor, boxes: Tensor) -> Tensor:
    """Return where points `(R, P, 2)` of boxes `(R, 4)` lie in the image, in the boxes' unit."""
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    return points * (high - low) + low


def weigh_neighbours(positions: Tensor, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the four cells around each position, and how much each counts.

    Args:
        positions: `(N, 2)` float32 x, y in cells.
        height: `(N,)` or `()` int64, the rows of the map.
        width: As `height`, the columns.

    Returns:
        `(N, 4)` int64 index into the flattened map, and `(N, 4)` float32 weights, 0 for a cell outside it.
    """
    corner = (positions - 0.5).floor()
    share_x, share_y = (positions - 0.5 - corner).unbind(dim=1)
    left, top = corner.long().unbind(dim=1)
    x = torch.stack([left, left + 1, left, left + 1])
    y = torch.stack([top, top, top + 1, top + 1])
    weight_x = torch.stack([1 - share_x, share_x, 1 - share_x, share_x])
    weight_y = torch.stack([1 - share_y, 1 - share_y, share_y, share_y])
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = y.clamp(min=0).minimum(height - 1) * width + x.clamp(min=0).minimum(width - 1)
    return index.T, (weight_x * weight_y * inside).T


def sample_maps(maps: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
    """Read maps at positions.

    Args:
        maps: `(B, C, H, W)`.
        positions: `(N, 2)` float32 x, y in cells of the maps.
        rows: `(N,)` int64, the map of each position.

    Returns:
        `(N, C)` float32.
    """
    num_maps, channels, height, width = maps.shape
    index, weight = weigh_neighbours(positions, rows.new_tensor(height), rows.new_tensor(width))
    table = maps.permute(0, 2, 3, 1).reshape(num_maps * height * width, channels).float()
    cells = index + (rows * (height * width))[:, None]
    sampled: Tensor = F.embedding_bag(cells, table, mode="sum", per_sample_weights=weight)
    return sampled


def measure_uncertainty(logits: Tensor) -> Tensor:
    """Return how close logits are to the border between object and background: 0 at best, negative elsewhere."""
    return -logits.abs()


def select_points(candidates: Tensor, uncertainty: Tensor, count: int) -> Tensor:
    """Return the `count` most uncertain of candidates `(R, P, 2)`, the most uncertain first."""
    row = uncertainty.topk(count, dim=1).indices
    return candidates.gather(1, row[..., None].expand(-1, -1, 2))


def enlarge(logits: Tensor) -> Tensor:
    """Double the resolution of masks `(R, S, S)` by bilinear interpolation."""
    doubled: Tensor = F.interpolate(logits[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    return doubled


def select_cells(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the most uncertain cells of masks `(R, S, S)`: index `(R, k)` row by row, and centres `(R, k, 2)`.

    k is `count`, or all cells where there are fewer.
    """
    side = logits.shape[-1]
    index = measure_uncertainty(logits.flatten(1)).topk(min(count, side**2), dim=1, sorted=False).indices
    x, y = index % side, index.div(side, rounding_mode="floor")
    return index, (torch.stack([x, y], dim=-1) + 0.5) / side


def subdivide(logits: Tensor, classify: Classify, *, steps: int, count: int) -> Tensor:
    """Refine masks `(R, S, S)` to `(R, S * 2^steps, S * 2^steps)`: enlarge, then decide the uncertain cells anew."""
    for _ in range(steps):
        logits = enlarge(logits)
        index, points = select_cells(logits, count)
        decided = classify(points).to(logits.dtype)
        logits = logits.flatten(1).scatter(1, index, decided).reshape(logits.shape)
    return logits
