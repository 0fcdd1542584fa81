"""The images of one training: from a dataset's root and two rules to two caches of decoded pixels.

Whoever needs the dataset's fingerprint or its facts (the coordinator, a worker, `promote`) surveys it here, so
that all of them see the same one.
"""

from dataclasses import dataclass
from pathlib import Path

from cityopt.config import RunConfig
from cityopt.data.cache import ImageCache, open_cache
from cityopt.data.cityscapes import (
    Frame,
    FrameFacts,
    OnCount,
    check_names,
    fingerprint,
    index_split,
    list_frames,
    scan_frames,
)
from cityopt.data.roots import make_scenes, place_scenes
from cityopt.data.subset import hash_names, pick_images
from cityopt.errors import ConfigError, DataError
from cityopt.image_set import ImageSet


@dataclass(frozen=True)
class Survey:
    """What a dataset holds in train and val, or in one split under coarse labels, without its pixels."""

    root: Path
    frames: dict[str, Frame]
    """By name, of all its splits."""
    facts: list[FrameFacts]
    fingerprint: str


@dataclass(frozen=True)
class TrainingData:
    """The caches of one training; in each of them all images count."""

    train: ImageCache
    validation: ImageCache
    train_fingerprint: str
    """Of the labels that are trained on: coarse ones have their own."""
    train_hash: str
    """Content hash of the names of the training images: the subset's identity."""
    validation_hash: str
    train_facts: list[FrameFacts]
    validation_facts: list[FrameFacts]
    """Both in the order of their caches."""
    fingerprint: str


def survey_dataset(root: str | Path, cache: Path, on_count: OnCount | None = None) -> Survey:
    """Index train and val of a dataset and look once into each label; `cache` remembers what was seen.

    A dataset without val is fine here: only promotion and evaluation need it. Raises DataError: files are missing or
    broken, or two images of these splits share a name.
    """
    frames = index_split(root, "train")
    if list_frames(root, "val", "fine"):
        frames += index_split(root, "val")
    check_names(frames)  # an image of val must never stand in for one of train
    facts = scan_frames(frames, cache / "facts.json", on_count)
    return Survey(Path(root), {frame.name: frame for frame in frames}, facts, fingerprint(facts))


def survey_coarse(root: str | Path, split: str, cache: Path, on_count: OnCount | None = None) -> Survey:
    """Index one split under its coarse labels, as `survey_dataset` does the fine ones; the fingerprint is its own.

    Raises DataError: no such split or no gtCoarse, and whatever is broken.
    """
    frames = index_split(root, split, "coarse")
    facts = scan_frames(frames, cache / "facts.json", on_count)
    return Survey(Path(root), {frame.name: frame for frame in frames}, facts, fingerprint(facts))


def survey_images(fine: Survey, image_set: ImageSet, cache: Path, on_count: OnCount | None = None) -> Survey:
    """Return the survey that a rule picks images from: `fine`, or one of the coarse labels. Raises DataError."""
    if image_set.labels == "fine":
        return fine
    return survey_coarse(fine.root, image_set.split, cache, on_count)


def prepare_data(config: RunConfig, on_count: OnCount | None = None) -> TrainingData:
    """Pick the images of a training and open their caches, which are built where they are not there yet.

    Synthetic scenes are made where they are missing: another machine has begun the study then.

    Raises ConfigError (no root) and DataError (broken files, another dataset than the config was made for, no
    image in one of the sets).
    """
    if config.data.root is None:
        raise ConfigError("`data.root` must be the dataset's folder when a training starts, but is null. Give --data.")
    cache = Path(config.cache)
    if not Path(config.data.root).exists() and Path(config.data.root) == place_scenes(config.data.synthetic, cache):
        make_scenes(config.data.synthetic, cache, on_count)
    survey = survey_dataset(config.data.root, cache, on_count)
    check_fingerprint(survey, config.fingerprint)
    train_survey = survey_images(survey, config.train_set, cache, on_count)
    check_train_fingerprint(train_survey, config.train_fingerprint)
    train, validation = pick_facts(train_survey, config.train_set), pick_facts(survey, config.validation_set)
    return TrainingData(
        train=open_set(train_survey, config.train_set, config, on_count),
        validation=open_set(survey, config.validation_set, config, on_count),
        train_fingerprint=train_survey.fingerprint,
        train_hash=hash_names(fact.name for fact in train),
        validation_hash=hash_names(fact.name for fact in validation),
        train_facts=train,
        validation_facts=validation,
        fingerprint=survey.fingerprint,
    )


def check_fingerprint(survey: Survey, wanted: str | None) -> None:
    """Check that a dataset is the one that is wanted; None takes any. Raises DataError: it is another one."""
    if wanted not in (None, survey.fingerprint):
        raise DataError(
            f"the dataset at {survey.root} must be the one the study began with (fingerprint {wanted}), "
            f"but has fingerprint {survey.fingerprint}. Restore its files, or begin another study with --name."
        )


def check_train_fingerprint(survey: Survey, wanted: str | None) -> None:
    """Check that coarse labels are those that a training was planned with; None takes any. Raises DataError."""
    if wanted not in (None, survey.fingerprint):
        raise DataError(
            f"the coarse labels at {survey.root} must be those that the training was planned with (fingerprint "
            f"{wanted}), but have fingerprint {survey.fingerprint}. Promote again: it plans anew."
        )


def pick_facts(survey: Survey, image_set: ImageSet) -> list[FrameFacts]:
    """Return the facts of the images that a rule picks, by ascending name. Raises DataError: there are none."""
    names = set(pick_images(survey.facts, image_set))
    return sorted((fact for fact in survey.facts if fact.name in names), key=lambda fact: fact.name)


def open_set(survey: Survey, image_set: ImageSet, config: RunConfig, on_count: OnCount | None) -> ImageCache:
    """Open the cache of the images that a rule picks. The folds of a split share one cache of all of it."""
    facts = pick_facts(survey, image_set)
    if image_set.part not in ("fold", "rest"):
        return open_images(survey, facts, config, on_count)
    whole = open_images(survey, pick_facts(survey, ImageSet(split=image_set.split)), config, on_count)
    return whole.select(fact.name for fact in facts)


def open_images(survey: Survey, facts: list[FrameFacts], config: RunConfig, on_count: OnCount | None) -> ImageCache:
    """Open the cache of some images at the config's size, in the order of their names."""
    return open_cache(
        [survey.frames[fact.name] for fact in facts],
        size=config.data.size,
        folder=Path(config.cache),
        fingerprint=survey.fingerprint,
        progress=on_count,
    )
