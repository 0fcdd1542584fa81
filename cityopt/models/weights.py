"""Pretrained weights: where they come from, and how they are fitted into a network."""

from collections.abc import Mapping

from torch import Tensor, nn

from cityopt.config import ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.backbone import Norm


def find_norm(model: ModelConfig, state: Mapping[str, Tensor] | None = None) -> Norm:
    """Say which norm the network needs."""
    if state is not None:
        return "frozen" if any(key.endswith("running_mean") for key in state) else "group"
    return "group" if model.weights == "none" else "frozen"


def load_pretrained(network: nn.Module, model: ModelConfig) -> None:
    """Load what `model.weights` names."""
    if model.weights != "none":
        raise WeightsError("not yet")


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load a state of this very network."""
    network.load_state_dict(dict(state))
