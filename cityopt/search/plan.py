"""The trainings of a promotion: from the stages in a study to one RunConfig each, checked before the first one starts.

Stands under `promote.py`, which trains them one after the other. Without stages there is one training. The last one is
the promoted model and judged on val; those before it validate on the trials' holdout, whatever they train on, and the
plan says which of them have seen it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cityopt.config import RunConfig, StudyConfig, Task
from cityopt.data.roots import cache_folder
from cityopt.data.synthetic import RECIPE_FILE
from cityopt.errors import ConfigError, DataError
from cityopt.image_set import ImageSet, choose_val
from cityopt.promotion import FROM_WEIGHTS, StageConfig
from cityopt.runtime import derive_seed
from cityopt.search.facts import StudyFacts
from cityopt.search.micro_batches import keep_pieces
from cityopt.search.observer import Observer
from cityopt.search.pretrained import KEY as WEIGHTS
from cityopt.search.pretrained import fetch_start, hash_weights, settle_path
from cityopt.search.space import fix_anchors, trial_holdout
from cityopt.search.status import TrialStatus
from cityopt.search_config import check_comparable
from cityopt.settings import replace_section
from cityopt.study_file import settle_training

_RATE = "training.learning_rate"
JUDGES: Mapping[Task, tuple[str, str]] = {
    "instance": ("val/coco/segm/ap", "maximize"),
    "semantic": ("val/semantic/miou", "maximize"),
}
"""What a training is judged by where the study's objective does not fit it: a metric and its direction."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One training of a promotion."""

    name: str
    """Empty in a promotion without stages."""
    run: RunConfig
    """Where it starts from another stage, `model.weights` says so and is no path yet."""
    start: str | None = None
    """The earlier stage that it starts from; None starts from `model.weights`."""
    whole: bool = True
    """It takes that stage's whole network, not the ResNet alone."""


def plan_promotion(
    config: StudyConfig,
    facts: StudyFacts,
    winner: TrialStatus,
    settings: Mapping[str, Any],
    *,
    root: Path,
    device: str,
    store: Path,
) -> tuple[PlannedStage, ...]:
    """Return the trainings of a promotion, the promoted model's last.

    Settings are the trial's, then the study's `promotion.overrides`, then `--set`; a stage's own stand above them.

    Raises ConfigError: settings that cannot stand together, or one of `--set` that no stage heeds or that changes a
    loss which is the objective.
    """
    check_comparable(config.search.metric, settings, "--set")
    more = {**config.promotion.overrides, **settle_path(settings)}
    base = RunConfig(
        study=config.name,
        name="promotion",
        kind="promotion",
        seed=derive_seed(config.seed, "promotion", winner.number),
        threads=facts.threads,
        device=device,
        cache=str(cache_folder(store)),
        data=config.data,
        model=config.model,
        training=config.training,
        train_set=ImageSet(split="train", part="all", seed=config.seed),
        validation_set=choose_val(config.data.val_halves),
        metric=config.search.metric,
        direction=config.search.direction,
        keep="last",
        fingerprint=facts.fingerprint,
    )
    stages = config.promotion.trained
    if not stages:
        return (PlannedStage("", _settle_run(base, config, facts, winner, more, root)),)
    _refuse_unheeded(stages, settings)
    plan: dict[str, PlannedStage] = {}
    for stage in stages:
        plan[stage.name] = _plan_stage(base, config, facts, winner, more, root, stage, plan)
    return tuple(plan.values())


def pin_plan(plan: tuple[PlannedStage, ...]) -> tuple[PlannedStage, ...]:
    """Return a plan whose trainings name the content of what they start from and of the coarse labels they train on.

    With other content it is another training: see `Promoter`. Raises DataError (no such labels), WeightsError.
    """
    return tuple(replace(stage, run=_pin_run(stage)) for stage in plan)


def check_plan(plan: tuple[PlannedStage, ...], observer: Observer) -> None:
    """Check every stage before the first is trained, and say what will be trained on how many images.

    Raises DataError (images or labels that a stage needs are not there) and WeightsError (what a stage starts from
    does not fit it, or cannot be had).
    """
    from cityopt.training.stages import check_handover, check_pretrained

    known = {stage.name: stage.run.model for stage in plan}
    lines = []
    for number, stage in enumerate(plan, start=1):
        if stage.start is None:
            fetch_start(stage.run.model, observer)
            check_pretrained(stage.run.model)
        else:
            origin = f"stage {stage.start!r}, from which {stage.name!r} starts,"
            check_handover(stage.run.model, known[stage.start], whole=stage.whole, origin=origin)
        lines.append(f"  {number} {stage.name}: {describe_stage(stage, _count_images(stage, observer))}")
    observer.say(f"the promotion has {len(plan)} stages:\n" + "\n".join(lines))


