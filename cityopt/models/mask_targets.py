"""What the mask head should say: soft masks of objects on the grid of a box.

Equal to `torchvision.ops.roi_align(mask, box, (M, M), aligned=True)` with its adaptive number of
samples, but read straight from the map of instance numbers, so that no mask of the size of the image
is ever made. Bilinear sampling is separable: with R = one row of weights per cell and axis, the target
is `R_y @ crop @ R_x^T`, and the crop is the part of the map that the box covers.

Shapes: R boxes, M cells per side, S pixels per side of a crop.

Source: He et al., Mask R-CNN (1703.06870), section 3; what soft aligned targets are worth: `cityopt.models.ceiling`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cityopt.models.points import weigh_neighbours
from cityopt.models.roi_align import weigh_cells

_SMALLEST_CROP_PX = 32
_ELEMENTS_AT_ONCE = 2**24


def sample_masks(maps: Sequence[Tensor], images: Tensor, instances: Tensor, boxes: Tensor, *, side: int) -> Tensor:
    """Return the soft masks of instances on the grids of boxes.

    Args:
        maps: One per image, `(H, W)` int32: 0, or i + 1 where instance i is.
        images: `(R,)` int64, the image of each box.
        instances: `(R,)` int64, the instance of each box, from 0.
        boxes: `(R, 4)` float32 px.
        side: M.

    Returns:
        `(R, M, M)` float32 in [0, 1]; empty for R = 0.
    """
    out = torch.zeros(len(boxes), side, side, device=boxes.device)
    flat, shape, start = _join_maps(maps)
    longest = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1).tolist() if len(boxes) else []
    for crop, rows in _group_by_size(longest).items():
        for chunk in torch.split(torch.tensor(rows, device=boxes.device), max(1, _ELEMENTS_AT_ONCE // crop**2)):
            image, box = images[chunk], boxes[chunk]
            origin = (box[:, :2] - 0.5).floor().long()
            limit = shape[image]
            x = torch.arange(crop, device=boxes.device) + origin[:, :1]
            y = torch.arange(crop, device=boxes.device) + origin[:, 1:]
            column = x.clamp(min=0).minimum(limit[:, 1:] - 1)
            line = y.clamp(min=0).minimum(limit[:, :1] - 1)
            pixel = start[image][:, None, None] + line[:, :, None] * limit[:, 1:, None] + column[:, None, :]
            mask_RSS = (flat[pixel] == (instances[chunk] + 1)[:, None, None]).float()
            weights_y = weigh_cells(box[:, 1], box[:, 3], limit[:, 0], cells=side, length=crop, origin=origin[:, 1])
            weights_x = weigh_cells(box[:, 0], box[:, 2], limit[:, 1], cells=side, length=crop, origin=origin[:, 0])
            with torch.autocast(boxes.device.type, enabled=False):
                out[chunk] = weights_y @ mask_RSS @ weights_x.transpose(1, 2)
    return out


def sample_labels(maps: Sequence[Tensor], images: Tensor, instances: Tensor, positions: Tensor) -> Tensor:
    """Return how much of an instance is at positions: its mask, interpolated between pixel centres.

    Args:
        maps: As in `sample_masks`.
        images: `(R,)` int64, the image of each box.
        instances: `(R,)` int64, the instance of each box, from 0.
        positions: `(R, P, 2)` float32 px in the image.

    Returns:
        `(R, P)` float32 in [0, 1]; the mask is 0 outside the image.
    """
    flat, shape, start = _join_maps(maps)
    per_point = torch.arange(len(images), device=images.device)[:, None].expand(positions.shape[:2]).flatten()
    height, width = shape[images].unbind(dim=1)
    size = torch.stack([width, height], dim=1).float()[:, None]
    rounded = (2 * (positions / size) - 1 + 1) * (size / 2)  # as `grid_sample` rounds: labels equal detectron2's
    index, weight = weigh_neighbours(rounded.flatten(0, 1), height[per_point], width[per_point])
    shown = flat[index + start[images][per_point][:, None]] == (instances[per_point] + 1)[:, None]
    return (weight * shown).sum(dim=1).reshape(positions.shape[:2])


def _join_maps(maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels of all maps one after another, each map's `(B, 2)` height and width, and where it begins."""
    flat, shape = torch.cat([m.flatten() for m in maps]), torch.tensor([m.shape for m in maps])
    start = torch.cat([torch.zeros(1, dtype=torch.int64), shape.prod(dim=1).cumsum(0)[:-1]])
    return flat, shape.to(flat.device), start.to(flat.device)


def _group_by_size(longest: Sequence[float]) -> dict[int, list[int]]:
    """Sort boxes into crops whose side is a power of two that holds box and margin."""
    groups: dict[int, list[int]] = {}
    for row, side in enumerate(longest):
        crop = max(_SMALLEST_CROP_PX, 1 << int(side + 2).bit_length())
        groups.setdefault(crop, []).append(row)
    return groups
