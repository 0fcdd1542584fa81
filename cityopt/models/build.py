"""From a ModelConfig to a network: the only place that knows the model families by name."""

import logging
from collections.abc import Mapping

from torch import Tensor

from cityopt.config import ModelConfig
from cityopt.errors import ConfigError
from cityopt.models.mask_rcnn import MaskRCNN
from cityopt.models.point_rend import PointRend
from cityopt.models.segmentation_model import SegmentationModel, Target
from cityopt.models.semantic_fpn import SemanticFPN
from cityopt.models.unet import UNet, UNetResNet34
from cityopt.models.weights import find_norm, load_pretrained, load_state

logger = logging.getLogger(__name__)

__all__ = ["SegmentationModel", "Target", "build_model"]


def build_model(
    model: ModelConfig, *, download: bool = True, state: Mapping[str, Tensor] | None = None
) -> SegmentationModel:
    """Build the network of a config on the CPU, in training mode.

    Args:
        model: Its anchors are resolved: `explicit` with numbers, or `default`.
        download: False leaves the values random where a state is loaded afterwards or shapes are all that
            counts; True reads the pretrained weights that the config names, from the network if need be.
        state: A state of this very network, as a checkpoint keeps it. It takes the place of pretrained weights.

    Raises:
        ConfigError: The anchors are not resolved, or settings exclude each other.
        WeightsError: The weights cannot be had, or do not fit.
    """
    if model.task == "instance" and model.anchors == "kmeans":
        raise ConfigError(
            "`model.anchors` must be `explicit` or `default` when a network is built, but got 'kmeans'. "
            "k-means anchors are fitted once per study: see `cityopt anchors`."
        )
    network = _build_network(model, state)
    if state is not None:
        load_state(network, state, origin="the checkpoint")
    elif download:
        load_pretrained(network, model)
        _warn_of_frozen_noise(model)
    return network


def _build_network(model: ModelConfig, state: Mapping[str, Tensor] | None) -> SegmentationModel:
    if model.family == "unet":
        return UNet(model)
    if model.family == "unet_resnet34":
        return UNetResNet34(model)
    families = {"mask_rcnn": MaskRCNN, "point_rend": PointRend, "semantic_fpn": SemanticFPN}
    return families[model.family](model, norm=find_norm(model, state))


def _warn_of_frozen_noise(model: ModelConfig) -> None:
    if model.weights == "none" and model.freeze_depth:
        logger.warning(
            "`model.freeze_depth: %d` freezes random layers, since `model.weights` is `none`: they will never learn. "
            "Use `--set model.freeze_depth=0`.",
            model.freeze_depth,
        )
