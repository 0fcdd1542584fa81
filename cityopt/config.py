"""The settings of a study and of a training: typed, documented, and checked where they are declared.

A `StudyConfig` is what a YAML in `sweeps/` says (`study_file.py` reads it). A `RunConfig` is one training of it,
complete: a worker, a test or a notebook can train from it and nothing else. Keys are dotted paths
(`training.learning_rate`) everywhere (`settings.py`): in `--set`, in the search space and in baselines.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cityopt.dimension import Dimension, Scalar, check_conditions
from cityopt.errors import ConfigError
from cityopt.image_set import Halves, ImageSet
from cityopt.promotion import SEARCHED_DATA, PromotionConfig, StageConfig, check_promoted
from cityopt.search_config import PositiveInt, SearchConfig, check_comparable, check_loss
from cityopt.settings import STUDY_NAME, Section, check_settings, name_nearest

Fraction = Annotated[float, Field(ge=0, le=1)]
Task = Literal["instance", "semantic"]
"""What a model makes of an image: masks of the eight thing classes, or a class for each pixel."""


class SyntheticConfig(Section):
    """The scenes that `data.root: synthetic` makes."""

    num_images: Annotated[int, Field(strict=True, ge=3)] = 300
    size: tuple[PositiveInt, PositiveInt] = (256, 512)
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    coarse: bool = False
    """Also make gtCoarse, and half as many images again in train_extra, which have nothing else."""


class DataConfig(Section):
    """Which images, at which size, and what is held out of training."""

    root: str | None = None
    """Dataset root, or `synthetic`. `--data` comes before it, `CITYSCAPES_DATASET` after it."""
    size: tuple[PositiveInt, PositiveInt] = (1024, 2048)
    """(height, width) in pixels that images and rasters are resized to."""
    num_images: PositiveInt | None = None
    """Size of the trials' training subset; null takes all training images outside the holdout."""
    num_holdout: PositiveInt | None = None
    """Trials validate on at most this many images of the held-out cities; null takes all of them."""
    holdout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of the training images, in whole cities, that trials validate on."""
    val_halves: Literal["none"] | Halves = "none"
    """Finished models are judged on the first half of val alone; only `evaluate --split test` sees the other one."""
    hflip: Fraction = 0.5
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    """Range of the random zoom; below 1 pads with black, above 1 crops."""
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of each side that a random window of a training image has, zoomed to the frame; 1 is the whole image."""
    color_jitter: Fraction = 0.0
    """Strength of random brightness, contrast and saturation (20 % each) and hue (10 %); 1 is all of it, 0 none."""
    blur: Fraction = 0.0
    """Chance of a Gaussian blur with a sigma of 0.1 to 2 px."""
    repeat_threshold: Fraction = 0.0
    """Images are drawn more often for classes that fewer than this share of them show; 0 draws each once an epoch."""
    num_workers: Annotated[int, Field(strict=True, ge=0)] = 0
    """Loader processes per training; 0 loads in the training process."""
    synthetic: SyntheticConfig = SyntheticConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.scale_jitter
        if not 0 < low <= high:
            raise ValueError(f"`0 < low <= high` must hold, but got scale_jitter=({low}, {high})")
        return self


class AnchorTable(Section):
    """Anchors in numbers: per pyramid level the sizes (sqrt of the area, px) and ratios (height / width)."""

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        counts = {len(row) for row in (*self.sizes, *self.ratios)}
        if len(self.sizes) != 5 or len(self.ratios) != 5 or len(counts) != 1:
            raise ValueError("sizes and ratios need 5 rows (P2..P6) of one common length")
        if any(value <= 0 for row in (*self.sizes, *self.ratios) for value in row):
            raise ValueError("anchor sizes and ratios must be positive")
        return self


DEFAULT_ANCHORS = AnchorTable(
    sizes=tuple((size,) * 3 for size in (32.0, 64.0, 128.0, 256.0, 512.0)), ratios=((0.5, 1.0, 2.0),) * 5
)
"""Torchvision's anchors for feature pyramids: one size per level, ratios 1:2, 1:1, 2:1."""


