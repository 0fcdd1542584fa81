"""The story of `cityopt transfer`: models that were trained on COCO (or not), on COCO and, as they are, on Cityscapes.

Nothing is trained. Every model sees the same images once, at 1024 x 2048 (Cityscapes) and at 800/1333 (COCO), and the
second and later ones are compared with the first image by image. Models are loaded one after the other, and
of what they find only numbers and the masks of found objects stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cityopt.config import RunConfig, SyntheticConfig
from cityopt.data.cityscapes import Frame, check_completeness, index_split, read_image, read_instance_ids
from cityopt.data.coco import SPLIT, CocoImage, encode_annotations, index_coco
from cityopt.data.pictures import read_picture
from cityopt.data.roots import SYNTHETIC, cache_folder, choose_root, make_scenes
from cityopt.errors import ConfigError, DataError, WeightsError
from cityopt.evaluation.cityscapes_ap import compute_precisions
from cityopt.evaluation.close_ups import CloseUp, choose_close_ups, draw_close_up
from cityopt.evaluation.coco_ap import annotate_raster
from cityopt.evaluation.overlays import encode_picture
from cityopt.evaluation.paired import PairedDifference, compare_means, compare_scores
from cityopt.evaluation.transfer import FoundObject, Judged, judge_coco, judge_streets
from cityopt.labels import COCO_NAMES, THING_NAMES
from cityopt.models.segmentation_model import InstanceModel
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import load_checkpoint, load_model
from cityopt.training.failures import naming_failures

OnProgress = Callable[[str, int, int], None]
STREETS, COCO = "cityscapes", "coco"
SIZE = (1024, 2048)
"""(height, width) at which models see streets; 800/1333, as for COCO, would shrink Cityscapes' images to .65."""
AP_DRAWS = 300


@dataclass(frozen=True)
class Ground:
    """Images that models were judged on."""

    key: str
    """`cityscapes` or `coco`."""
    root: Path
    split: str
    num_images: int
    num_in_split: int
    seen: str
    """The size at which the models saw them."""

    @property
    def prefix(self) -> str:
        """Return what the names of metrics begin with, which says if they are official."""
        name = f"{COCO}_{self.split}" if self.key == COCO else self.split
        return name if self.num_images == self.num_in_split else f"{name}_first_{self.num_images}"


@dataclass
class Subject:
    """A model of the study, and what it was worth."""

    label: str
    reference: str
    config: RunConfig
    origin: Mapping[str, str]
    """Of a converted model: the file that it was made from, and its licence."""
    num_parameters: int
    judged: dict[str, Judged] = field(default_factory=dict)
    """By the ground's key."""

    @property
    def knows_coco(self) -> bool:
        """Say whether it has COCO's 80 classes."""
        return self.config.model.classes == "coco"


@dataclass(frozen=True)
class Comparison:
    """A later model beside the first one, in one measure on the same images."""

    ground: str
    first: str
    second: str
    measure: str
    """`boundary_iou`, `mask_iou` (of objects that both found, image by image) or `cityscapes_ap`."""
    found: PairedDifference


@dataclass
class TransferStudy:
    """All that a transfer study found."""

    grounds: list[Ground]
    subjects: list[Subject] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    close_ups: list[tuple[str, CloseUp, bytes]] = field(default_factory=list)
    """The object's class, the object, and its picture as JPEG."""

    def list_metrics(self, subject: Subject) -> dict[str, float]:
        """Return all metrics of a model under their full names, its seconds per image among them."""
        metrics: dict[str, float] = {}
        for ground in self.grounds:
            if judged := subject.judged.get(ground.key):
                metrics |= {f"{ground.prefix}/{name}": value for name, value in judged.metrics.items()}
                metrics[f"{ground.prefix}/system/seconds_per_image"] = judged.median_seconds
        return metrics

    def to_json(self) -> dict[str, Any]:
        """Return plain data, null for what is not there to be measured."""
        return {
            "grounds": [{**vars(x), "root": str(x.root), "prefix": x.prefix} for x in self.grounds],
            "models": [
                {
                    "label": subject.label,
                    "reference": subject.reference,
                    "family": subject.config.model.family,
                    "backbone": subject.config.model.backbone,
                    "classes": subject.config.model.num_classes,
                    "num_parameters": subject.num_parameters,
                    "origin": dict(subject.origin),
                    "metrics": {k: None if np.isnan(v) else v for k, v in self.list_metrics(subject).items()},
                }
                for subject in self.subjects
            ],
            "comparisons": [{**vars(x), "found": x.found.to_json()} for x in self.comparisons],
        }


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
    checkpoints = [resolve_checkpoint(store, reference) for reference in references]
    subjects = [_describe(r, c, label) for r, c, label in zip(references, checkpoints, _label(references), strict=True)]
    images = index_coco(coco) if coco is not None else []
    frames, root = _open_streets(data, coco, store, on_progress)
    if not frames and (wrong := [subject.reference for subject in subjects if not subject.knows_coco]):
        raise WeightsError(f"{wrong[0]} must know COCO's 80 classes to be judged on COCO, but knows Cityscapes' 8.")
    grounds = []
    if frames:
        seen = "{} x {}".format(*size)
        grounds.append(Ground(STREETS, root, "val", len(frames[:limit]), len(frames), seen))
    if coco is not None:
        grounds.append(Ground(COCO, coco, SPLIT, len(images[:limit]), len(images), "800/1333"))
    study = TransferStudy(grounds, subjects)
    for subject, checkpoint in zip(subjects, checkpoints, strict=True):
        model, config = load_model(checkpoint)
        assert isinstance(model, InstanceModel)
        set_threads(config.threads)
        with repeatable(chosen), naming_failures("Take a device with more memory, or --device cpu."):
            model.to(chosen)
            if frames:
                count = partial(_count, on_progress, f"{subject.label} on Cityscapes", len(frames[:limit]))
                subject.judged[STREETS] = judge_streets(
                    model, frames[:limit], is_coco=subject.knows_coco, size=size, device=chosen, on_count=count
                )
            if coco is not None and subject.knows_coco:
                count = partial(_count, on_progress, f"{subject.label} on COCO", len(images[:limit]))
                subject.judged[COCO] = judge_coco(model, images[:limit], device=chosen, on_count=count)
        del model
    study.comparisons = [x for other in subjects[1:] for x in compare_subjects(subjects[0], other)]
    study.close_ups = _draw_close_ups(study, frames, images)
    return study


