"""Weights of other frameworks as checkpoints: the story of `cityopt weights convert`.

The file is not trusted: see `models.pickles`, and torch's `weights_only` for its own files. What comes out is a
checkpoint as a training writes it, whose config rebuilds the network as its makers meant it.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cityopt.config import DataConfig, ModelConfig, RunConfig, TrainingConfig
from cityopt.errors import WeightsError
from cityopt.image_set import ImageSet
from cityopt.models import detectron2, torchvision_coco
from cityopt.models.build import build_model
from cityopt.models.detectron2 import Conversion, convert_detectron2, is_detectron2
from cityopt.models.pickles import read_pickle
from cityopt.models.torchvision_coco import convert_torchvision, is_torchvision
from cityopt.models.weights import State, find_state, list_misfits, read_file
from cityopt.training.checkpoint import save_converted

_TORCH_BEGINNINGS = (b"PK", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
"""Of torch's files, today's and those before 2020."""
_CONTAINERS = ("model", "blobs", "state_dict")


@dataclass(frozen=True)
class ConvertedWeights:
    """What a file turned out to be."""

    source: str
    checkpoint: str
    framework: str
    family: str
    backbone: str
    classes: str
    anchors: str
    num_tensors: int
    num_parameters: int
    dropped: tuple[str, ...]
    """Entries of the file that are no weights of the network."""
    licence: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "dropped": list(self.dropped)}


def convert_weights(source: Path, out: Path) -> ConvertedWeights:
    """Turn a file of detectron2's (`.pkl` of its model zoo, or `.pth`) or torchvision's into a checkpoint of ours.

    Raises WeightsError: no such file, a truncated or malicious one, another family, other classes, or tensors that
    are unknown, missing or of another shape, each of which is listed. Then no checkpoint is written.
    """
    if not source.is_file():
        raise WeightsError(f"there is no file {source}.")
    if out.is_dir() or not out.absolute().parent.is_dir() or out.absolute() == source.absolute():
        raise WeightsError(f"`--out` must be a new file in a folder that exists, but got {out}.")
    tensors = read_tensors(source)
    framework, licence, conversion = _convert(tensors, source)
    _check_tensors(conversion.model, conversion.state, source)
    origin = {"framework": framework, "file": source.name, "sha256": _hash_file(source), "licence": licence}
    config = _describe_run(conversion.model, framework, source)
    save_converted(out, model=conversion.state, config=config, origin=origin)
    return ConvertedWeights(
        source=str(source),
        checkpoint=str(out),
        framework=framework,
        family=conversion.model.family,
        backbone=conversion.model.backbone,
        classes=conversion.model.classes,
        anchors=conversion.model.anchors,
        num_tensors=len(conversion.state),
        num_parameters=sum(tensor.numel() for tensor in conversion.state.values()),
        dropped=conversion.dropped,
        licence=licence,
    )


def _convert(tensors: State, source: Path) -> tuple[str, str, Conversion]:
    """Return the framework of a file, its licence, and the network. Raises WeightsError: it is of neither."""
    if is_detectron2(tensors):
        return "detectron2", detectron2.LICENCE, convert_detectron2(tensors, origin=source.name)
    if is_torchvision(tensors):
        return "torchvision", torchvision_coco.LICENCE, convert_torchvision(tensors, origin=source.name)
    raise WeightsError(
        f"{source} holds no weights that cityopt can convert. Supported: detectron2's {detectron2.SUPPORTED}; "
        f"torchvision's {torchvision_coco.SUPPORTED}."
    )


def read_tensors(source: Path) -> State:
    """Read the named tensors of a pickle of arrays or of a file of torch's. Raises WeightsError."""
    with source.open("rb") as file:
        beginning = file.read(16)
    if beginning.startswith(_TORCH_BEGINNINGS):
        return find_state(read_file(source), source)
    content = read_pickle(source)
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"{source} must hold a dict of named arrays, or one under `model`, but holds something else."
        )
    return {str(name): _as_tensor(array, str(name), source) for name, array in content.items()}


def _as_tensor(array: object, name: str, source: Path) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{name!r} in {source} must be an array, but is a {type(array).__name__}.")
    tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_tensors(model: ModelConfig, state: Mapping[str, Tensor], source: Path) -> None:
    """Compare with the network that the config builds, of which nothing but the shapes is made."""
    with torch.device("meta"):
        wanted = build_model(model, state=None, download=False).state_dict()
    if problems := list_misfits(wanted, state):
        raise WeightsError(
            f"{source} must hold every tensor of {model.family} with {model.backbone}, but under cityopt's names:\n"
            + "\n".join(problems)
        )


def _describe_run(model: ModelConfig, framework: str, source: Path) -> RunConfig:
    """Return the config of a run that never was: the network alone counts."""
    return RunConfig(
        study=framework,
        name=source.stem,
        kind="conversion",
        seed=0,
        threads=os.cpu_count() or 1,
        cache="",
        data=DataConfig(),
        model=model,
        training=TrainingConfig(),
        train_set=ImageSet(),
        validation_set=ImageSet(split="val"),
    )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
