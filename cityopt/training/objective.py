"""The objective of a study: a metric that trainings report. Asked for before any work is done, and without torch."""

from cityopt.config import ModelConfig
from cityopt.errors import ConfigError
from cityopt.evaluation import coco_ap, semantic

TOTAL_LOSS = "train/loss/total"


def check_objective(metric: str, model: ModelConfig) -> None:
    """Check that trainings of a model report the metric. Raises ConfigError that lists those it does report."""
    valid = [TOTAL_LOSS, *(f"val/{name}" for name in list_metrics(model))]
    if metric not in valid:
        raise ConfigError(
            f"`search.metric` must be one that training reports, but got {metric!r}. Metrics: {', '.join(valid)}."
        )


def list_metrics(model: ModelConfig) -> list[str]:
    """Return the names, without prefix, of what `evaluate_model` reports for models of a config."""
    if model.task == "instance":
        return coco_ap.metric_names()
    return [*(f"loss/{name}" for name in (*model.loss.split("+"), "total")), *semantic.metric_names()]