def compare_subjects(first: Subject, second: Subject) -> list[Comparison]:
    """Compare two models on every ground that both were judged on."""
    comparisons = []
    for ground in (STREETS, COCO):
        if ground not in first.judged or ground not in second.judged:
            continue
        own, other = first.judged[ground], second.judged[ground]
        pairs = {
            "boundary_iou": _average_objects(own, other, lambda x: x.boundary_iou),
            "mask_iou": _average_objects(own, other, lambda x: x.mask_iou),
        }
        found = {measure: compare_means(*scores) for measure, scores in pairs.items()}
        if ground == STREETS:
            score = partial(_score_both, own, other)
            found["cityscapes_ap"] = compare_scores(score, len(own.matches), draws=AP_DRAWS)
        comparisons += [Comparison(ground, first.label, second.label, name, x) for name, x in found.items()]
    return comparisons


def _average_objects(
    first: Judged, second: Judged, read: Callable[[FoundObject], float]
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]:
    """Return for each image both models' mean over the objects that both found, NaN where there is none."""
    means: tuple[list[float], list[float]] = ([], [])
    for image, objects in first.found.items():
        both = [number for number in objects if number in second.found[image]]
        for column, found in zip(means, (objects, second.found[image]), strict=True):
            column.append(float(np.mean([read(found[number]) for number in both])) if both else np.nan)
    return np.array(means[0]), np.array(means[1])


def _score_both(first: Judged, second: Judged, rows: "np.ndarray[Any, np.dtype[np.int64]]") -> tuple[float, float]:
    """Return Cityscapes' AP of both models on some images."""
    matrices = [compute_precisions([judged.matches[row] for row in rows]) for judged in (first, second)]
    scores = [float(np.nanmean(matrix)) if not np.isnan(matrix).all() else np.nan for matrix in matrices]
    return scores[0], scores[1]


def _count(on_progress: OnProgress, what: str, total: int, done: int) -> None:
    on_progress(what, done, total)


def _label(references: Sequence[str]) -> list[str]:
    """Return short names, one of its kind each."""
    stems = [Path(reference).stem if Path(reference).suffix else reference for reference in references]
    return [stem if stems.count(stem) == 1 else f"{stem} ({place})" for place, stem in enumerate(stems, start=1)]


def _describe(reference: str, checkpoint: Path, label: str) -> Subject:
    """Read who a model is. Raises WeightsError: it is no checkpoint, or finds no instances."""
    try:
        content = load_checkpoint(checkpoint)
        config = load_model(checkpoint)[1]
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
) -> tuple[list[Frame], Path]:
    """Return the labelled images of val and their root; none where only COCO is given. Raises DataError."""
    try:
        root = choose_root(data, None)
    except DataError as error:
        if coco is not None:
            return [], Path()
        raise DataError(f"{error} Or judge on COCO alone: --coco COCO_ROOT.") from error
    if root == SYNTHETIC:
        scenes = SyntheticConfig()
        folder = make_scenes(scenes, cache_folder(store), partial(on_progress, "making scenes"))
    else:
        folder = Path(root)
    frames = index_split(folder, "val")
    check_completeness(folder, "val", frames)
    return list(frames), folder


def _draw_close_ups(
    study: TransferStudy, frames: Sequence[Frame], images: Sequence[CocoImage]
) -> list[tuple[str, CloseUp, bytes]]:
    """Draw objects that the first two models found, in streets where there are any, else in COCO's images."""
    subjects, drawn = study.subjects[:2], []
    ground = STREETS if frames else COCO
    if len(subjects) < 2 or any(ground not in subject.judged for subject in subjects):
        return []
    names = THING_NAMES if frames else COCO_NAMES
    for close_up in choose_close_ups(*(subject.judged[ground].found for subject in subjects)):
        if frames:
            frame = next(frame for frame in frames if frame.name == close_up.image)
            assert frame.instance_ids is not None
            pixels, truths = read_image(frame.image), list(annotate_raster(read_instance_ids(frame.instance_ids)))
        else:
            image = next(image for image in images if image.name == close_up.image)
            pixels, truths = read_picture(image.path), encode_annotations(image)
        truth = truths[close_up.number]
        picture = draw_close_up(pixels, truth["segmentation"], close_up, [subject.label for subject in subjects])
        drawn.append((names[truth["category_id"] - 1], close_up, encode_picture(picture)))
    return drawn
