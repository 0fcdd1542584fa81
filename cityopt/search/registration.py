"""A trained model's way into the registry: champion if there is none or it beats the present one on the same ground.

To beat it takes more than a higher score: `gate.py` tests the lead image by image. The verdict, what it stands on and
what speaks against either model's origin are the version's description; `--force` overrides the verdict, and stays on
record beside it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.config import ModelConfig, RunConfig
from cityopt.errors import StoreError, TrainingError, WeightsError
from cityopt.search.gate import Contest, describe_origins, hold_contest
from cityopt.search.observer import Observer
from cityopt.search_config import is_own_loss
from cityopt.store import run_folder
from cityopt.tracking.mlflow_registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    find_champion,
    register_model,
    set_alias,
)
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import PARAMS, read_json

_SAME_GROUND = ("fingerprint", "split", "size", "metric", "loss")


@dataclass(frozen=True, slots=True)
class Registered:
    """A model in the registry, and why it got its alias."""

    model: str
    """`models:/cityopt-demo@champion`."""
    version: int
    reason: str

    def __str__(self) -> str:
        return f"{self.model} (version {self.version}): {self.reason}"


def register_result(
    mlflow: MlflowStore,
    run: RunConfig,
    run_id: str,
    *,
    checkpoint: Path,
    metric: str,
    direction: str,
    value: float | None,
    origin: str,
    tags: Mapping[str, Any],
    observer: Observer,
    force: bool = False,
) -> Registered:
    """Register the checkpoint of a run that was judged on its validation set, and give it its alias.

    `value` is the model's `metric` there, None where nothing is to be found; `origin` a sentence that says what was
    trained. `force` makes it the champion whatever the gate says. Repeating it after a kill registers the same version.

    Raises DataError: the dataset is missing, or is no longer the one that the model was trained on.
    """
    from cityopt.training.checkpoint import load_model
    from cityopt.training.dataset import check_fingerprint, survey_dataset

    assert run.data.root is not None
    check_fingerprint(survey_dataset(run.data.root, Path(run.cache)), run.fingerprint)

    ground = {
        "metric": metric,
        "value": value,
        "fingerprint": run.fingerprint,
        "split": run.validation_set.describe(),
        "size": "x".join(map(str, run.data.size)),
        "loss": describe_loss(run.model) if is_own_loss(metric) else None,
        "run_id": run_id,
    }
    all_tags = {f"cityopt.{key}": fact for key, fact in ground.items() if fact is not None} | dict(tags)
    champion = find_champion(mlflow, run.study)

    def contest() -> Contest:
        assert champion is not None
        return hold_contest(mlflow, run, checkpoint, champion, metric, observer)

    if champion is not None and champion.run_id == run_id:  # a kill came between its alias and its run's end
        return Registered(f"models:/{champion.name}@{CHAMPION}", champion.version, "it is the champion already")
    alias, reason = judge_challenger(champion, all_tags, direction, contest)
    if force and alias != CHAMPION:
        alias, reason = CHAMPION, f"forced, where the gate said {alias}: {reason}"
        all_tags["cityopt.forced"] = True
    remarks = _name_origins(mlflow, run_id, champion)
    version = register_model(
        mlflow,
        run.study,
        load_model(checkpoint)[0],
        checkpoint=checkpoint,
        run_id=run_id,
        tags=all_tags,
        description=" ".join([f"{origin} {alias}: {reason}.", *remarks]),
    )
    set_alias(mlflow, run.study, alias, version.version)
    for remark in remarks:
        observer.say(f"Note: {remark}")
    return Registered(f"models:/{version.name}@{alias}", version.version, reason)


def judge_challenger(
    champion: ModelVersion | None,
    tags: Mapping[str, Any],
    direction: str,
    contest: Callable[[], Contest] | None = None,
) -> tuple[str, str]:
    """Return the alias of a new version, and why. A champion is beaten on the same data, split, size and metric.

    A metric that is a loss must be the same loss, too.

    A better value has to stand the `contest`, which is held for no other; without one it is taken as it is.
    """
    if champion is None:
        return CHAMPION, "there was no champion"
    if champion.run_id == tags["cityopt.run_id"]:
        return CHAMPION, "it is the champion already"
    for key in _SAME_GROUND:
        old, new = champion.tags.get(f"cityopt.{key}"), tags.get(f"cityopt.{key}")
        if old != (None if new is None else str(new)):
            return (
                CHALLENGER,
                f"the champion (version {champion.version}) was judged on another {key}: {old}, not {new}",
            )
    if "cityopt.value" not in tags:
        return CHALLENGER, f"it has no {tags['cityopt.metric']}"
    if "cityopt.value" not in champion.tags:
        return CHAMPION, f"the champion (version {champion.version}) has no {tags['cityopt.metric']}"
    old_value, new_value = float(champion.tags["cityopt.value"]), float(tags["cityopt.value"])
    better = new_value > old_value if direction == "maximize" else new_value < old_value
    verdict = f"{tags['cityopt.metric']} {new_value:.4f} against {old_value:.4f} of version {champion.version}"
    if not better:
        return CHALLENGER, f"no better than the champion, {verdict}"
    if contest is None:
        return CHAMPION, f"it beats the champion, {verdict}"
    try:
        found = contest()
    except (StoreError, WeightsError, TrainingError) as error:  # the newcomer is trained already, and stays whatever is
        return CHALLENGER, f"no contest with the champion (version {champion.version}) could be held: {error}"
    if found.is_won(direction):
        return CHAMPION, f"it beats the champion (version {champion.version}): {found}"
    return CHALLENGER, f"its lead on the champion (version {champion.version}) may be chance: {found}"


def describe_loss(model: ModelConfig) -> str:
    """Return what tells a semantic model's loss from another one: `focal, gamma 2`."""
    gamma = f", gamma {model.focal_gamma:g}" if "focal" in model.loss else ""
    weights = f", {model.class_weights} class weights" if model.class_weights != "none" else ""
    return f"{model.loss}{gamma}{weights}"


def _name_origins(mlflow: MlflowStore, run_id: str, champion: ModelVersion | None) -> list[str]:
    """Return sentences about what speaks against the origin of a model, or of the champion it meets."""
    mine = read_json(run_folder(mlflow.store, run_id) / PARAMS) or {}  # MLflow may not have them yet
    theirs = {} if champion is None or champion.run_id == run_id else mlflow.read_params(champion.run_id)
    found = describe_origins({key: str(value) for key, value in mine.items()}, theirs)
    return [f"{text[0].upper()}{text[1:]}." for text in found]
