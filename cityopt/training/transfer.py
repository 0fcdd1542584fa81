"""The story of `cityopt transfer`: models that were trained on COCO (or not), on COCO and, as they are, on Cityscapes.

Nothing is trained. Every model sees the same images once, at 1024 x 2048 (Cityscapes) and at 800/1333 (COCO), and the
second and later ones are compared with the first image by image. Models are loaded one after the other, and
of what they find only numbers and the masks of found objects stay: see `transfer_study`.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from cityopt.config import SyntheticConfig
from cityopt.data.cityscapes import Frame, check_completeness, index_split
from cityopt.data.coco import NUM_IMAGES, SPLIT, CocoImage, index_coco
from cityopt.data.roots import SYNTHETIC, cache_folder, choose_root, make_scenes
from cityopt.errors import ConfigError, DataError, WeightsError
from cityopt.evaluation.transfer import judge_coco, judge_streets
from cityopt.models.segmentation_model import InstanceModel
from cityopt.runtime import describe_environment, repeatable, resolve_device, set_threads
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import load_checkpoint, load_model, rebuild_model
from cityopt.training.failures import naming_failures
from cityopt.training.transfer_comparison import compare_subjects, draw_close_ups
from cityopt.training.transfer_study import COCO, SIZE, STREETS, Conditions, Ground, Subject, TransferStudy

OnProgress = Callable[[str, int, int], None]


def run_transfer(
    references: Sequence[str],
    *,
    store: Path,
    coco: Path | None = None,
    data: str | None = None,
    limit: int | None = None,
    size: tuple[int, int] = SIZE,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> TransferStudy:
    """Judge models on Cityscapes, COCO, or both, and compare the later ones with the first.

    Raises ConfigError (no model, `limit` below 1), DataError (no root at all, none of COCO's, a broken image),
    StoreError (no such model), WeightsError (no checkpoint, a semantic model, 8 classes where COCO is all there is),
    TrainingError `oom`.
    """
    if not references or (limit is not None and limit < 1):
        raise ConfigError("`--weights` must be given, and `--limit` be at least 1.")
    chosen = resolve_device(device)
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    checkpoints = [resolve_checkpoint(store, reference) for reference in references]
    subjects = [_describe(r, c, label) for r, c, label in zip(references, checkpoints, _label(references), strict=True)]
    images = index_coco(coco) if coco is not None else []
    frames, root, given = _open_streets(data, coco, store, on_progress)
    if not frames and (wrong := [subject.reference for subject in subjects if not subject.knows_coco]):
        raise WeightsError(f"{wrong[0]} must know COCO's 80 classes to be judged on COCO, but knows Cityscapes' 8.")
    grounds = []
    if frames:
        seen = "{} x {}".format(*size)
        grounds.append(Ground(STREETS, root, "val", len(frames[:limit]), len(frames), seen, given=given))
    if coco is not None:
        counts = len(images[:limit]), len(images)
        grounds.append(Ground(COCO, coco, SPLIT, *counts, "800/1333", num_published=NUM_IMAGES[SPLIT]))
    environment = {name: value for name, value in describe_environment(chosen).items() if name != "threads"}
    conditions = Conditions(size, str(chosen), limit, store, begun, environment)
    study = TransferStudy(grounds, subjects, conditions=conditions)
    for subject, checkpoint in zip(subjects, checkpoints, strict=True):
        _judge(subject, checkpoint, frames[:limit], images[:limit], size, chosen, on_progress)
    study.comparisons = [x for other in subjects[1:] for x in compare_subjects(subjects[0], other)]
    study.close_ups = draw_close_ups(subjects, frames, images)
    return study


def _judge(
    subject: Subject,
    checkpoint: Path,
    frames: Sequence[Frame],
    images: Sequence[CocoImage],
    size: tuple[int, int],
    device: torch.device,
    on_progress: OnProgress,
) -> None:
    """Load a model, and judge it on the images of every ground that there is and whose classes it knows."""
    model, config = load_model(checkpoint)
    assert isinstance(model, InstanceModel)
    set_threads(config.threads)
    with repeatable(device), naming_failures("Take a device with more memory, or --device cpu."):
        model.to(device)
        if frames:
            count = _begin(on_progress, f"{subject.label} on Cityscapes", len(frames))
            subject.judged[STREETS] = judge_streets(
                model, frames, is_coco=subject.knows_coco, size=size, device=device, on_count=count
            )
        if images and subject.knows_coco:
            count = _begin(on_progress, f"{subject.label} on COCO", len(images))
            subject.judged[COCO] = judge_coco(model, images, device=device, on_count=count)


def _begin(on_progress: OnProgress, what: str, total: int) -> Callable[[int], None]:
    """Say that some work begins, and return what says how far it is."""
    on_progress(what, 0, total)
    return lambda done: on_progress(what, done, total)


def _label(references: Sequence[str]) -> list[str]:
    """Return short names, one of its kind each."""
    stems = [Path(reference).stem if Path(reference).suffix else reference for reference in references]
    return [stem if stems.count(stem) == 1 else f"{stem} ({place})" for place, stem in enumerate(stems, start=1)]


def _describe(reference: str, checkpoint: Path, label: str) -> Subject:
    """Read who a model is. Raises WeightsError: it is no checkpoint, or finds no instances."""
    try:
        content = load_checkpoint(checkpoint)
        _, config = rebuild_model(content, checkpoint)  # what does not fit is said before hours of work
    except WeightsError as error:
        hint = f"If it is a file of detectron2's: cityopt weights convert {checkpoint} --out FILE."
        raise WeightsError(f"{error} {hint}") from error
    if config.model.task != "instance":
        raise WeightsError(
            f"{reference} must find instances (mask_rcnn, point_rend), but is a {config.model.family!r} for the task "
            f"{config.model.task!r}."
        )
    count = sum(tensor.numel() for tensor in content["model"].values())
    return Subject(label, reference, config, content.get("origin", {}), count)


def _open_streets(
    data: str | None, coco: Path | None, store: Path, on_progress: OnProgress
) -> tuple[list[Frame], Path, str]:
    """Return the labelled images of val, their root, and what it was called; none where only COCO is given.

    Raises DataError.
    """
    try:
        root = choose_root(data, None)
    except DataError as error:
        if coco is not None:
            return [], Path(), ""
        raise DataError(f"{error} Or judge on COCO alone: --coco COCO_ROOT.") from error
    if root == SYNTHETIC:
        scenes = SyntheticConfig()
        folder = make_scenes(scenes, cache_folder(store), partial(on_progress, "making scenes"))
    else:
        folder = Path(root)
    frames = index_split(folder, "val")
    check_completeness(folder, "val", frames)
    return list(frames), folder, str(root)
