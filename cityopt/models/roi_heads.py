"""RoI heads: class, box and mask of every proposed region.

The second half of Mask R-CNN. Regions are cut out of the pyramid level that suits their size by
aligned RoIAlign with an adaptive number of samples, as detectron2 does it.

Shapes: R regions of all images of a batch together, C pyramid channels, K classes with background 0: 9 for Cityscapes.

Source: He et al., Mask R-CNN (1703.06870), section 3; Lin et al., FPN (1612.03144), section 4.2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import batched_nms

from cityopt.config import ModelConfig
from cityopt.labels import THING_NAMES
from cityopt.models.backbone import STRIDES
from cityopt.models.boxes import clip_boxes, decode_boxes, encode_boxes, match_boxes, sample_boxes
from cityopt.models.kernels import has_triton
from cityopt.models.mask_targets import sample_masks
from cityopt.models.roi_align import cut_map
from cityopt.models.segmentation_model import Target

NUM_CLASSES = len(THING_NAMES) + 1
"""Cityscapes' thing classes and the background, which is class 0."""
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""How the box head's offsets are scaled."""
_BOX_SIDE, _MASK_SIDE = 7, 14
_MIN_SIDE_PX = 1e-2


@dataclass(frozen=True)
class Regions:
    """Regions of a batch: `boxes (R, 4)`, the image of each `(R,)`, and in training what each shows."""

    boxes: Tensor
    images: Tensor
    classes: Tensor
    instances: Tensor
    wanted: Tensor

    def select(self, rows: Tensor) -> "Regions":
        """Return some of the regions."""
        columns = (self.boxes, self.images, self.classes, self.instances, self.wanted)
        return Regions(*(column[rows] for column in columns))


