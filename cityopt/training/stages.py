"""What one stage of a promotion hands to the next: its whole network, or the ResNet alone for another model.

Stands between `search/plan.py`, which orders the trainings, and the checkpoints that they leave in their folders.
"""

from pathlib import Path

import torch

from cityopt.config import ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.build import build_model
from cityopt.models.weights import extract_resnet, match_tensors, read_pretrained
from cityopt.tracking.run_folder import BEST
from cityopt.training.checkpoint import export_backbone

BACKBONE = "backbone.pt"


def hand_over(folder: Path, *, whole: bool) -> Path:
    """Return the file of a finished stage that the next one starts from; its backbone's is written where it is missing.

    Raises WeightsError (no checkpoint, or no ResNet in it) and TrainingError `disk`.
    """
    if whole:
        return folder / BEST
    if not (folder / BACKBONE).is_file():
        export_backbone(folder / BEST, folder / BACKBONE)
    return folder / BACKBONE


def check_handover(model: ModelConfig, start: ModelConfig, *, whole: bool, origin: str) -> None:
    """Check that a network can start from one of another config, from names and shapes alone.

    `whole` as in `hand_over`. Raises WeightsError: another flavour, or tensors that differ, which are listed.
    """
    if model.flavour != start.flavour:
        raise WeightsError(f"{origin} must have `model.flavour: {model.flavour}`, but has {start.flavour}.")
    with torch.device("meta"):
        state = build_model(start, download=False).state_dict()
        network = build_model(model, download=False)
    match_tensors(network, model, state if whole else extract_resnet(state), origin=origin)


def check_pretrained(model: ModelConfig) -> None:
    """Check that a network can start from the weights that its config names. Raises WeightsError: absent, or no fit."""
    with torch.device("meta"):
        network = build_model(model, download=False)
    read_pretrained(network, model)
