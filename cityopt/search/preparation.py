"""What a study needs before its first trial: a dataset, its subset and holdout, their caches, its anchors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cityopt.config import StudyConfig
from cityopt.data.anchors import choose_anchors
from cityopt.data.cache import ImageCache, open_cache
from cityopt.data.cityscapes import FrameFacts, check_root, index_split
from cityopt.data.roots import SYNTHETIC, cache_folder, choose_root, make_scenes
from cityopt.data.subset import hash_names
from cityopt.data.subset_quality import ClassCounts, count_classes
from cityopt.data.targets import find_instances
from cityopt.errors import ConfigError
from cityopt.search.observer import Observer
from cityopt.search.space import training_subset, trial_holdout
from cityopt.settings import replace_settings
from cityopt.store import open_store
from cityopt.training.dataset import Survey, pick_facts, survey_dataset


@dataclass(frozen=True)
class PreparedStudy:
    """A study whose data is at hand. `config.data.root` says what was asked for, `root` where that is."""

    config: StudyConfig
    root: Path
    fingerprint: str
    subset: tuple[str, ...]
    """Names of the images that trials train on."""
    holdout: tuple[str, ...]
    """Names of the images that trials validate on."""
    anchor_report: dict[str, Any]
    class_counts: ClassCounts = field(default_factory=dict)
    """What the subset shows of each class beside all training images."""

    @property
    def subset_hash(self) -> str:
        """Content hash of the subset."""
        return hash_names(self.subset)

    @property
    def holdout_hash(self) -> str:
        """Content hash of the holdout."""
        return hash_names(self.holdout)


def prepare_study(
    config: StudyConfig,
    store: Path,
    *,
    data: str | None,
    observer: Observer,
    decode: bool = True,
    fitted: Mapping[str, Any] | None = None,
) -> PreparedStudy:
    """Find or make the dataset, pick the images, decode them once and fit the anchors.

    `fitted` is the report of the anchors that the study has already. Without `decode` the images of a semantic model,
    which needs no anchors, are left to whoever trains.

    Raises DataError: no dataset, or a broken one.
    """
    cache = cache_folder(store)
    config = replace_settings(config, {"data.root": choose_root(data, config.data.root)})
    root = open_root(config, cache, observer)
    survey = survey_dataset(root, cache, observer.reporter("reading labels"))
    subset, holdout = (pick_facts(survey, rule) for rule in (training_subset(config), trial_holdout(config)))
    report: dict[str, Any] = {}
    if decode or config.model.task == "instance":
        images = [_open_images(survey, facts, config, cache, observer) for facts in (subset, holdout)]
        if fitted is not None:
            report = dict(fitted)
        elif config.model.task == "instance":
            report = _fit_anchors(config, *images)
    names = [tuple(fact.name for fact in facts) for facts in (subset, holdout)]
    counts = count_classes(subset, [fact for fact in survey.facts if fact.split == "train"])
    return PreparedStudy(config, root, survey.fingerprint, names[0], names[1], report, counts)


def fit_anchors(config: StudyConfig, *, store: Path, data: str | None, observer: Observer) -> dict[str, Any]:
    """Return what `cityopt anchors` shows: a study's anchors, and their recall beside torchvision's defaults.

    Raises ConfigError: the family has no anchors. Raises DataError: no dataset; the store is untouched then.
    """
    if config.model.task == "semantic":
        raise ConfigError(
            f"`cityopt anchors` is for models that find instances, but study {config.name!r} has "
            f"`model.family: {config.model.family}`, which has no anchors."
        )
    check_dataset_exists(choose_root(data, config.data.root))
    return prepare_study(config, open_store(store), data=data, observer=observer).anchor_report


def check_dataset_exists(root: str) -> None:
    """Refuse a wrong root before anything is written. Raises DataError."""
    if root != SYNTHETIC:
        index_split(root, "train")


def _fit_anchors(config: StudyConfig, subset: ImageCache, holdout: ImageCache) -> dict[str, Any]:
    _, report = choose_anchors(
        config.model.anchors,
        _collect_boxes(subset),
        _collect_boxes(holdout),
        seed=config.seed,
        image_size=config.data.size,
        table=config.model.anchor_table,
    )
    return report


def open_root(config: StudyConfig, cache: Path, observer: Observer) -> Path:
    """Return the folder of a study's dataset; `synthetic` makes the scenes where they are missing. Raises DataError."""
    root = choose_root(None, config.data.root)
    if root == SYNTHETIC:
        return make_scenes(config.data.synthetic, cache, observer.reporter("making scenes"))
    return check_root(root)


def _open_images(
    survey: Survey, facts: list[FrameFacts], config: StudyConfig, cache: Path, observer: Observer
) -> ImageCache:
    return open_cache(
        [survey.frames[fact.name] for fact in facts],
        size=config.data.size,
        folder=cache,
        fingerprint=survey.fingerprint,
        progress=observer.reporter(f"decoding {len(facts)} images"),
    )


def _collect_boxes(cache: ImageCache) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the boxes (N, 4) of all instances of a cache, in pixels of the training size."""
    boxes = [find_instances(raster).boxes_xyxy for raster in cache.instances]
    return np.concatenate([np.zeros((0, 4), np.float32), *boxes])
