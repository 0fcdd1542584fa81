"""The story of `cityopt compare`: two models on the same images at full resolution, score by score and image by image.

Each model sees each image once, at the size of its own training, and is judged where the ground truth is. Differences
are those of all images together, with a paired bootstrap over images (`evaluation/paired.py`); the pictures are of the
images on which one of them wins by most.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cityopt.config import RunConfig, Task
from cityopt.data.cityscapes import Frame, check_completeness, index_split, read_image
from cityopt.data.subset import pick_half
from cityopt.errors import ConfigError
from cityopt.evaluation.full_resolution import predict_frames
from cityopt.evaluation.image_scores import ImageScores, InstanceScores, Rows, SemanticScores
from cityopt.evaluation.maps import draw_maps
from cityopt.evaluation.overlays import draw_overlay, encode_picture
from cityopt.evaluation.paired import PairedDifference, compare_scores
from cityopt.image_set import choose_val
from cityopt.labels import EVALUATED_LABELS, THING_NAMES
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import SegmentationModel
from cityopt.runtime import repeatable, resolve_device, set_threads
from cityopt.tracking.mlflow_registry import resolve_checkpoint
from cityopt.training.checkpoint import check_classes, load_model
from cityopt.training.evaluation import OnProgress, open_data
from cityopt.training.failures import naming_failures
from cityopt.training.samples import score_image

DRAWS = 500
NUM_PICTURES = 3
"""Of the images on which one model wins by most, for each of the two."""
METRICS: dict[Task, tuple[str, ...]] = {
    "instance": (
        *(f"coco/segm/{name}" for name in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")),
        *(f"coco/segm/ap/class/{name}" for name in THING_NAMES),
    ),
    "semantic": (
        *(f"semantic/{name}" for name in ("miou", "iiou", "accuracy")),
        *(f"semantic/iou/class/{label.name}" for label in EVALUATED_LABELS),
    ),
}
MEASURES: dict[Task, str] = {"instance": "F1 at IoU .5", "semantic": "mean class IoU"}


@dataclass(frozen=True)
class Difference:
    """One score of both models on the same images, and what a paired bootstrap says of the second minus the first."""

    metric: str
    first: float
    second: float
    paired: PairedDifference


@dataclass(frozen=True)
class ImagePair:
    """Both models' scores of one image, and their pictures where it is shown."""

    name: str
    first: float
    second: float
    pictures: tuple[bytes, ...] = ()
    """JPEGs, the first model's first."""


@dataclass(frozen=True)
class ModelComparison:
    """Two models on the same images."""

    models: tuple[str, str]
    root: Path
    prefix: str
    """The split, and whether it is only a part of it; begins the metrics' names."""
    task: Task
    differences: tuple[Difference, ...]
    images: tuple[ImagePair, ...]
    """All that both have a score of, those first that the first model wins by most."""
    shown: tuple[ImagePair, ...]

    @property
    def wins(self) -> tuple[int, int]:
        """On how many images each model is better."""
        return sum(x.first > x.second for x in self.images), sum(x.second > x.first for x in self.images)

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain data: null where there is nothing to judge."""
        rows = {
            f"{self.prefix}/{row.metric}": {
                "first": _or_null(row.first),
                "second": _or_null(row.second),
                **row.paired.to_json(),
            }
            for row in self.differences
        }
        images = [{"image": x.name, "first": x.first, "second": x.second} for x in self.images]
        wins = dict(zip(("first", "second"), self.wins, strict=True))
        return {"models": list(self.models), "metrics": rows, "wins": wins, "images": images}


def run_comparison(
    models: tuple[str, str],
    *,
    store: Path,
    data: str | None = None,
    split: str = "val",
    limit: int | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
) -> ModelComparison:
    """Judge two models (references as `cityopt evaluate` takes them) on the same images of train or val.

    Raises:
        ConfigError: models of different tasks, or whose studies halve val in different ways; a limit below 1.
        DataError: no such root or split; images or labels missing or broken.
        StoreError, WeightsError, TrainingError: as `run_evaluation`.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"`--limit` must be at least 1, but got {limit}. Leave it out to take all images.")
    chosen = resolve_device(device)
    loaded = [load_model(resolve_checkpoint(store, reference)) for reference in models]
    for reference, (_, config) in zip(models, loaded, strict=True):
        check_classes(config, reference)
    task = _find_task([network for network, _ in loaded], models)
    root = open_data(data, loaded[0][1], store, on_progress)
    frames = _pick_frames(root, split, [config for _, config in loaded])
    part = frames[:limit]
    prefix = split if len(part) == len(frames) else f"{split}_first_{len(part)}"
    set_threads(loaded[0][1].threads)
    with repeatable(chosen), naming_failures("Take a device with more memory, or --device cpu."):
        judged = []
        for reference, (network, config) in zip(models, loaded, strict=True):
            count = partial(on_progress, f"judging {reference}")
            judged.append(_judge(network.to(chosen).eval(), config, part, chosen, count))
        images = _pair_images([scores for _, scores in judged], [frame.name for frame in part])
        shown = _choose_shown(images)
        pictures = [_draw(network, config, part, shown, chosen) for network, config in loaded]
    found = _compare(METRICS[task], judged[0][0], judged[1][0], partial(on_progress, "comparing"))
    drawn = tuple(ImagePair(x.name, x.first, x.second, tuple(some[x.name] for some in pictures)) for x in shown)
    return ModelComparison(models, root, prefix, task, tuple(found), tuple(images), drawn)


