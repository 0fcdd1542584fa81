"""Pretrained weights: where they come from, and how they are fitted into a network.

`coco` is torchvision's Mask R-CNN with ResNet-50 (COCO_V1), `imagenet` its classifiers (IMAGENET1K_V1).
Both are kept in torch.hub's folder. A path is a checkpoint of cityopt or a plain state dict, of a whole
network or of a ResNet alone. Files are read with `weights_only`: nothing in them can run.

Heads for COCO's classes become heads for Cityscapes' (`class_rows`). Other layers that depend on the number of
classes or of anchors start afresh where the file's have another shape; anything else that does not fit is an error.

Source: torchvision's `overwrite_eps` (COCO_V1 was trained with a batch norm without epsilon).
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet34_Weights, ResNet50_Weights, ResNet101_Weights
from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from cityopt.config import ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.backbone import Norm
from cityopt.models.class_rows import adapt_rows

logger = logging.getLogger(__name__)

State = dict[str, Tensor]
_BODY = "backbone.body."
_EPSILON = 1e-5
_LONGEST_LIST = 40
_MIB = 2**20
_SILENCE_S = 60
_CLASS_LAYERS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
    "roi_heads.mask_head.coarse_head.prediction.",
    "roi_heads.mask_head.point_head.",
)
_ANCHOR_LAYERS = ("rpn.head.cls_logits.", "rpn.head.bbox_pred.")
_OLD_NAMES = (
    (re.compile(r"(inner_blocks|layer_blocks)\.(\d)\.(weight|bias)$"), r"\1.\2.0.\3"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"mask_head\.mask_fcn1\."), "mask_head.0.0."),
    (re.compile(r"mask_head\.mask_fcn2\."), "mask_head.1.0."),
    (re.compile(r"mask_head\.mask_fcn3\."), "mask_head.2.0."),
    (re.compile(r"mask_head\.mask_fcn4\."), "mask_head.3.0."),
)
_IMAGENET = {
    "resnet18": ResNet18_Weights,
    "resnet34": ResNet34_Weights,
    "resnet50": ResNet50_Weights,
    "resnet101": ResNet101_Weights,
}
_ENCODER = "network.encoder."
_ADVICE = "Set `model.backbone` and the widths (`model.stem_channels`, `model.fpn_channels`, …) to the file's."
_ENCODER_ADVICE = "Give a classifier's file of a ResNet-34, or a checkpoint of `model.family: unet_resnet34`."
_COUNTER = ".num_batches_tracked"
_CLASS_WEIGHTS = "class_weights"


def find_norm(model: ModelConfig, state: Mapping[str, Tensor] | None = None) -> Norm:
    """Say which norm the backbone of a config needs: its state's, its own, or that of the weights it starts from."""
    if state is not None:
        return "batch" if any(key.endswith(_COUNTER) for key in state) else "frozen"
    if model.backbone_norm != "auto":
        return model.backbone_norm
    return "batch" if model.weights == "none" else "frozen"


def load_pretrained(network: nn.Module, model: ModelConfig) -> None:
    """Load the weights that `model.weights` names into a network. Raises WeightsError as `read_pretrained` does."""
    network.load_state_dict(read_pretrained(network, model), strict=False)


def read_pretrained(network: nn.Module, model: ModelConfig) -> State:
    """Return the tensors that `model.weights` names, under the names of a network of this config; `none` has none.

    Raises WeightsError: an unknown name, no such weights for this backbone, no download, a broken file,
    or tensors that do not fit, each of which is listed.
    """
    if model.weights == "none":
        return {}
    url = find_url(model)
    path = Path(model.weights) if url is None else fetch_file(url)
    content = read_file(path)
    _check_flavour(content, model, path)
    return match_tensors(network, model, find_state(content, path), origin=str(path))


def match_tensors(network: nn.Module, model: ModelConfig, state: Mapping[str, Tensor], *, origin: str) -> State:
    """Return the tensors that a network starts with, under its names, out of a state that `model.weights` may name.

    That is a state of the whole network, or of a ResNet alone, which leaves the rest random. A semantic model keeps
    its class weights: they are of the images that it trains on. No tensor is touched, so `meta` ones do.

    Raises WeightsError that lists the tensors that are missing, unknown or of another shape.
    """
    if model.family == "unet_resnet34":
        return _match_encoder(network, state, origin)
    state = rename_state(state)
    if model.weights == "coco":
        state = fold_epsilon(state)
    if (adapted := adapt_rows(state, network.state_dict(), model.rider_from)) is not None:
        logger.info("heads for COCO's classes in %s start those for Cityscapes'", origin)
        state = adapted
    return _match_network(network, state, origin)


