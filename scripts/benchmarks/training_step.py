"""Benchmark: an optimiser step of our loop, beside bare loops.

`train-step`: the peer is the same model with the same weights, tensors and seeds in a loop of five lines. Ours
brings what `run_training` adds: repeatable algorithms on a CPU, bytes to floats, the schedule, loss means, the look
for NaN, progress. `train-step-torchvision`: the peer is torchvision's own Mask R-CNN of the same widths, anchors,
proposals and regions, in such a loop, with the one mask per instance that it wants.

On a CPU the demo's model is measured, on CUDA the `maskrcnn` study's from random weights (constant norms and frozen
stages as in the study), in bfloat16 on all sides; there torchvision brings its own backbone too.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import Bound, Row, alternate
from benchmarks.torchvision_peer import build_torchvision, build_torchvision_targets
from cityopt.config import ModelConfig, TrainingConfig
from cityopt.data.cache import open_cache
from cityopt.data.cityscapes import index_split
from cityopt.data.loaders import Batch, build_loader
from cityopt.data.synthetic import write_synthetic
from cityopt.models.build import build_model
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.models.weights import find_norm
from cityopt.runtime import repeatable, seed_everything
from cityopt.settings import replace_section, replace_settings
from cityopt.study_file import load_study
from cityopt.training.loop import choose_precision, move_batch, train_epoch
from cityopt.training.optim import build_optimizer

SWEEPS = Path(__file__).parents[2] / "sweeps"
BOUND = Bound("ratio", "<=", 1.05)


@dataclass(frozen=True)
class Setup:
    """What both sides share."""

    model: ModelConfig
    training: TrainingConfig
    size: tuple[int, int]
    device: torch.device
    batches: list[Batch]


def bench_training_step(*, quick: bool) -> list[Row]:
    """Measure a few steps of each side by turns."""
    device = choose_device()
    num_steps, rounds = (1, 1) if quick else (4, 25 if device.type == "cpu" else 7)
    setup = prepare_setup("demo" if device.type == "cpu" else "maskrcnn", device, num_steps)
    model = build_model(setup.model).to(device)
    sides = {
        "ours": train_ours(setup, copy.deepcopy(model)),
        "bare": train_bare(setup, copy.deepcopy(model)),
        "torchvision": train_torchvision(setup),
    }
    seconds = alternate(sides, rounds=rounds)
    ms = {name: 1000 * value / num_steps for name, value in seconds.items()}
    height, width = setup.size
    where = f"ms per step, {setup.model.backbone}, {setup.training.batch_size} x {width} x {height}"
    where += f", {name_device(device)}"
    return [
        Row("train-step", ms["ours"], ms["bare"], f"{where}; peer: the same model in a bare loop", BOUND),
        Row("train-step-torchvision", ms["ours"], ms["torchvision"], f"{where}; peer: torchvision's Mask R-CNN", BOUND),
    ]


def choose_device() -> torch.device:
    """Return the device that is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name_device(device: torch.device) -> str:
    """Name what a row was measured on."""
    return f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)


def prepare_setup(name: str, device: torch.device, num_steps: int, changes: Mapping[str, Any] | None = None) -> Setup:
    """Return a study's setting, from random weights, with batches of synthetic scenes in memory."""
    study = replace_settings(load_study(str(SWEEPS / f"{name}.yaml")), changes or {})
    model = replace_section(study.model, weights="none", anchors="default", **freeze_as(study.model, device))
    training = replace_section(study.training, clip_norm=None, learning_rate=1e-6)
    num_train = num_steps * training.batch_size
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "scenes"
        write_synthetic(root, num_images=round(num_train / 0.75) + 4, size=study.data.size, seed=0)
        frames = index_split(root, "train")[:num_train]
        cache = open_cache(frames, size=study.data.size, folder=Path(folder) / "cache", fingerprint="bench")
        loader = build_loader(
            cache,
            range(num_train),
            data=replace_section(study.data, num_workers=0),
            batch_size=training.batch_size,
            seed=0,
            epoch=1,
            train=False,
            device=device,
            task=model.task,
        )
        return Setup(model, training, study.data.size, device, list(loader))


def freeze_as(model: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Return what a network of random values is told to freeze: on CUDA what the study freezes of a pretrained one."""
    if device.type == "cpu" or model.weights == "none":
        return {"freeze_depth": 0}
    return {"freeze_depth": model.freeze_depth, "backbone_norm": "frozen"}


def train_ours(setup: Setup, model: SegmentationModel) -> Callable[[], None]:
    """Return our loop over all batches."""
    optimizer = build_optimizer(model, setup.training)

    def run() -> None:
        seed_everything(0)
        with repeatable(setup.device):
            train_epoch(
                model,
                setup.batches,
                optimizer,
                setup.training,
                device=setup.device,
                first_step=0,
                num_steps=len(setup.batches),
                on_step=lambda report: None,
            )
        wait_for(setup.device)

    return run


def train_bare(setup: Setup, model: SegmentationModel) -> Callable[[], None]:
    """Return a bare loop over the same batches, as floats on the device from the start."""
    return loop_bare(setup, model, model.loss, [move_batch(batch, setup.device) for batch in setup.batches])


def train_torchvision(setup: Setup) -> Callable[[], None]:
    """Return a bare loop of torchvision's model over the same batches."""
    seed_everything(0)
    model = build_torchvision(setup.model, norm=find_norm(setup.model), size=setup.size).to(setup.device)
    inputs = [move_batch(batch, setup.device) for batch in setup.batches]
    return loop_bare(setup, model, model, [(images, build_torchvision_targets(targets)) for images, targets in inputs])


def loop_bare(
    setup: Setup, model: nn.Module, find_losses: Callable[..., dict[str, Tensor]], inputs: Sequence[tuple[Any, Any]]
) -> Callable[[], None]:
    """Return a loop of nothing but forward, backward and step."""
    model.train()
    optimizer = build_optimizer(model, setup.training)
    precision = choose_precision(setup.training, setup.device)

    def run() -> None:
        seed_everything(0)
        for images, targets in inputs:
            optimizer.zero_grad()
            with torch.autocast(setup.device.type, dtype=precision, enabled=precision is not None):
                losses = find_losses(images, targets)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            optimizer.step()
        wait_for(setup.device)

    return run


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
