"""The story of `cityopt evaluate`: a checkpoint, a split at full resolution, the protocols' numbers and the exports.

Nothing here chooses anything: the model is what its checkpoint says, the images are all of the split, and each goes
once through the model, to every protocol and to the export.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cityopt.config import RunConfig, Task
from cityopt.data.cityscapes import Frame, check_completeness, index_split
from cityopt.data.roots import SYNTHETIC, cache_folder, choose_root, make_scenes
from cityopt.data.subset import pick_half
from cityopt.errors import ConfigError, DataError, StoreError
from cityopt.evaluation.export import check_export, open_export
from cityopt.evaluation.full_resolution import judge_frames
from cityopt.evaluation.protocols import open_judges, parse_protocols
from cityopt.image_set import choose_val
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import check_classes, load_model
from cityopt.training.failures import naming_failures

OnProgress = Callable[[str, int, int], None]
"""Called with what is done, how many are done, and how many there are."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found, and on what."""

    model: str
    """The reference as it was given."""
    root: Path
    split: str
    num_images: int
    num_in_split: int
    sizes: tuple[tuple[int, int], ...]
    """The different (height, width) of the images, which are those of masks and ground truth too."""
    size_seen: tuple[int, int]
    """(height, width) at which the model saw the images: that of its training."""
    protocols: tuple[str, ...]
    metrics: dict[str, float]
    """By name, which begins with `prefix`; NaN where there is nothing to judge."""
    export: Path | None
    task: Task = "instance"
    """The model's."""
    problem: StoreError | None = None
    """Why the export, which could not be ended, is not there; the metrics stand."""

    @property
    def is_part(self) -> bool:
        """Say whether images of the split were left out, so that no number is official."""
        return self.num_images < self.num_in_split

    @property
    def prefix(self) -> str:
        """Return what the metrics' names begin with: the split, and whether it is only a part of it."""
        return f"{self.split}_first_{self.num_images}" if self.is_part else self.split

    def to_json(self) -> dict[str, float | None]:
        """Return the metrics as `evaluate --json` prints them: null where there is nothing to judge."""
        return {name: None if math.isnan(value) else value for name, value in self.metrics.items()}


def run_evaluation(
    model: str,
    *,
    store: Path,
    data: str | None = None,
    split: str = "val",
    protocols: str | None = None,
    export: Path | None = None,
    limit: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> Evaluation:
    """Judge a model on a split at full resolution, and write its predictions where `export` is given.

    Args:
        model: A checkpoint file, `models:/NAME@ALIAS`, `models:/NAME/VERSION` or an MLflow run's id.
        store: Folder that holds all state.
        data: The dataset's root, or `synthetic`; else the one that the model was trained on.
        split: train, val or test; test has no labels, and can only be exported. Of a model whose study halves val
            (`data.val_halves`), val is the half that it was chosen on and test the other one.
        protocols: Names with commas between them; None takes all that the split's labels allow.
        export: New or empty folder.
        limit: Take the first images by name only.
        device: auto, cpu, cuda or cuda:N.
        on_progress: Told of every image.

    Raises:
        ConfigError: an unknown protocol or device, or a limit below 1.
        DataError: no such root or split; images or labels missing or broken; protocols for a split without labels.
        StoreError: an unknown model, or a place for the export that cannot be written or is in use.
        TrainingError: `oom`.
        WeightsError: a broken checkpoint, or one that does not fit the network of its config.
    """
    if split != "test":
        choose_protocols(protocols, export, has_labels=True)
    _check_limit(limit)
    if export is not None:
        check_export(export)
    chosen = resolve_device(device)
    network, config = load_model(resolve_checkpoint(store, model))
    check_classes(config, model)
    is_halved = split in ("val", "test") and config.data.val_halves != "none"
    names = choose_protocols(protocols, export, network.task, has_labels=is_halved or split != "test")
    root = open_data(data, config, store, on_progress)
    frames = index_split(root, "val" if is_halved else split)
    check_completeness(root, "val" if is_halved else split, frames)
    if is_halved:
        frames = pick_half(frames, choose_val(config.data.val_halves, test=split == "test"))
    part, seen, shown = frames[:limit], config.data.size, f"{split}_half" if is_halved else split
    asked = Evaluation(model, root, shown, len(part), len(frames), (), seen, names, {}, export, network.task)
    set_threads(config.threads)
    with repeatable(chosen), naming_failures("Take a device with more memory, or --device cpu."):
        return _judge(asked, network.to(chosen), part, chosen, on_progress)


def _judge(
    asked: Evaluation,
    network: SegmentationModel,
    frames: Sequence[Frame],
    device: torch.device,
    on_progress: OnProgress,
) -> Evaluation:
    """Return the evaluation with what was found; the scores are known before the export ends, and outlive it."""
    judges, found = open_judges(asked.protocols, asked.task), asked
    on_progress("predicting", 0, len(frames))
    try:
        with open_export(asked.export, asked.task) if asked.export else nullcontext() as writer:
            sizes = judge_frames(
                network,
                frames,
                judges,
                writer,
                size=asked.size_seen,
                device=device,
                on_count=lambda done: on_progress("predicting", done, len(frames)),
            )
            scores = {f"{asked.prefix}/{name}": x for judge in judges for name, x in judge.summarize().items()}
            found = replace(asked, sizes=sizes, metrics=scores)
    except StoreError as error:
        if not found.metrics:
            raise
        return replace(found, problem=error)
    return found


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ConfigError(f"`--limit` must be at least 1, but got {limit}. Leave it out to take all images.")


def choose_protocols(
    text: str | None, export: Path | None, task: Task = "instance", *, has_labels: bool
) -> tuple[str, ...]:
    """Return the names of the protocols that are meant: by default all, and none where there are no labels.

    Raises ConfigError: an unknown name. Raises DataError: test, whose labels are dummies, with a protocol or without
    anything to export.
    """
    names = parse_protocols(text, task)
    if has_labels:
        return names
    if text is not None or export is None:
        raise DataError(
            "a split must have labels to be scored, but those of test are dummies. Use `--split val`, or give "
            "`--export DIR` and no `--protocol`: test is then predicted and written as it is submitted. "
            "(A study with `data.val_halves` keeps a half of val as its test.)"
        )
    return ()


def open_data(data: str | None, config: RunConfig, store: Path, on_progress: OnProgress) -> Path:
    """Return the dataset's root that is meant, else the one that a model was trained on; makes synthetic scenes."""
    root = choose_root(data, config.data.root)
    if root != SYNTHETIC:
        return Path(root)
    scenes, cache = config.data.synthetic, cache_folder(store)
    return make_scenes(scenes, cache, lambda done, total: on_progress("making scenes", done, total))