def find_url(model: ModelConfig) -> str | None:
    """Return the address of the weights, or None where `model.weights` is the path of a file.

    Raises WeightsError: weights that do not exist, or not for this backbone.
    """
    if model.weights == "coco":
        if model.task == "semantic":
            raise WeightsError(
                f"`model.weights: coco` is for instance models, but got `model.family: {model.family}`. "
                "Use `imagenet`, `none`, or the path of a checkpoint."
            )
        if (model.family, model.backbone) != ("mask_rcnn", "resnet50"):
            raise WeightsError(
                "`model.weights: coco` exists for `model.family: mask_rcnn` with `model.backbone: resnet50` alone, "
                f"but got {model.family!r} with {model.backbone!r}. "
                "Use `imagenet`, `none`, or the path of a checkpoint."
            )
        return str(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url)
    if model.weights == "imagenet":
        if model.family == "unet_resnet34":
            return str(_IMAGENET["resnet34"].IMAGENET1K_V1.url)
        if model.stem_channels != 64:
            raise WeightsError(
                "`model.stem_channels` must be 64 with `model.weights: imagenet`, but got "
                f"{model.stem_channels}. Use 64, or `--set model.weights=none`."
            )
        return str(_IMAGENET[model.backbone].IMAGENET1K_V1.url)
    if not Path(model.weights).is_file():
        raise WeightsError(
            "`model.weights` must be `coco`, `imagenet`, `none` or the path of a file, "
            f"but there is no file {model.weights!r}."
        )
    return None


