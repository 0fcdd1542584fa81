"""PointRend: Mask R-CNN whose masks are decided point by point, finely where they are uncertain.

A light head says a coarse mask of 7 x 7. A small perceptron then decides single points from the features of P2
there and the coarse mask's values there: in training at points that are mostly uncertain, in prediction on a grid
of 28 x 28 that is doubled three times, whereby only the most uncertain cells are decided anew. Backbone, proposals
and box head are Mask R-CNN's. Module names within the mask head are detectron2's.

Shapes: R regions of all images of a batch, C pyramid channels, P points per region, K classes without background,
so that class k of a region is channel k - 1.

Source: Kirillov et al., PointRend (1912.08193), sections 3 and 4; detectron2's constants.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cityopt.config import ModelConfig
from cityopt.models.backbone import STRIDES
from cityopt.models.boxes import decode_boxes
from cityopt.models.mask_rcnn import MaskRCNN
from cityopt.models.mask_targets import sample_labels, sample_masks
from cityopt.models.points import (
    measure_uncertainty,
    place_grid,
    place_points,
    sample_maps,
    select_points,
    subdivide,
)
from cityopt.models.roi_heads import BOX_WEIGHTS, Regions, RoiHeads
from cityopt.models.segmentation_model import Target

COARSE_SIDE, START_SIDE, STEPS = 7, 28, 3
"""Cells per side of the coarse mask and of the first grid of points, and how often that is doubled."""
_CUT_SIDE = 14
_POINTS_AT_ONCE, _POINTS_AT_ONCE_ON_GPU = 2**14, 2**18
"""Points that are decided together: on a CPU what fits its cache, on a GPU what keeps it busy."""
_OVERSAMPLING = 3
_UNCERTAIN_SHARE = 0.75


class CoarseHead(nn.Module):
    """From regions of P2 to a mask of 7 x 7 for every class."""

    def __init__(self, channels: int, width: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.reduce_spatial_dim_conv = nn.Conv2d(channels, width, 2, stride=2)
        self.fc1 = nn.Linear(width * COARSE_SIDE**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.prediction = nn.Linear(hidden, num_classes * COARSE_SIDE**2)
        _start_convolution(self.reduce_spatial_dim_conv)
        for layer in (self.fc1, self.fc2):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, region_RCSS: Tensor) -> Tensor:
        """Return logits `(R, K, 7, 7)` of regions `(R, C, 14, 14)`."""
        hidden = self.reduce_spatial_dim_conv(region_RCSS).relu().flatten(1)
        hidden = self.fc2(self.fc1(hidden).relu()).relu()
        logits: Tensor = self.prediction(hidden).reshape(-1, self.num_classes, COARSE_SIDE, COARSE_SIDE)
        return logits.float()


class PointHead(nn.Module):
    """The perceptron that decides points; every layer sees the coarse logits again."""

    def __init__(self, channels: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv1d(channels + num_classes, width, 1)
        self.fc2 = nn.Conv1d(width + num_classes, width, 1)
        self.fc3 = nn.Conv1d(width + num_classes, width, 1)
        self.predictor = nn.Conv1d(width + num_classes, num_classes, 1)
        for layer in (self.fc1, self.fc2, self.fc3):
            _start_convolution(layer)

    def forward(self, fine_NC: Tensor, coarse_NK: Tensor) -> Tensor:
        """Return logits `(N, K)` of points, from the features and the coarse logits `(N, K)` there."""
        x = fine_NC
        for layer in (self.fc1, self.fc2, self.fc3):
            x = F.linear(torch.cat([x, coarse_NK.to(x.dtype)], dim=1), layer.weight[..., 0], layer.bias).relu()
        x = torch.cat([x, coarse_NK.to(x.dtype)], dim=1)
        return F.linear(x, self.predictor.weight[..., 0], self.predictor.bias).float()


class PointRendMaskHead(nn.Module):
    """The coarse head and the point head, and how they read the finest pyramid level."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, width, num_classes = config.fpn_channels, config.mask_head_channels, config.num_classes
        self.coarse_head = CoarseHead(channels, width, config.coarse_head_channels, num_classes)
        self.point_head = PointHead(channels, width, num_classes)
        self.num_train, self.num_subdivision = config.train_points, config.subdivision_points

    def find_coarse(self, level_BCHW: Tensor, boxes: Tensor, images: Tensor) -> Tensor:
        """Return the coarse logits `(R, K, 7, 7)` of boxes."""
        grid = place_grid(_CUT_SIDE, device=boxes.device).expand(len(boxes), -1, 2)
        cut = read_level(level_BCHW, boxes, images, grid)
        cut = cut.reshape(len(boxes), _CUT_SIDE, _CUT_SIDE, cut.shape[-1]).permute(0, 3, 1, 2)
        logits: Tensor = self.coarse_head(cut)
        return logits

    def decide(self, level_BCHW: Tensor, boxes: Tensor, images: Tensor, coarse: Tensor, points: Tensor) -> Tensor:
        """Return the logits `(R, P, K)` of points `(R, P, 2)`, from P2 and the coarse logits."""
        fine_NC = read_level(level_BCHW, boxes, images, points).flatten(0, 1)
        logits: Tensor = self.point_head(fine_NC, read_coarse(coarse, points).flatten(0, 1))
        return logits.reshape(*points.shape[:2], coarse.shape[1])

    def draw_points(self, coarse_RSS: Tensor) -> Tensor:
        """Draw training points `(R, P, 2)`: three quarters where the coarse mask is uncertain, the rest anywhere."""
        num_boxes, num_uncertain = len(coarse_RSS), int(_UNCERTAIN_SHARE * self.num_train)
        candidates = torch.rand(num_boxes, _OVERSAMPLING * self.num_train, 2, device=coarse_RSS.device)
        uncertainty = measure_uncertainty(read_coarse(coarse_RSS[:, None], candidates)[..., 0])
        anywhere = torch.rand(num_boxes, self.num_train - num_uncertain, 2, device=coarse_RSS.device)
        return torch.cat([select_points(candidates, uncertainty, num_uncertain), anywhere], dim=1)

    def refine(self, level_BCHW: Tensor, boxes: Tensor, images: Tensor, classes: Tensor) -> Tensor:
        """Return the logits `(R, 224, 224)` of one class per box, by subdivision."""
        coarse, channel = self.find_coarse(level_BCHW, boxes, images), classes - 1

        def classify(points: Tensor) -> Tensor:
            return choose_channel(self.decide(level_BCHW, boxes, images, coarse, points), channel)

        grid = place_grid(START_SIDE, device=boxes.device).expand(len(boxes), -1, 2)
        start = classify(grid).reshape(-1, START_SIDE, START_SIDE)
        return subdivide(start, classify, steps=STEPS, count=self.num_subdivision)


