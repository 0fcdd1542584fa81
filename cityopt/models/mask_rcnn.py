"""Mask R-CNN: backbone, region proposals and RoI heads as one network.

Images keep their size: they are normalised and padded with zeros to a multiple of 32, nothing more.
Module names are torchvision's, so its COCO checkpoint fits.

Shapes: B images of any size `(3, H, W)`, N detections of one image, M cells of a mask grid.

Source: He et al., Mask R-CNN (1703.06870).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cityopt.config import ModelConfig
from cityopt.models.backbone import Backbone, Norm
from cityopt.models.masks import Prediction, encode_masks, paste_mask, scale_boxes
from cityopt.models.proposals import RegionProposals
from cityopt.models.roi_heads import Detections, RoiHeads
from cityopt.models.segmentation_model import IMAGE_MEAN, IMAGE_STD, InstanceModel, Target

_STD = {"torchvision": IMAGE_STD, "torchvision_coco": IMAGE_STD, "detectron2": (1 / 255, 1 / 255, 1 / 255)}
"""By flavour: detectron2 takes the same mean from pixels in 0..255 and divides by nothing."""
_PAD_PX = 32


class MaskRCNN(InstanceModel):
    """Mask R-CNN with an FPN, for the eight thing classes (or COCO's)."""

    heads: type[RoiHeads] = RoiHeads
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, norm: Norm) -> None:
        """Build it with random values; see `Backbone` for `norm`."""
        super().__init__()
        self.backbone = Backbone(
            config.backbone,
            stem_channels=config.stem_channels,
            fpn_channels=config.fpn_channels,
            freeze_depth=config.freeze_depth,
            norm=norm,
            early_stride=config.flavour == "detectron2",
        )
        self.rpn = RegionProposals(config)
        self.roi_heads = self.heads(config)
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD[config.flavour]).view(3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """Return `objectness`, `rpn_box` and the terms of the heads; see `SegmentationModel.loss`."""
        features, sizes = self._extract(images)
        logits, offsets, anchors = self.rpn(features)
        proposals = self.rpn.propose(logits, offsets, anchors, sizes)
        losses = self.rpn.loss(logits, offsets, anchors, [target["boxes_xyxy"] for target in targets])
        return {**losses, **self.roi_heads.loss(features, proposals, targets)}

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        """Find the objects of each image; see `SegmentationModel.predict`."""
        wanted = [_size_of(image) for image in images] if sizes is None else sizes
        return [
            _describe(found, masks, _size_of(image), size)
            for image, size, (found, masks) in zip(images, wanted, self._find(images), strict=True)
        ]

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Behave as torchvision's detectors do: losses with targets, else a dict per image.

        The dicts hold `boxes (N, 4)`, `labels (N,)`, `scores (N,)` and `masks (N, 1, H, W)` float32 in [0, 1].
        """
        if targets is not None:
            return self.loss(images, targets)
        return [
            {
                "boxes": found.boxes,
                "labels": found.classes,
                "scores": found.scores,
                "masks": _paste_all(masks, found.boxes, _size_of(image)),
            }
            for image, (found, masks) in zip(images, self._find(images), strict=True)
        ]

    @torch.no_grad()
    def _find(self, images: Sequence[Tensor]) -> list[tuple[Detections, Tensor]]:
        """Return detections and mask probabilities `(N, M, M)` of each image."""
        features, sizes = self._extract(images)
        logits, offsets, anchors = self.rpn(features)
        proposals = self.rpn.propose(logits, offsets, anchors, sizes)
        detections = self.roi_heads.detect(features, proposals, sizes)
        return list(zip(detections, self.roi_heads.find_masks(features, detections), strict=True))

    def _extract(self, images: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
        """Return the pyramid of a batch, and the sizes of its images without padding."""
        sizes = [_size_of(image) for image in images]
        height, width = (-(-max(side) // _PAD_PX) * _PAD_PX for side in zip(*sizes, strict=True))
        shape = (len(images), 3, height, width)
        batch = torch.empty(shape, device=self.mean.device, memory_format=torch.channels_last).zero_()
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = (image - self.mean) / self.std
        return self.backbone(batch), sizes


def _size_of(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _describe(found: Detections, masks: Tensor, seen: tuple[int, int], size: tuple[int, int]) -> Prediction:
    """Return what was found in an image of one size, drawn at another."""
    boxes_xyxy = scale_boxes(found.boxes.cpu().numpy(), seen, size)
    return Prediction(
        boxes_xyxy=boxes_xyxy,
        scores=found.scores.cpu().numpy(),
        classes=found.classes.cpu().numpy(),
        masks=encode_masks(masks.cpu().numpy(), boxes_xyxy, size),
        size=size,
    )


def _paste_all(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Paste masks `(N, M, M)` into frames `(N, 1, H, W)`."""
    frames = np.zeros((len(masks), 1, *size), dtype=np.float32)
    for frame, mask, box in zip(frames, masks.cpu().numpy(), boxes.cpu().numpy(), strict=True):
        crop, top, left = paste_mask(mask, box, size)
        frame[0, top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return torch.from_numpy(frames).to(masks.device)
