"""Checkpoints: one file that continues a training or rebuilds its model, with nothing else at hand.

A file holds the model, the optimiser, all generator states, the resolved config with its anchors, the
environment and the `TrainingState` with every record of the metrics history. It is written whole or not
at all, and read with `weights_only`: a checkpoint can hold numbers and text, never code.
"""

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cityopt.config import RunConfig
from cityopt.errors import ConfigError, TrainingError, WeightsError
from cityopt.models.build import SegmentationModel, build_model
from cityopt.models.weights import extract_resnet
from cityopt.runtime import capture_rng
from cityopt.settings import validate

FORMAT = "cityopt-checkpoint-1"


@dataclass(frozen=True)
class EpochRecord:
    """The metrics of one finished epoch and when they were first recorded (milliseconds since 1970)."""

    epoch: int
    time_ms: int
    metrics: dict[str, float]


@dataclass
class TrainingState:
    """How far a training has come. Epochs count from 1; 0 means that none is finished."""

    epoch: int = 0
    step: int = 0
    """Optimiser steps done, which the learning rate follows from."""
    seconds: float = 0.0
    """Time spent until the last epoch was finished, over all attempts."""
    best_epoch: int = 0
    best_value: float | None = None
    history: list[EpochRecord] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    optimizer: Optimizer,
    state: TrainingState,
    config: RunConfig,
    environment: Mapping[str, str],
    may_replace: Callable[[], None] = lambda: None,
) -> None:
    """Write a checkpoint whole or not at all.

    `may_replace` is called when all is written and nothing has changed yet: what it raises leaves the file as it was.

    Raises TrainingError `disk`: the disk is full or the folder cannot be written; an earlier file stays as it was.
    """
    content = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "environment": {name: str(value) for name, value in environment.items()},
        "state": asdict(state),
        "rng": capture_rng(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    _write(path, content, may_replace)


def save_converted(path: Path, *, model: Mapping[str, Tensor], config: RunConfig, origin: Mapping[str, str]) -> None:
    """Write the checkpoint of a network that was not trained here: `origin` says where it is from, and its licence.

    Raises TrainingError as `save_checkpoint`.
    """
    content = {
        "format": FORMAT,
        "config": config.model_dump(mode="json"),
        "environment": {},
        "state": asdict(TrainingState()),
        "rng": {},
        "model": dict(model),
        "optimizer": {},
        "origin": dict(origin),
    }
    _write(path, content)


def export_backbone(checkpoint: Path, out: Path) -> None:
    """Write the ResNet of a checkpoint's network as a plain state dict, which `model.weights: PATH` of another takes.

    Names are those of torchvision's classifiers. Pyramid and heads stay behind; of its norms go the weights, biases
    and statistics, which are constant in a network that starts from them.

    Raises WeightsError (as `load_checkpoint`, or a network without a ResNet) and TrainingError as `save_checkpoint`.
    """
    content = load_checkpoint(checkpoint)
    resnet = extract_resnet(content["model"])
    if not resnet:
        family = content["config"]["model"]["family"]
        raise WeightsError(f"{checkpoint} must hold a network with a ResNet, but holds a {family!r}, which has none.")
    _write(out, resnet)


def _write(path: Path, content: Mapping[str, Any], may_replace: Callable[[], None] = lambda: None) -> None:
    """Write a checkpoint, or tensors by name, whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        may_replace()
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch reports a failed write its own way
        if not isinstance(cause, OSError):
            raise
        raise TrainingError("disk", f"the checkpoint {path} must be written, but {cause}. Free some space.") from error
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Returns the keys `config` (plain data), `environment`, `state` (TrainingState), `rng`, `model`, `optimizer`, and
    for a converted one `origin`.

    Raises WeightsError: no such file, truncated, or not a checkpoint of cityopt.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"there is no checkpoint {path}.") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} must be a checkpoint of cityopt, but holds more than numbers and text.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} must be a whole checkpoint of cityopt, but cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path} must be a checkpoint of cityopt ({FORMAT}), but holds something else.")
    state = content["state"]
    content["state"] = TrainingState(**{**state, "history": [EpochRecord(**record) for record in state["history"]]})
    return content


def load_model(path: Path) -> tuple[SegmentationModel, RunConfig]:
    """Rebuild the model of a checkpoint on the CPU, in evaluation mode, and the config it was trained with.

    Nothing is downloaded. Raises WeightsError: as `load_checkpoint`, or weights that do not fit the config inside.
    """
    return rebuild_model(load_checkpoint(path), path)


def rebuild_model(content: Mapping[str, Any], path: Path) -> tuple[SegmentationModel, RunConfig]:
    """Rebuild the model of a checkpoint that was read from `path`; see `load_model`."""
    try:
        config = validate(RunConfig, content["config"], origin=str(path))
        model = build_model(config.model, state=content["model"])
    except (ConfigError, WeightsError) as error:
        raise WeightsError(f"{path} does not fit this version of cityopt: {error}") from error
    return model.eval(), config


def check_classes(config: RunConfig, origin: str) -> None:
    """Refuse a network for other classes than Cityscapes', of which nothing here has names. Raises WeightsError."""
    if config.model.classes != "cityscapes":
        raise WeightsError(
            f"{origin} must know Cityscapes' 8 classes, but knows the {config.model.num_classes} of "
            f"{config.model.classes}. Fine-tune it: "
            f"`--set model.weights=FILE --set model.flavour={config.model.flavour}`."
        )