def describe_stage(stage: PlannedStage, num_images: int) -> str:
    """Return what a stage trains, on what, from where and how, in one line."""
    run = stage.run
    model, images = run.model, run.train_set
    start = run.model.weights
    if stage.start is not None:
        start = f"{'the network' if stage.whole else 'the ResNet'} of {stage.start}"
    elif model.weights == "none":
        start = "random values"
    ground = run.validation_set.describe()
    if run.validation_set.split != "val":
        ground = "the holdout of the trials"
        ground += ", which it trains on too" if images.may_share(run.validation_set) else ""
    warning = (
        " (Warning: these are random and will never learn)" if model.weights == "none" and model.freeze_depth else ""
    )
    return (
        f"{model.family} from {start}; {num_images} images of {images.split}, {images.labels} labels, "
        f"{run.data.size[0]} x {run.data.size[1]}; {run.training.epochs} epochs, freeze depth {model.freeze_depth}"
        f"{warning}, learning rate {run.training.learning_rate:.3g}; validates on {ground}"
    )


def _settle_run(
    base: RunConfig, config: StudyConfig, facts: StudyFacts, winner: TrialStatus, more: Mapping[str, Any], root: Path
) -> RunConfig:
    full = settle_training(config, keep_pieces(config, winner, winner.params, more))
    return base.model_copy(
        update={
            "data": replace_section(full.data, root=str(root)),
            "model": fix_anchors(full.model, facts, zoom=find_zoom(config, full)),
            "training": full.training,
        }
    )


def find_zoom(config: StudyConfig, full: StudyConfig) -> tuple[float, float]:
    """Return how many times as high and as wide a training's images are as the trials'."""
    (height, width), (full_height, full_width) = config.data.size, full.data.size
    return full_height / height, full_width / width


def _plan_stage(
    base: RunConfig,
    config: StudyConfig,
    facts: StudyFacts,
    winner: TrialStatus,
    more: Mapping[str, Any],
    root: Path,
    stage: StageConfig,
    before: Mapping[str, PlannedStage],
) -> PlannedStage:
    from cityopt.models.weights import find_norm

    rate = {_RATE: config.training.learning_rate, **winner.params, **more}[_RATE]
    own = settle_path(stage.list_settings(float(rate)))
    start = None if stage.start_from == FROM_WEIGHTS else before[stage.start_from]
    whole = start is None or start.run.model.family == (stage.model or config.model.family)
    if start is not None:
        own[WEIGHTS] = f"stage {start.name}"
        if whole:  # it goes on with the norm that it has
            own.setdefault("model.backbone_norm", find_norm(start.run.model))
    run = _settle_run(base, config, facts, winner, {**more, **own}, root)
    images = ImageSet(split=stage.split, labels=stage.labels, num_images=stage.num_images, seed=config.seed)
    update: dict[str, Any] = {"train_set": images}
    if stage.name != config.promotion.trained[-1].name:
        # The seed is the stage's alone: it is the same training for whichever trial is promoted with its settings.
        update |= {"kind": "stage", "name": stage.name, "seed": derive_seed(config.seed, "stage", stage.name)}
        update |= {"validation_set": trial_holdout(config)}
        if run.model.task != config.model.task:
            update |= dict(zip(("metric", "direction"), JUDGES[run.model.task], strict=True))
    return PlannedStage(stage.name, run.model_copy(update=update), start.name if start else None, whole)


def _refuse_unheeded(stages: tuple[StageConfig, ...], settings: Mapping[str, Any]) -> None:
    """Refuse a setting of the command line that every stage replaces by its own."""
    for key in settings:
        if all(_says(stage, key) for stage in stages):
            names = ", ".join(stage.name for stage in stages)
            raise ConfigError(
                f"`--set {key}` must be heeded by a stage, but each of {names} says its own. "
                f"Use --set promotion.stages.{stages[-1].name}.KEY=VALUE, or --set promotion.stages=null."
            )


def _says(stage: StageConfig, key: str) -> bool:
    if key == WEIGHTS and stage.start_from != FROM_WEIGHTS:
        return True
    return key in stage.list_settings(1.0) and not (key == _RATE and stage.learning_rate_factor is not None)


def _pin_run(stage: PlannedStage) -> RunConfig:
    from cityopt.training.dataset import survey_coarse

    run = stage.run
    found: dict[str, str | None] = {}
    if run.train_set.labels == "coarse":
        assert run.data.root is not None
        found["train_fingerprint"] = survey_coarse(run.data.root, run.train_set.split, Path(run.cache)).fingerprint
    if stage.start is None:
        found["weights_hash"] = hash_weights(run.model.weights)
    return run.model_copy(update=found)


def _count_images(stage: PlannedStage, observer: Observer) -> int:
    """Return the number of images that a stage trains on. Raises DataError that says how to do without the stage."""
    from cityopt.training.dataset import pick_facts, survey_dataset, survey_images

    run = stage.run
    assert run.data.root is not None
    fine = survey_dataset(run.data.root, Path(run.cache))
    try:
        survey = survey_images(
            fine, run.train_set, Path(run.cache), observer.reporter(f"reading labels for {stage.name}")
        )
        return len(pick_facts(survey, run.train_set))
    except DataError as error:
        images, is_made = run.train_set, (Path(run.data.root) / RECIPE_FILE).is_file()
        hint = " Synthetic scenes get them by a sweep with --set data.synthetic.coarse=true." if is_made else ""
        raise DataError(
            f"{error} Stage {stage.name!r} trains on {images.split} with {images.labels} labels: leave it out with "
            f"--set promotion.skip=[{stage.name}], or train in one go with --set promotion.stages=null.{hint}"
        ) from error