class ModelConfig(Section):
    """The model family and its size."""

    family: Literal["mask_rcnn", "point_rend", "semantic_fpn", "unet", "unet_resnet34"] = "mask_rcnn"
    classes: Literal["cityscapes", "coco"] = "cityscapes"
    """Which objects the heads know: 8 or 80 classes. Studies train Cityscapes' classes."""
    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet50"
    flavour: Literal["torchvision", "detectron2", "torchvision_coco"] = "torchvision"
    """Whose weights. detectron2's halve in a block's first convolution, and see 0..255 BGR; `…_coco` moves RoIs."""
    weights: str = "coco"
    """`coco`, `imagenet`, `none`, or the path of a checkpoint."""
    rider_from: Literal["person", "random", "none"] = "person"
    """Heads of COCO's classes give Cityscapes' their rows, but COCO has no rider; `none` starts all heads afresh."""
    freeze_depth: Annotated[int, Field(strict=True, ge=0, le=5)] = 2
    """Frozen backbone stages from the input: 0 trains all, 1 freezes the stem, 5 the whole backbone."""
    backbone_norm: Literal["auto", "batch", "frozen"] = "auto"
    """Batch norm of a ResNet with an FPN: `batch` learns, `frozen` is constant, `auto` learns if `weights: none`."""
    anchors: Literal["kmeans", "default", "explicit"] = "kmeans"
    anchor_table: AnchorTable | None = None
    """The anchors of `anchors: explicit`."""
    stem_channels: PositiveInt = 64
    """Width of the first stage of a `resnet18`; pretrained weights need 64."""
    fpn_channels: PositiveInt = 256
    box_head_channels: PositiveInt = 1024
    mask_head_channels: PositiveInt = 256
    mask_head_layers: PositiveInt = 4
    coarse_head_channels: PositiveInt = 1024
    """Width of the layers behind PointRend's coarse mask."""
    train_points: PositiveInt = 196
    """Points per object that PointRend's point head trains on."""
    subdivision_points: PositiveInt = 784
    """Points per object that PointRend decides anew each time that it doubles a mask's resolution."""
    predicted_mask_boxes: bool = True
    """PointRend trains masks in the boxes that the box head predicts, not in the proposals."""
    rpn_pre_nms: PositiveInt = 1000
    """Proposals per level before non-maximum suppression (twice as many in training)."""
    rpn_post_nms: PositiveInt = 1000
    roi_samples: PositiveInt = 512
    """Regions of interest per image that the box head trains on."""
    num_detections: PositiveInt = 100
    score_threshold: Fraction = 0.05
    semantic_head_channels: PositiveInt = 128
    """Width of a `semantic_fpn`'s head."""
    start_channels: PositiveInt = 16
    """Width of a `unet`'s first level; each pooling doubles it."""
    depth: Annotated[int, Field(strict=True, ge=1, le=8)] = 4
    """Poolings of a `unet`."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Norm of a `unet`."""
    loss: Literal["cross_entropy", "focal", "dice", "cross_entropy+dice", "focal+dice"] = "cross_entropy"
    """Loss of a semantic model."""
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs cross-entropy and focal loss by how rare a class is in the training images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.anchors == "explicit") != (self.anchor_table is not None):
            raise ValueError("`anchors: explicit` and `anchor_table` go together: give both or neither")
        if self.family == "unet" and (self.weights != "none" or self.freeze_depth):
            raise ValueError(
                "`family: unet` trains from random values: `weights: none` and `freeze_depth: 0` must hold, but got "
                f"weights={self.weights!r}, freeze_depth={self.freeze_depth}"
            )
        foreign = self.weights in ("coco", "imagenet") or self.backbone == "resnet18" or self.task == "semantic"
        if self.flavour != "torchvision" and foreign:
            raise ValueError(
                f"`flavour: {self.flavour}` is for networks that `cityopt weights convert` made, but got "
                f"family={self.family!r}, weights={self.weights!r}, backbone={self.backbone!r}"
            )
        return self

    @property
    def task(self) -> Task:
        """What the family predicts."""
        return "instance" if self.family in ("mask_rcnn", "point_rend") else "semantic"

    @property
    def num_classes(self) -> int:
        """Classes that the heads tell apart, the background not counted."""
        return {"cityscapes": 8, "coco": 80}[self.classes]


