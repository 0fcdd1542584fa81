"""U-Net, as published and with a ResNet-34 encoder.

The classic network has `depth` poolings and twice the channels after each: two 3 x 3 convolutions per level with bias,
norm and ReLU, 2 x 2 transposed convolutions on the way up. A published depth d means d + 1 poolings, which gives the
published parameter counts (121,691 for 8 channels and 3 poolings). The encoder of the second is
segmentation-models-pytorch's, whose tensors have torchvision's names.

Shapes: B images, C = 19 classes; H and W any size of at least 1 px: images are padded to whole cells at the right and
bottom by repeating their border, and logits are cropped.

Source: Ronneberger et al. 2015 (arXiv 1505.04597).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cityopt.config import ModelConfig
from cityopt.models.semantic_model import NUM_CLASSES, SemanticModel

_ENCODER_STRIDE = 32
_NUM_GROUPS = 8
"""Groups of a group norm; fewer where they do not divide the width."""
_ENCODER_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class UNet(SemanticModel):
    """The classic U-Net."""

    def __init__(self, config: ModelConfig) -> None:
        """Build it with random values."""
        super().__init__(config)
        widths = [config.start_channels * 2**level for level in range(config.depth + 1)]
        self.stride = 2**config.depth
        self.down = nn.ModuleList(
            _build_block(before, width, config.norm) for before, width in zip([3, *widths], widths, strict=False)
        )
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2) for width in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(_build_block(2 * width, width, config.norm) for width in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(widths[0], NUM_CLASSES, kernel_size=1)
        self.to(memory_format=torch.channels_last)

    def classify(self, batch: Tensor) -> Tensor:
        """Return logits; see `SemanticModel.classify`."""
        x = pad_to_cells(batch, self.stride).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([skips.pop(), rise(x)], dim=1))
        logits: Tensor = self.classifier(x)
        return logits[..., : batch.shape[-2], : batch.shape[-1]]


class UNetResNet34(SemanticModel):
    """U-Net with a ResNet-34 encoder, whose first `freeze_depth` stages stay as they are, statistics included."""

    def __init__(self, config: ModelConfig) -> None:
        """Build it with random values."""
        from segmentation_models_pytorch import Unet

        super().__init__(config)
        self.network = Unet("resnet34", encoder_weights=None, classes=NUM_CLASSES)
        stages = [name for stage in _ENCODER_STAGES[: config.freeze_depth] for name in stage]
        self._frozen = [self.network.encoder.get_submodule(name) for name in stages]
        for stage in self._frozen:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> "UNetResNet34":
        """Switch to training; frozen stages keep their statistics."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self

    def classify(self, batch: Tensor) -> Tensor:
        """Return logits; see `SemanticModel.classify`."""
        logits: Tensor = self.network(pad_to_cells(batch, _ENCODER_STRIDE))
        return logits[..., : batch.shape[-2], : batch.shape[-1]]


def pad_to_cells(batch: Tensor, cell_px: int) -> Tensor:
    """Pad images `(B, 3, H, W)` at the right and bottom to whole cells by repeating their border."""
    height, width = batch.shape[-2:]
    pad = (0, -width % cell_px, 0, -height % cell_px)
    return functional.pad(batch, pad, mode="replicate") if any(pad) else batch


def _build_block(before: int, width: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, width):
        layers += [
            nn.Conv2d(channels, width, kernel_size=3, padding=1),
            _build_norm(norm, width),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _build_norm(norm: str, width: int) -> nn.Module:
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(width)
    return nn.GroupNorm(math.gcd(_NUM_GROUPS, width), width)
