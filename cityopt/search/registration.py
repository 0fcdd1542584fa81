"""A trained model's way into the registry: champion if there is none or it beats the present one on the same ground."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cityopt.config import RunConfig
from cityopt.tracking.mlflow_registry import (
    CHALLENGER,
    CHAMPION,
    ModelVersion,
    find_champion,
    register_model,
    set_alias,
)
from cityopt.tracking.mlflow_store import MlflowStore

_SAME_GROUND = ("fingerprint", "split", "size", "metric")


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
) -> Registered:
    """Register the checkpoint of a run that was judged on its validation set, and give it its alias.

    `value` is the model's `metric` there, None where nothing is to be found; `origin` a sentence that says what was
    trained. Repeating it after a kill registers the same version.
    """
    from cityopt.training.checkpoint import load_model

    ground = {
        "metric": metric,
        "value": value,
        "fingerprint": run.fingerprint,
        "split": run.validation_set.describe(),
        "size": "x".join(map(str, run.data.size)),
        "run_id": run_id,
    }
    all_tags = {f"cityopt.{key}": fact for key, fact in ground.items() if fact is not None} | dict(tags)
    alias, reason = judge_challenger(find_champion(mlflow, run.study), all_tags, direction)
    version = register_model(
        mlflow,
        run.study,
        load_model(checkpoint)[0],
        checkpoint=checkpoint,
        run_id=run_id,
        tags=all_tags,
        description=f"{origin} {alias}: {reason}.",
    )
    set_alias(mlflow, run.study, alias, version.version)
    return Registered(f"models:/{version.name}@{alias}", version.version, reason)


def judge_challenger(champion: ModelVersion | None, tags: Mapping[str, Any], direction: str) -> tuple[str, str]:
    """Return the alias of a new version, and why. A champion is beaten on the same data, split, size and metric."""
    if champion is None:
        return CHAMPION, "there was no champion"
    if champion.run_id == tags["cityopt.run_id"]:
        return CHAMPION, "it is the champion already"
    for key in _SAME_GROUND:
        old, new = champion.tags.get(f"cityopt.{key}"), str(tags[f"cityopt.{key}"])
        if old != new:
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
    return (
        (CHAMPION, f"it beats the champion, {verdict}")
        if better
        else (CHALLENGER, f"no better than the champion, {verdict}")
    )
