"""torchvision's own Mask R-CNN, assembled to the measure of a model of ours.

Anchors, proposals, regions, the heads' widths, norm and frozen stages follow the config. A backbone of standard widths
is torchvision's own; a narrower one, which torchvision cannot build, is our module. All else is torchvision's: its
transform, assignment, RoIAlign, mask targets.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from cityopt.config import DEFAULT_ANCHORS, ModelConfig
from cityopt.models.backbone import Backbone, Norm
from cityopt.models.roi_heads import NUM_CLASSES
from cityopt.models.segmentation_model import Target


class PyramidDict(nn.Module):
    """Our backbone with torchvision's manners: a dict of levels."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone, self.out_channels = backbone, channels

    def forward(self, x_B3HW: Tensor) -> OrderedDict[str, Tensor]:
        """Return P2 … P6 under torchvision's names."""
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), self.backbone(x_B3HW), strict=True))


def build_torchvision(config: ModelConfig, *, norm: Norm, size: tuple[int, int]) -> TorchvisionMaskRCNN:
    """Return torchvision's model for images of `size` (height, width), which it will not resize. Default anchors."""
    if config.anchor_table is not None:
        raise ValueError("torchvision's anchor generator makes every size in every ratio; use default anchors")
    width = config.mask_head_channels
    return TorchvisionMaskRCNN(
        build_backbone(config, norm),
        min_size=min(size),
        max_size=max(size),
        rpn_anchor_generator=AnchorGenerator(tuple((row[0],) for row in DEFAULT_ANCHORS.sizes), DEFAULT_ANCHORS.ratios),
        rpn_pre_nms_top_n_train=2 * config.rpn_pre_nms,
        rpn_pre_nms_top_n_test=config.rpn_pre_nms,
        rpn_post_nms_top_n_train=config.rpn_post_nms,
        rpn_post_nms_top_n_test=config.rpn_post_nms,
        box_head=TwoMLPHead(config.fpn_channels * 7**2, config.box_head_channels),
        box_predictor=FastRCNNPredictor(config.box_head_channels, NUM_CLASSES),
        box_batch_size_per_image=config.roi_samples,
        box_score_thresh=config.score_threshold,
        box_detections_per_img=config.num_detections,
        mask_head=MaskRCNNHeads(config.fpn_channels, [width] * config.mask_head_layers, 1),
        mask_predictor=MaskRCNNPredictor(width, width, NUM_CLASSES),
    )


def build_backbone(config: ModelConfig, norm: Norm) -> nn.Module:
    """Return torchvision's backbone, or ours under its manners where the widths are others than its."""
    if (config.stem_channels, config.fpn_channels) == (64, 256):
        return resnet_fpn_backbone(
            backbone_name=config.backbone,
            weights=None,
            norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d,
            trainable_layers=5 - config.freeze_depth,
        )
    backbone = Backbone(
        config.backbone,
        stem_channels=config.stem_channels,
        fpn_channels=config.fpn_channels,
        freeze_depth=config.freeze_depth,
        norm=norm,
    )
    return PyramidDict(backbone, config.fpn_channels)


def build_torchvision_targets(targets: Sequence[Target]) -> list[dict[str, Tensor]]:
    """Return targets as torchvision wants them: one full-size mask `(H, W)` uint8 per instance."""
    return [
        {
            "boxes": target["boxes_xyxy"],
            "labels": target["classes"],
            "masks": (
                target["instance_map"][None]
                == torch.arange(1, len(target["classes"]) + 1, device=target["instance_map"].device)[:, None, None]
            ).to(torch.uint8),
        }
        for target in targets
    ]