class PointRendHeads(RoiHeads):
    """Mask R-CNN's heads with PointRend's for masks."""

    output_side = START_SIDE * 2**STEPS
    mask_head: PointRendMaskHead

    def build_mask_head(self, config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
        """Add the coarse head and the point head; return weight and bias of their last layers."""
        self.mask_head = PointRendMaskHead(config)
        self.predicted_mask_boxes = config.predicted_mask_boxes
        coarse, point = self.mask_head.coarse_head.prediction, self.mask_head.point_head.predictor
        return [(coarse.weight, coarse.bias), (point.weight, point.get_parameter("bias"))]

    def mask_losses(
        self, features: Sequence[Tensor], regions: Regions, offsets: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return `mask`, the coarse mask's loss, and `mask_point`, that at sampled points."""
        boxes, images, instances = regions.boxes, regions.images, regions.instances
        maps, channel = [target["instance_map"] for target in targets], regions.classes - 1
        if self.predicted_mask_boxes:
            sizes = [(m.shape[0], m.shape[1]) for m in maps]
            boxes = _clip_each(decode_boxes(offsets, boxes, BOX_WEIGHTS), images, sizes)
        coarse = self.mask_head.find_coarse(features[0], boxes, images)
        coarse_RSS = coarse[torch.arange(len(boxes), device=boxes.device), channel]
        wanted = (sample_masks(maps, images, instances, boxes, side=COARSE_SIDE) >= 0.5).float()
        with torch.no_grad():
            points = self.mask_head.draw_points(coarse_RSS)
            labels = sample_labels(maps, images, instances, place_points(points, boxes))
        logits = choose_channel(self.mask_head.decide(features[0], boxes, images, coarse, points), channel)
        return {"mask": _average_loss(coarse_RSS, wanted), "mask_point": _average_loss(logits, labels)}

    def segment(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, classes: Tensor) -> Tensor:
        """Return the logits `(R, 224, 224)` of one class per region, some regions at a time."""
        points_at_once = _POINTS_AT_ONCE if boxes.is_cpu else _POINTS_AT_ONCE_ON_GPU
        at_once = max(1, points_at_once // max(START_SIDE**2, self.mask_head.num_subdivision))
        parts = zip(*(torch.split(column, at_once) for column in (boxes, images, classes)), strict=True)
        return torch.cat([self.mask_head.refine(features[0], *part) for part in parts])


class PointRend(MaskRCNN):
    """Mask R-CNN with PointRend's mask head."""

    heads: type[RoiHeads] = PointRendHeads


def read_level(level_BCHW: Tensor, boxes: Tensor, images: Tensor, points: Tensor) -> Tensor:
    """Return the features `(R, P, C)` of the finest level at points `(R, P, 2)` of boxes in pixels."""
    positions = place_points(points, boxes).flatten(0, 1) / STRIDES[0]
    rows = images[:, None].expand(points.shape[:2]).flatten()
    return sample_maps(level_BCHW, positions, rows).reshape(*points.shape[:2], level_BCHW.shape[1])


def read_coarse(coarse_RKSS: Tensor, points: Tensor) -> Tensor:
    """Return the coarse logits `(R, P, K)` at points `(R, P, 2)`."""
    rows = torch.arange(len(points), device=points.device)[:, None].expand(points.shape[:2]).flatten()
    positions = points.flatten(0, 1) * coarse_RKSS.shape[-1]
    return sample_maps(coarse_RKSS, positions, rows).reshape(*points.shape[:2], coarse_RKSS.shape[1])


def choose_channel(logits_RPK: Tensor, channel: Tensor) -> Tensor:
    """Return the logits `(R, P)` of one channel per region."""
    return logits_RPK.gather(2, channel[:, None, None].expand(-1, logits_RPK.shape[1], 1))[..., 0]


def _clip_each(boxes: Tensor, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip boxes to their images: a box that the head drew far too large would need a mask of its size."""
    limit = boxes.new_tensor([(width, height, width, height) for height, width in sizes])
    return boxes.clamp(min=0).minimum(limit[images])


def _start_convolution(layer: nn.Conv1d | nn.Conv2d) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.get_parameter("bias"))


def _average_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean binary cross-entropy, 0 for no logits."""
    return F.binary_cross_entropy_with_logits(logits.float(), wanted, reduction="sum") / max(1, logits.numel())