def _find_task(networks: Sequence[SegmentationModel], models: tuple[str, str]) -> Task:
    tasks = [network.task for network in networks]
    if tasks[0] != tasks[1]:
        raise ConfigError(
            f"models that are compared must be of one task, but {models[0]} finds {tasks[0]} and {models[1]} "
            f"{tasks[1]} segments. Compare them by `cityopt evaluate --protocol semantic`."
        )
    return tasks[0]


def _pick_frames(root: Path, split: str, configs: Sequence[RunConfig]) -> list[Frame]:
    """Return the images of train, or of what both models were chosen on of val."""
    if split not in ("train", "val"):
        raise ConfigError(f"`--split` must be train or val, which have labels, but got {split!r}.")
    frames = index_split(root, split)
    check_completeness(root, split, frames)
    halves = {config.data.val_halves for config in configs}
    if split == "train" or halves == {"none"}:
        return list(frames)
    if len(halves) > 1:
        raise ConfigError(f"both models' studies must halve val in one way, but have data.val_halves {sorted(halves)}.")
    return pick_half(frames, choose_val(halves.pop()))


def _judge(
    network: SegmentationModel,
    config: RunConfig,
    frames: Sequence[Frame],
    device: torch.device,
    on_count: Callable[[int, int], None],
) -> tuple[ImageScores, dict[str, float]]:
    """Return what is kept of each image, and each image's own score by its name."""
    kept: InstanceScores | SemanticScores = InstanceScores() if network.task == "instance" else SemanticScores()
    own: dict[str, float] = {}
    found = predict_frames(network, frames, size=config.data.size, device=device)
    for index, (decoded, prediction) in enumerate(found):
        assert decoded.raster is not None
        if isinstance(kept, InstanceScores):
            assert isinstance(prediction, Prediction)
            kept.add(decoded.frame.name, decoded.raster, prediction)
        else:
            assert isinstance(prediction, SemanticMap)
            kept.add(decoded.frame.name, decoded.raster, prediction.label_ids)
        own[decoded.frame.name] = score_image(index, decoded.frame.name, prediction, decoded.raster).value
        on_count(index + 1, len(frames))
    return kept, own


def _pair_images(scores: Sequence[dict[str, float]], names: Sequence[str]) -> list[ImagePair]:
    pairs = [ImagePair(name, scores[0][name], scores[1][name]) for name in names]
    known = [pair for pair in pairs if not math.isnan(pair.first + pair.second)]
    return sorted(known, key=lambda pair: (pair.second - pair.first, pair.name))


def _choose_shown(images: Sequence[ImagePair]) -> list[ImagePair]:
    """Return the images that each model wins by most."""
    first = [pair for pair in images if pair.first > pair.second][:NUM_PICTURES]
    return first + [pair for pair in reversed(images) if pair.second > pair.first][:NUM_PICTURES]


def _draw(
    network: SegmentationModel,
    config: RunConfig,
    frames: Sequence[Frame],
    shown: Sequence[ImagePair],
    device: torch.device,
) -> dict[str, bytes]:
    """Return a model's picture of each shown image by name."""
    names, pictures = {pair.name for pair in shown}, {}
    wanted = [frame for frame in frames if frame.name in names]
    for decoded, prediction in predict_frames(network, wanted, size=config.data.size, device=device):
        image = read_image(decoded.frame.image)
        if isinstance(prediction, SemanticMap):
            picture = draw_maps(image, prediction.label_ids, decoded.raster)
        else:
            picture = draw_overlay(image, prediction, decoded.raster)
        pictures[decoded.frame.name] = encode_picture(picture)
    return pictures


def _compare(
    metrics: Sequence[str], first: ImageScores, second: ImageScores, on_count: Callable[[int, int], None]
) -> list[Difference]:
    """Compare all scores on the same draws of images, each of which is judged once."""
    scores, count = [scored.prepare(metrics) for scored in (first, second)], len(first.names)
    known: dict[bytes, list[tuple[float, ...]]] = {}

    def score(place: int, rows: Rows) -> tuple[float, float]:
        draw = rows.tobytes()
        if draw not in known:
            known[draw] = [judge(rows) for judge in scores]
            on_count(len(known), DRAWS + 1)
        one, other = known[draw]
        return one[place], other[place]

    everything, found = np.arange(count), []
    for place, metric in enumerate(metrics):
        paired = compare_scores(partial(score, place), count, draws=DRAWS)
        found.append(Difference(metric, *score(place, everything), paired))
    return found


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value
