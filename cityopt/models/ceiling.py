"""How good masks can get: the IoU of objects that pass through mask target and paste without any network.

A mask head that says exactly its target still loses what the grid and its geometry lose. This measures
it for cityopt's targets and paste, and for torchvision's: `python -m cityopt.models.ceiling`.

Source: He et al., Mask R-CNN (1703.06870), section 3; torchvision.models.detection.roi_heads.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from cityopt.models.mask_targets import sample_masks
from cityopt.models.masks import paste_mask

SIDES_PX = (12, 16, 32, 64, 128, 512)
_GRID = 28
_JITTER = 0.04
_MARGIN_PX = 4


class Ceiling(NamedTuple):
    """Mean IoU of objects of one size with themselves, after target and paste."""

    side_px: int
    ours: float
    torchvision: float


def measure_ceiling(sides_px: Sequence[int] = SIDES_PX, *, num_objects: int = 40, seed: int = 0) -> list[Ceiling]:
    """Measure random round shapes of each size, in boxes whose edges are off by up to 4 % of the side."""
    generator = np.random.default_rng(seed)
    rows = []
    for side in sides_px:
        pairs = [_measure_object(draw_object(side, generator), generator) for _ in range(num_objects)]
        ours, theirs = np.mean(pairs, axis=0)
        rows.append(Ceiling(side, float(ours), float(theirs)))
    return rows


def draw_object(side_px: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a wavy round shape about `side_px` long, somewhere within a slightly larger image."""
    size = side_px + 2 * _MARGIN_PX
    centre_x, centre_y = size / 2 + generator.uniform(-1, 1, 2)
    aspect = generator.uniform(0.5, 1)
    y, x = np.mgrid[:size, :size] + 0.5
    x, y = (x - centre_x) / (side_px / 2), (y - centre_y) / (side_px / 2 * aspect)
    angle, radius = np.arctan2(y, x), np.ones_like(x)
    for wave in range(2, 6):
        radius += generator.uniform(-0.15, 0.15) / wave * np.cos(wave * angle + generator.uniform(0, 2 * np.pi))
    inside: NDArray[np.bool_] = np.hypot(x, y) < radius * 0.9
    return inside


def _measure_object(mask: NDArray[np.bool_], generator: np.random.Generator) -> tuple[float, float]:
    """Return the IoU of a mask with itself, our way and torchvision's."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    length = tight[2:] - tight[:2]
    jittered = tight + generator.uniform(-_JITTER, _JITTER, 4) * np.tile(length, 2)
    box = torch.from_numpy(jittered[None].clip(0, np.tile(mask.shape[::-1], 2))).float()
    return _overlap(mask, _pass_ours(mask, box)), _overlap(mask, _pass_torchvision(mask, box))


def _pass_ours(mask: NDArray[np.bool_], box: Tensor) -> NDArray[np.bool_]:
    zero = torch.zeros(1, dtype=torch.int64)
    target = sample_masks([torch.from_numpy(mask).int()], zero, zero, box, side=_GRID)
    crop, top, left = paste_mask(target[0].numpy(), box[0].numpy(), mask.shape)
    pasted = np.zeros_like(mask)
    pasted[top : top + crop.shape[0], left : left + crop.shape[1]] = crop >= 0.5
    return pasted


def _pass_torchvision(mask: NDArray[np.bool_], box: Tensor) -> NDArray[np.bool_]:
    zero = torch.zeros(1, dtype=torch.int64)
    target = project_masks_on_boxes(torch.from_numpy(mask)[None], box, zero, _GRID)
    pasted: NDArray[np.bool_] = paste_masks_in_image(target[:, None], box, mask.shape)[0, 0].numpy() >= 0.5
    return pasted


def _overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


if __name__ == "__main__":
    print("object side | IoU at best, ours | torchvision")
    for row in measure_ceiling():
        print(f"{row.side_px:8d} px | {row.ours:17.3f} | {row.torchvision:11.3f}")