def fetch_file(url: str, on_count: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Return the file of an address from torch.hub's folder, downloaded and checked against its name's hash.

    `on_count` is called with the MiB that have come and those there are; they are equal once, at the end.

    Raises WeightsError: it cannot be downloaded. The message says where to put the file by hand.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    logger.info("downloading %s to %s", url, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, path, on_count)
    except (OSError, HTTPException) as error:
        raise WeightsError(
            f"the weights {url} cannot be downloaded: {error}. Put the file at {path}, "
            "or train from random values with `--set model.weights=none`."
        ) from error
    return path


def _download(url: str, path: Path, on_count: Callable[[int, int], None]) -> None:
    """Download a file whole or not at all. Raises OSError, HTTPException."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    digest, done = hashlib.sha256(), 0
    try:
        with (
            urlopen(Request(url, headers={"User-Agent": "cityopt"}), timeout=_SILENCE_S) as answer,
            partial.open("wb") as file,
        ):
            length = int(answer.headers.get("Content-Length") or 0)
            while block := answer.read(_MIB):
                file.write(block)
                digest.update(block)
                done += len(block)
                on_count(done // _MIB, max(length, done) // _MIB + 1)
        _check_download(path.name, digest.hexdigest(), done, length)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    on_count(done // _MIB + 1, done // _MIB + 1)


def _check_download(name: str, digest: str, done: int, length: int) -> None:
    """Check that all has come (`length` 0 is unknown), and the hash where the name tells it. Raises OSError."""
    if done < length:
        raise OSError(f"it broke off after {done} of {length} bytes")
    expected = re.search(r"-([0-9a-f]{8,})\.", name)
    if expected and not digest.startswith(expected[1]):
        raise OSError(f"its content has the hash {digest[:8]}, not {expected[1]}")


def read_file(path: Path) -> Any:
    """Return what a file of `torch.save` holds, numbers and text alone. Raises WeightsError: it is broken."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever rubbish makes it stumble on
        raise WeightsError(
            f"{path} must be a file of weights that `torch.load(weights_only=True)` reads, but: {error}. "
            "If a download was cut short, delete the file. If detectron2 made it, use `cityopt weights convert`."
        ) from error


def find_state(content: Any, path: Path) -> State:
    """Return the named tensors of a file's content. Raises WeightsError: it holds something else."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path} must hold a dict of named tensors, or one under `model`, but holds something else.")
    return {key.removeprefix("module."): value for key, value in content.items()}


def rename_state(state: Mapping[str, Tensor]) -> State:
    """Give tensors the names of today's torchvision detectors, and a classifier's those of a backbone."""
    if "conv1.weight" in state:
        state = {_BODY + key: value for key, value in state.items() if not key.startswith("fc.")}
    renamed = {}
    for key, value in state.items():
        name = key
        for old, new in _OLD_NAMES:
            name = old.sub(new, name)
        renamed[name] = value
    return renamed


def fold_epsilon(state: Mapping[str, Tensor]) -> State:
    """Turn frozen batch norms that were trained without epsilon into equal ones with 1e-5."""
    folded = dict(state)
    for key, variance in state.items():
        if key.endswith("running_var"):
            name = key.removesuffix("running_var") + "weight"
            scale = ((variance.double() + _EPSILON) / variance.double()).sqrt()
            folded[name] = (state[name].double() * scale).to(state[name].dtype)
    return folded


def extract_resnet(state: Mapping[str, Tensor]) -> State:
    """Return the ResNet of a network's state under the names of torchvision's classifiers; empty where it has none."""
    body = _BODY if any(key.startswith(_BODY) for key in state) else _ENCODER
    return {
        key.removeprefix(body): value
        for key, value in state.items()
        if key.startswith(body) and not key.endswith(_COUNTER)
    }


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load a state of this very network. Raises WeightsError that lists all tensors that do not fit."""
    _check_fit(network.state_dict(), state, origin)
    network.load_state_dict(dict(state))


def list_misfits(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unknown or of another shape than wanted; long lists are cut."""
    problems = [
        *_list_keys("missing", wanted.keys() - state.keys()),
        *_list_keys("unknown", state.keys() - wanted.keys()),
        *(
            f"  {key}: {tuple(state[key].shape)} in the file, {tuple(wanted[key].shape)} in the network"
            for key in sorted(wanted.keys() & state.keys())
            if state[key].shape != wanted[key].shape
        ),
    ]
    if len(problems) > _LONGEST_LIST:
        problems[_LONGEST_LIST:] = [f"  … and {len(problems) - _LONGEST_LIST} more"]
    return problems


def _match_network(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> State:
    """Match a state with torchvision's names; what depends on the classes or the anchors may have other shapes."""
    wanted = {key: value for key, value in network.state_dict().items() if not _is_own(key)}
    state = {key: value for key, value in state.items() if not _is_own(key)}
    fresh = [
        layers
        for layers in (_CLASS_LAYERS, _ANCHOR_LAYERS)
        if any(k.startswith(layers) and k in wanted and wanted[k].shape != v.shape for k, v in state.items())
    ]
    for layers in fresh:
        logger.info("starting afresh, since %s has other shapes: %s", origin, ", ".join(layers))
        state = {key: value for key, value in state.items() if not key.startswith(layers)}
    if all(key.startswith(_BODY) for key in state):
        wanted = {key: value for key, value in wanted.items() if key.startswith(_BODY)}
    random = tuple(prefix for layers in fresh for prefix in layers)
    wanted = {key: value for key, value in wanted.items() if not random or not key.startswith(random)}
    _check_fit(wanted, state, origin)
    return state


def _match_encoder(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> State:
    """Match the state of a ResNet with the encoder of a U-Net, or that of a whole U-Net with all of it."""
    if "conv1.weight" in state:
        state = {_ENCODER + key: value for key, value in state.items() if not key.startswith("fc.")}
        wanted = {key: value for key, value in network.state_dict().items() if key.startswith(_ENCODER)}
    else:
        wanted = network.state_dict()
    given = {key: value for key, value in state.items() if not _is_own(key)}
    _check_fit({key: value for key, value in wanted.items() if not _is_own(key)}, given, origin, _ENCODER_ADVICE)
    return given


def _is_own(key: str) -> bool:
    """Say whether a tensor is a network's own, whatever it starts from: it says what that network has seen."""
    return key.endswith(_COUNTER) or key == _CLASS_WEIGHTS


def _check_flavour(content: Any, model: ModelConfig, path: Path) -> None:
    """Refuse a checkpoint of another flavour: its tensors would fit, and mean something else."""
    config = content.get("config") if isinstance(content, dict) else None
    settings = config.get("model") if isinstance(config, dict) else None
    found = settings.get("flavour", "torchvision") if isinstance(settings, dict) else model.flavour
    if found != model.flavour:
        raise WeightsError(
            f"`model.flavour` must be {found!r}, that of the weights {path}, but got {model.flavour!r}. "
            f"Use `--set model.flavour={found}`."
        )


def _check_fit(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str, advice: str = _ADVICE) -> None:
    problems = list_misfits(wanted, state)
    if problems:
        raise WeightsError(
            f"the tensors of {origin} must fit the network of `model`, but these do not:\n"
            + "\n".join(problems)
            + f"\n{advice}"
        )


def _list_keys(word: str, keys: Iterable[str]) -> list[str]:
    return [f"  {key}: {word}" for key in sorted(keys)]