class TrainingConfig(Section):
    """How one training goes."""

    epochs: PositiveInt = 12
    batch_size: PositiveInt = 8
    """Images per optimiser step."""
    accumulation: PositiveInt = 1
    """Micro-batches per optimiser step; must divide `batch_size`."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """Per batch of 8; scaled linearly with `batch_size`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Not applied to norms and biases."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["step", "cosine", "constant"] = "step"
    milestones: tuple[Fraction, ...] = (0.75,)
    """Shares of all steps after which `step` divides the learning rate by 10."""
    warmup_fraction: Fraction = 0.05
    """Share of all steps over which the learning rate rises linearly from a hundredth."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on CUDA, float32 elsewhere. bfloat16 is autocast in training steps; weights, optimiser and
    validation stay float32."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation must divide batch_size, but got accumulation={self.accumulation}, "
                f"batch_size={self.batch_size}"
            )
        return self


class StudyConfig(Section):
    """One study, as its YAML says."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    threads: PositiveInt | None = None
    """CPU threads of a training; null divides the cores among the workers. Part of the study: scores depend on it."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    promotion: PromotionConfig = PromotionConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model.classes != "cityscapes":
            raise ValueError(f"a study trains `model.classes: cityscapes`, but got {self.model.classes!r}")
        for key, dimension in self.search.space.items():
            _check_dimension(self, key, dimension)
        for number, baseline in enumerate(self.search.baselines):
            _check_baseline(self, number, baseline)
        if self.search.pruner.name != "none" and self.search.pruner.min_epochs > self.training.epochs:
            raise ValueError(
                "`search.pruner.min_epochs <= training.epochs` must hold, but got "
                f"min_epochs={self.search.pruner.min_epochs}, epochs={self.training.epochs}"
            )
        if self.search.pruner.name != "none":
            _check_warmup(self)
        check_conditions(self.search.space)
        _turn_error(check_loss, self.search.metric, self.search.space, self.model.class_weights)
        _check_poolings(self, {})
        _check_overrides(self)
        return self


class RunConfig(Section):
    """One training, complete: what a worker needs and nothing else."""

    study: str
    name: str
    """`trial-0007`, `finalists-0001-trial-0007-seed-2`, `promotion-0001`, `promotion-0001-pretrain`,
    `crossval-0001-fold-2`."""
    kind: Literal["trial", "finalist", "promotion", "stage", "fold", "final", "conversion"]
    """`stage`: before a promotion's last one. `conversion`: its checkpoint was made from another framework's."""
    seed: int
    threads: PositiveInt
    device: str = "auto"
    devices: PositiveInt = 1
    """Processes that train it together, one per device: `training.batch_size` is shared out among them."""
    cache: str
    """Folder of the image cache."""
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    train_set: ImageSet
    validation_set: ImageSet
    metric: str = "val/coco/segm/ap"
    direction: Literal["maximize", "minimize"] = "maximize"
    keep: Literal["best", "last"] = "best"
    """Which epoch's checkpoint is the run's result: a fixed schedule judged on val keeps its last."""
    stop_epoch: PositiveInt | None = None
    """Epoch after which training ends, on a schedule that would go on to `training.epochs`."""
    fingerprint: str | None = None
    """Fingerprint that the dataset must have; null takes any."""
    train_fingerprint: str | None = None
    """Fingerprint that the labels trained on must have, where they are coarse; null takes any."""
    weights_hash: str | None = None
    """Content hash of the file of `model.weights` when the training was planned: another content is another one."""

    @property
    def last_epoch(self) -> int:
        """Return how many epochs are trained."""
        return min(self.stop_epoch or self.training.epochs, self.training.epochs)


def _check_warmup(study: StudyConfig) -> None:
    searched = study.search.space.get("training.warmup_fraction")
    fractions = searched.examples() if searched else (study.training.warmup_fraction,)
    epochs, min_epochs = max(map(float, fractions)) * study.training.epochs, study.search.pruner.min_epochs
    if min_epochs <= epochs:
        raise ValueError(
            "`search.pruner.min_epochs` must lie beyond the warm-up (training.warmup_fraction x training.epochs = "
            f"{epochs:g}), where no score means anything yet, but got {min_epochs}"
        )


def _check_poolings(study: StudyConfig, settings: Mapping[str, Any], where: str = "") -> None:
    """Check that a U-Net's poolings leave something of the image, and values enough for a batch norm."""
    families, (size,) = (_list_values(study, settings, key) for key in ("model.family", "data.size"))
    deepest = max(int(depth) for depth in _list_values(study, settings, "model.depth"))
    if "unet" in families and 2**deepest > min(size):
        raise ValueError(
            f"{where}`model.depth` must be at most {int(math.log2(min(size)))} at data.size={list(size)}, "
            f"since each pooling halves the image, but it may be {deepest}"
        )
    cells = {"unet": 2**deepest, "unet_resnet34": 32}
    if "batch" not in _list_values(study, settings, "model.norm"):
        del cells["unet"]
    batches, steps = (_list_values(study, settings, f"training.{key}") for key in ("batch_size", "accumulation"))
    alone = min(batches) <= max(steps)
    if alone and (single := [family for family in families if cells.get(family, 0) >= max(size)]):
        raise ValueError(
            f"{where}micro-batches must have 2 images or more where a {single[0]} leaves a single pixel of "
            f"data.size={list(size)}, since batch norm needs more than one value, but they may have 1"
        )


