"""ResNet + FPN, built explicitly: which stages train, and which norm they carry, is never a side effect.

torchvision's detection builders decide both from whether weights were given; here `freeze_depth` and
`norm` say so. Module names are torchvision's, so its checkpoints fit.

Shapes: B images, H and W multiples of 32; level Pk is `(B, C, H / 2^k, W / 2^k)`, P6 rounded up.

Source: He et al., Deep Residual Learning (1512.03385), section 4; Lin et al., Feature Pyramid
Networks (1612.03144), section 3.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

Norm = Literal["frozen", "batch"]
"""`frozen`: the batch norm of pretrained weights, all of it constant; `batch`: one that learns, for random values."""
STRIDES = (4, 8, 16, 32, 64)
"""Pixels per cell of P2..P6."""
_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class ResNet(nn.Module):
    """The stem and the four stages of a ResNet, without its classifier."""

    def __init__(self, name: str, *, stem_channels: int, norm: Norm, early_stride: bool = False) -> None:
        """Build it with random values; `early_stride` as in `Backbone`."""
        super().__init__()
        build_norm = FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
        block = BasicBlock if name == "resnet18" else Bottleneck
        self.conv1 = nn.Conv2d(3, stem_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = build_norm(stem_channels)
        self.out_channels = [stem_channels * 2**stage * block.expansion for stage in range(4)]
        channels = stem_channels
        for stage, count in enumerate(_BLOCKS[name]):
            layer = _build_stage(block, channels, stem_channels * 2**stage, count, 1 if stage == 0 else 2, build_norm)
            if early_stride and stage:
                _move_stride(layer[0])
            self.add_module(f"layer{stage + 1}", layer)
            channels = self.out_channels[stage]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """Return the modules of the five stages, the stem first: what `freeze_depth` counts."""
        return [[self.conv1, self.bn1], *([self.get_submodule(f"layer{i}")] for i in range(1, 5))]

    def run_stage(self, number: int, x_BCHW: Tensor) -> Tensor:
        """Run one stage; 0 is the stem with its pooling."""
        if not number:
            return F.max_pool2d(torch.relu_(convolve(self.conv1, self.bn1, x_BCHW)), 3, stride=2, padding=1)
        for block in self.get_submodule(f"layer{number}").children():
            x_BCHW = run_block(block, x_BCHW)
        return x_BCHW


class Backbone(nn.Module):
    """ResNet + FPN with the first `freeze_depth` stages of the ResNet frozen."""

    def __init__(
        self,
        name: str,
        *,
        stem_channels: int,
        fpn_channels: int,
        freeze_depth: int,
        norm: Norm,
        early_stride: bool = False,
    ) -> None:
        """Build it with random values.

        Args:
            name: `resnet18`, `resnet50` or `resnet101`.
            stem_channels: Width of the stem; stages have 1, 2, 4 and 8 times (ResNet-50: 4 times) as many channels.
            fpn_channels: Width of all pyramid levels.
            freeze_depth: Frozen stages in 0..5 from the input: 1 the stem, 5 the whole ResNet, never the FPN.
            norm: `frozen` for pretrained weights, `batch` for random values.
            early_stride: Stages halve the resolution in their first 1 x 1 convolution, as in the original ResNet and
                detectron2's, and not in the 3 x 3 one after it. For bottlenecks only.
        """
        super().__init__()
        self.body = ResNet(name, stem_channels=stem_channels, norm=norm, early_stride=early_stride)
        self.fpn = FeaturePyramidNetwork(self.body.out_channels, fpn_channels, extra_blocks=LastLevelMaxPool())
        self.freeze_depth = freeze_depth
        for module in self._frozen_modules():
            module.requires_grad_(False)
            module.eval()

    def forward(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return P2..P6 of normalised images; frozen stages record no graph."""
        levels: list[Tensor] = []
        x = x_B3HW
        for number in range(5):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.freeze_depth):
                x = self.body.run_stage(number, x)
            if number:
                levels.append(x)
        return self._run_pyramid(levels)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, but for frozen stages: their norms keep their statistics."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _run_pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        """Do what `self.fpn(…)` does, but keep no part of a sum: a quarter of a gigabyte per image of 2048 x 1024."""
        laterals, smooths = list(self.fpn.inner_blocks), list(self.fpn.layer_blocks)
        inner = laterals.pop()(levels[-1])
        outputs = [smooths.pop()(inner)]
        for x in levels[-2::-1]:
            inner = F.interpolate(inner, size=x.shape[-2:], mode="nearest").add_(laterals.pop()(x))
            outputs.insert(0, smooths.pop()(inner))
        return [*outputs, F.max_pool2d(outputs[-1], 1, stride=2)]

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for stage in self.body.stages()[: self.freeze_depth] for module in stage]


def convolve(convolution: nn.Conv2d, norm: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Convolve and normalise; a norm that is constant goes into kernel and bias.

    On its own it would be two more passes over the features, in float32 also under autocast, since its numbers are.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        normalised: Tensor = norm(convolution(x_BCHW))
        return normalised
    scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    kernel, bias = convolution.weight * scale_C[:, None, None, None], norm.bias - norm.running_mean * scale_C
    return F.conv2d(x_BCHW, kernel, bias, convolution.stride, convolution.padding)


def run_block(block: nn.Module, x_BCHW: Tensor) -> Tensor:
    """Do what a residual block's own `forward` does."""
    assert isinstance(block, BasicBlock | Bottleneck)
    layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        layers.append((block.conv3, block.bn3))
    inner = x_BCHW
    for convolution, norm in layers[:-1]:
        inner = torch.relu_(convolve(convolution, norm, inner))
    shortcut = x_BCHW if block.downsample is None else convolve(block.downsample[0], block.downsample[1], x_BCHW)
    return torch.relu_(convolve(*layers[-1], inner).add_(shortcut))


def _build_stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    planes: int,
    count: int,
    stride: int,
    norm: Callable[[int], nn.Module],
) -> nn.Sequential:
    """Chain `count` residual blocks; the first one changes stride and width, if they change."""
    width = planes * block.expansion
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), norm(width))
    first = block(channels, planes, stride, shortcut, norm_layer=norm)
    return nn.Sequential(first, *(block(width, planes, norm_layer=norm) for _ in range(count - 1)))


def _move_stride(block: nn.Module) -> None:
    """Let a bottleneck halve the resolution in its first convolution."""
    for name, stride in (("conv1", 2), ("conv2", 1)):
        convolution = block.get_submodule(name)
        if isinstance(convolution, nn.Conv2d):
            convolution.stride = (stride, stride)
