"""ResNet + FPN with a light head that classes every pixel: what pretrains Mask R-CNN's backbone on coarse labels.

Each pyramid level climbs to a quarter of the image by steps of 3 x 3 convolution, group norm, ReLU and bilinear
doubling (P2, there already, has the one convolution); the sum of all levels is classed and enlarged by 4. The backbone
is Mask R-CNN's own module, so that its tensors move over as they are (`training/checkpoint.export_backbone`).

Shapes: B images, C = 19 classes, H and W any size of at least 1 px: images are padded to multiples of 32 at the right
and bottom by repeating their border, and logits are cropped.

Source: Kirillov et al., Panoptic Feature Pyramid Networks (1901.02446), section 3.1 and figure 3.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cityopt.config import ModelConfig
from cityopt.models.backbone import STRIDES, Backbone, Norm
from cityopt.models.semantic_model import NUM_CLASSES, SemanticModel
from cityopt.models.unet import pad_to_cells

_CELL_PX = 32
_NUM_GROUPS, _GROUP_CHANNELS = 32, 4
"""Of a group norm of the published width, 128; narrower heads have fewer groups, of no fewer channels."""
_LEVELS = STRIDES[:4]
"""P2..P5: the semantic branch leaves P6 out."""


class SemanticFPN(SemanticModel):
    """Panoptic FPN's semantic branch on its own."""

    def __init__(self, config: ModelConfig, *, norm: Norm) -> None:
        """Build it with random values; see `Backbone` for `norm`."""
        super().__init__(config)
        self.backbone = Backbone(
            config.backbone,
            stem_channels=config.stem_channels,
            fpn_channels=config.fpn_channels,
            freeze_depth=config.freeze_depth,
            norm=norm,
        )
        width = config.semantic_head_channels
        self.climb = nn.ModuleList(
            _build_climb(config.fpn_channels, width, int(math.log2(stride / STRIDES[0]))) for stride in _LEVELS
        )
        self.classifier = nn.Conv2d(width, NUM_CLASSES, kernel_size=1)
        self.to(memory_format=torch.channels_last)

    def classify(self, batch: Tensor) -> Tensor:
        """Return logits; see `SemanticModel.classify`."""
        x = pad_to_cells(batch, _CELL_PX).contiguous(memory_format=torch.channels_last)
        levels = self.backbone(x)
        quarter = sum(climb(level) for climb, level in zip(self.climb, levels, strict=False))
        logits = functional.interpolate(self.classifier(quarter), x.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., : batch.shape[-2], : batch.shape[-1]]


def _build_climb(before: int, width: int, num_doublings: int) -> nn.Sequential:
    """Chain the steps of one level: `num_doublings` that double, or a single one that does not."""
    num_groups = 1 if width % _GROUP_CHANNELS else math.gcd(_NUM_GROUPS, width // _GROUP_CHANNELS)
    layers: list[nn.Module] = []
    for step in range(max(1, num_doublings)):
        convolution = nn.Conv2d(width if step else before, width, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.GroupNorm(num_groups, width), nn.ReLU(inplace=True)]
        if num_doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