def _list_values(study: StudyConfig, settings: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    """Return what a training may have: the value of its settings, else what is searched, else the study's own."""
    if key in settings:
        return (settings[key],)
    section, name = key.split(".")
    own, searched = getattr(getattr(study, section), name), study.search.space.get(key)
    if searched is None:
        return (own,)
    return (*searched.examples(), *([own] if searched.when else []))


def _check_dimension(study: StudyConfig, key: str, dimension: Dimension) -> None:
    if (key.startswith("data.") and key not in SEARCHED_DATA) or key.startswith("model.anchor"):
        raise ValueError(
            f"`search.space` cannot hold {key!r}: images and anchors are fixed once for all trials of a study. "
            f"Of `data` it may hold {' and '.join(SEARCHED_DATA)}"
        )
    for value in dimension.examples():
        check_settings(study, "search.space", {key: value})
    if key == "model.family":
        tasks = {study.model.model_copy(update={"family": family}).task for family in dimension.examples()}
        if tasks != {study.model.task}:
            raise ValueError("`search.space.model.family` must hold families of one task: trials share an objective")
    space = study.search.space
    for other, value in dimension.when.items():
        if other not in space or other == key:
            raise ValueError(f"`search.space.{key}.when` must name another searched setting, but got {other!r}")
        if not space[other].admits(value):
            raise ValueError(f"`search.space.{key}.when` must hold for some trial, but {other!r} is never {value!r}")


def _turn_error(check: Callable[..., None], *arguments: Any) -> None:
    """Run a check, and raise its ConfigError as the ValueError that a validator is to raise."""
    try:
        check(*arguments)
    except ConfigError as error:
        raise ValueError(str(error).removesuffix(".")) from error


def _check_overrides(study: StudyConfig) -> None:
    overrides, where = study.promotion.overrides, "promotion.overrides"
    _turn_error(check_promoted, overrides, where)
    _turn_error(check_comparable, study.search.metric, overrides, where)
    if overrides:
        check_settings(study, where, overrides)
        if not study.promotion.trained:
            _check_poolings(study, overrides, f"`{where}`: ")
    for stage in study.promotion.trained:
        _check_stage(study, stage)


def _check_stage(study: StudyConfig, stage: StageConfig) -> None:
    where = f"promotion.stages.{stage.name}"
    _turn_error(check_promoted, stage.overrides, f"{where}.overrides")
    if stage == study.promotion.trained[-1]:
        _turn_error(check_comparable, study.search.metric, stage.overrides, f"{where}.overrides")
    settings = {**study.promotion.overrides, **stage.list_settings(study.training.learning_rate)}
    check_settings(study, where, settings)
    _check_poolings(study, settings, f"`{where}`: ")
    task = study.model.model_copy(update={"family": stage.model or study.model.family}).task
    if task == "instance" and stage.labels == "coarse":
        raise ValueError(
            f"`{where}`: coarse labels are for semantic models: they leave objects out, but got a Mask R-CNN"
        )
    if task != study.model.task and (task == "instance" or stage == study.promotion.trained[-1]):
        raise ValueError(
            f"`{where}.model` must do what the study's {study.model.family!r} does, but got {stage.model!r}. "
            "A semantic model may come before an instance model, not the other way round"
        )


def _check_baseline(study: StudyConfig, number: int, baseline: Mapping[str, Scalar]) -> None:
    space = study.search.space
    for key, value in baseline.items():
        if key not in space:
            raise ValueError(f"baseline {number} sets {key!r}, which `search.space` lacks.{name_nearest(key, space)}")
        if not space[key].admits(value):
            raise ValueError(f"baseline {number} must lie in the search space, but got {key}={value!r}")
    check_settings(study, f"search.baselines.{number}", baseline)
