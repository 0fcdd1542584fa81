"""Small networks, scenes and states that the tests of models share."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from cityopt.config import ModelConfig
from cityopt.models.masks import Rle

SMALL = ModelConfig(
    backbone="resnet18",
    weights="none",
    freeze_depth=0,
    anchors="default",
    stem_channels=16,
    fpn_channels=16,
    box_head_channels=32,
    mask_head_channels=16,
    mask_head_layers=1,
    rpn_pre_nms=100,
    rpn_post_nms=50,
    roi_samples=32,
)


def draw_scene(
    seed: int, *, size: tuple[int, int] = (96, 160), num_instances: int = 4
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw an image of noise and coloured rectangles, and its target for either task."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    image = torch.rand(3, height, width, generator=generator)
    instance_map = torch.zeros(size, dtype=torch.int32)
    for number in range(num_instances):
        side_y, side_x = torch.randint(10, 40, (2,), generator=generator).tolist()
        y = int(torch.randint(0, height - side_y, (1,), generator=generator))
        x = int(torch.randint(0, width - side_x, (1,), generator=generator))
        instance_map[y : y + side_y, x : x + side_x] = number + 1
        image[:, y : y + side_y, x : x + side_x] = number / max(1, num_instances)
    boxes, kept = [], torch.zeros_like(instance_map)
    for number in range(num_instances):
        y, x = (instance_map == number + 1).nonzero(as_tuple=True)
        if len(y):
            boxes.append([int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
            kept[instance_map == number + 1] = len(boxes)
    classes = torch.arange(len(boxes)) % 8 + 1
    train_ids = torch.cat([torch.zeros(1), classes + 10]).to(torch.uint8)
    return image, {
        "boxes_xyxy": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "classes": classes,
        "instance_map": kept,
        "label_map": train_ids[kept],
    }


def decode_masks(codes: list[Rle]) -> NDArray[np.uint8]:
    """Decode `(H, W, N)` with pycocotools, whose arrays numpy 2 warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco_mask.decode(codes)