@dataclass(frozen=True)
class Detections:
    """Found objects of one image, best first: `boxes (N, 4)`, `scores (N,)`, `classes (N,)`."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


class RoiHeads(nn.Module):
    """The box head and the mask head. Families with another mask head override what is named after masks."""

    output_side = 2 * _MASK_SIDE
    """Cells per side of a found mask."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.box_head = TwoMLPHead(config.fpn_channels * _BOX_SIDE**2, config.box_head_channels)
        self.box_predictor = FastRCNNPredictor(config.box_head_channels, config.num_classes + 1)
        self.num_samples, self.num_detections = config.roi_samples, config.num_detections
        self.score_threshold = config.score_threshold
        self.shift = 0.5 if config.flavour == "torchvision_coco" else 0.0
        mask_outputs = self.build_mask_head(config)
        _start_values(self.box_head, self.box_predictor)
        for weight, bias in mask_outputs:
            nn.init.normal_(weight, std=0.001)
            nn.init.zeros_(bias)

    def build_mask_head(self, config: ModelConfig) -> list[tuple[Tensor, Tensor]]:
        """Add the modules that segment; return weight and bias of each layer that says something, nothing at first."""
        width = config.mask_head_channels
        self.mask_head: nn.Module = MaskRCNNHeads(config.fpn_channels, [width] * config.mask_head_layers, 1)
        self.mask_predictor = MaskRCNNPredictor(width, width, config.num_classes + 1)
        output = self.mask_predictor.mask_fcn_logits
        return [(output.weight, output.bias)]

    def loss(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return `classifier`, `box` and the terms of the mask head over the sampled regions of all images."""
        regions = self._sample(proposals, targets)
        logits, offsets = self._classify(features, regions.boxes, regions.images)
        shown = regions.classes > 0
        num_regions = max(1, len(regions.boxes))
        offset_RK4 = offsets.reshape(len(offsets), -1, 4)[shown, regions.classes[shown]]
        box = F.smooth_l1_loss(offset_RK4, regions.wanted[shown], beta=1 / 9, reduction="sum") / num_regions
        classifier = F.cross_entropy(logits, regions.classes, reduction="sum") / num_regions
        masks = self.mask_losses(features, regions.select(shown), offset_RK4.detach(), targets)
        return {"classifier": classifier, "box": box, **masks}

    @torch.no_grad()
    def detect(
        self, features: Sequence[Tensor], proposals: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Classify and shift the proposals; keep the best objects of every image."""
        boxes, images = _join(proposals)
        logits, offsets = self._classify(features, boxes, images)
        score_RK = logits.softmax(dim=1)
        box_RK4 = decode_boxes(offsets.reshape(len(offsets), -1, 4), boxes[:, None], BOX_WEIGHTS)
        counts = [len(p) for p in proposals]
        return [
            self._select(clip_boxes(box, size), score)
            for box, score, size in zip(torch.split(box_RK4, counts), torch.split(score_RK, counts), sizes, strict=True)
        ]

    @torch.no_grad()
    def find_masks(self, features: Sequence[Tensor], detections: Sequence[Detections]) -> list[Tensor]:
        """Return per image the mask probabilities `(N, M, M)` of its detections."""
        boxes, images = _join([d.boxes for d in detections])
        if not len(boxes):
            return [boxes.new_zeros(0, self.output_side, self.output_side) for _ in detections]
        classes = torch.cat([d.classes for d in detections])
        logits = self.segment(features, boxes, images, classes)
        return list(torch.split(logits.sigmoid(), [len(d.boxes) for d in detections]))

    @torch.no_grad()
    def _sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> Regions:
        parts = []
        for image, (proposal, target) in enumerate(zip(proposals, targets, strict=True)):
            truth, classes = target["boxes_xyxy"], target["classes"]
            boxes = torch.cat([proposal, truth])
            instance, state = match_boxes(truth, boxes, low=0.5, high=0.5)
            positive, negative = sample_boxes(state, count=self.num_samples, positive_fraction=0.25)
            row, instance = torch.cat([positive, negative]), instance[positive]
            kept, none = boxes[row], torch.zeros_like(negative)
            wanted = torch.zeros_like(kept)
            if len(positive):
                wanted[: len(positive)] = encode_boxes(truth[instance], kept[: len(positive)], BOX_WEIGHTS)
            shown = torch.cat([classes[instance], none])
            parts.append((kept, torch.full_like(row, image), shown, torch.cat([instance, none]), wanted))
        return Regions(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def mask_losses(
        self, features: Sequence[Tensor], regions: Regions, offsets: Tensor, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the terms of the mask head over the regions that show an object.

        `offsets (R, 4)` is where the box head moves them, without gradient.
        """
        logits = self.segment(features, regions.boxes, regions.images, regions.classes)
        maps = [target["instance_map"] for target in targets]
        wanted = sample_masks(maps, regions.images, regions.instances, regions.boxes, side=logits.shape[-1])
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / max(1, logits.numel())
        return {"mask": loss}

    def _classify(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, offsets = self.box_predictor(self.box_head(cut_regions(features, boxes, images, _BOX_SIDE, self.shift)))
        return logits.float(), offsets.float()

    def segment(self, features: Sequence[Tensor], boxes: Tensor, images: Tensor, classes: Tensor) -> Tensor:
        """Return the logits `(R, M, M)` of one class per region.

        The predictor is a 2 x 2 deconvolution of stride 2 and a 1 x 1 convolution. Neither looks at its
        neighbours, so both are products over the channels, of the one class that counts.
        """
        hidden_RCSS = self.mask_head(cut_regions(features, boxes, images, _MASK_SIDE, self.shift))
        spread, classify = self.mask_predictor.conv5_mask, self.mask_predictor.mask_fcn_logits
        weight_CQ = spread.weight.permute(0, 2, 3, 1).flatten(1)
        hidden = hidden_RCSS.permute(0, 2, 3, 1).flatten(0, 2) @ weight_CQ + spread.bias.repeat(4)
        hidden_RPC = hidden.relu().reshape(len(boxes), 4 * _MASK_SIDE**2, spread.out_channels)
        weight_RC1 = classify.weight.flatten(1).index_select(0, classes)[:, :, None]
        logits = hidden_RPC @ weight_RC1 + classify.bias.index_select(0, classes)[:, None, None]
        grid = logits.reshape(-1, _MASK_SIDE, _MASK_SIDE, 2, 2).permute(0, 1, 3, 2, 4)
        chosen: Tensor = grid.reshape(-1, 2 * _MASK_SIDE, 2 * _MASK_SIDE).float()
        return chosen

    def _select(self, box_RK4: Tensor, score_RK: Tensor) -> Detections:
        """Keep scores above the threshold, suppress within each class, take the best."""
        row, column = (score_RK[:, 1:] > self.score_threshold).nonzero(as_tuple=True)
        boxes, scores, classes = box_RK4[row, column + 1], score_RK[row, column + 1], column + 1
        wide = ((boxes[:, 2:] - boxes[:, :2]) >= _MIN_SIDE_PX).all(dim=1)
        boxes, scores, classes = boxes[wide], scores[wide], classes[wide]
        best = batched_nms(boxes, scores, classes, 0.5)[: self.num_detections]
        return Detections(boxes[best], scores[best], classes[best])


def cut_regions(features: Sequence[Tensor], boxes: Tensor, images: Tensor, side: int, shift: float = 0.0) -> Tensor:
    """Return the regions `(R, C, side, side)`, each from the level of P2..P5 that suits its size.

    `shift` moves them, in cells of their level: networks that were trained with RoIAlign's first version want .5. That
    version also made regions of less than a cell one cell wide, and so does any shift.
    """
    level = find_levels(boxes)
    if shift:
        cell_R1 = boxes.new_tensor(STRIDES)[level, None]
        low, high = torch.split(boxes + shift * cell_R1, 2, dim=1)
        boxes = torch.cat([low, high.maximum(low + cell_R1)], dim=1)
    if boxes.is_cuda and has_triton():
        from cityopt.models.roi_align_triton import cut_pyramid

        return cut_pyramid(features, boxes, images, level, side)
    rows, parts = [], []
    for number, stride in enumerate(STRIDES[:4]):
        row = (level == number).nonzero()[:, 0]
        if len(row):
            rows.append(row)
            parts.append(cut_map(features[number], boxes[row], images[row], side=side, stride=stride))
    if not parts:
        return features[0].new_zeros(0, features[0].shape[1], side, side)
    cut: Tensor = torch.cat(parts)
    return cut.index_select(0, torch.cat(rows).argsort())


def find_levels(boxes: Tensor) -> Tensor:
    """Return the pyramid level of each box, 0 for P2 to 3 for P5: 224 px belong to P4."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    return (4 + torch.log2(area.sqrt() / 224 + 1e-8)).floor().clamp(2, 5).long() - 2


def _join(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Put the boxes of all images into one tensor, beside the number of each one's image."""
    images = [torch.full((len(b),), number, device=b.device) for number, b in enumerate(boxes)]
    return torch.cat(list(boxes)), torch.cat(images)


def _start_values(box_head: nn.Module, predictor: nn.Module) -> None:
    """Draw detectron2's starting values: predictors that say almost nothing yet."""
    for layer in box_head.children():
        if isinstance(layer, nn.Linear):
            nn.init.uniform_(layer.weight, -math.sqrt(3 / layer.in_features), math.sqrt(3 / layer.in_features))
            nn.init.zeros_(layer.bias)
    for layer, deviation in zip(predictor.children(), (0.01, 0.001), strict=True):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
