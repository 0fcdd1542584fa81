"""The objective of a study: a metric that trainings report. Asked for before any work is done."""

from cityopt.config import ModelConfig
from cityopt.errors import ConfigError
from cityopt.evaluation.evaluate import list_metrics

TOTAL_LOSS = "train/loss/total"


def check_objective(metric: str, model: ModelConfig) -> None:
    """Check that trainings of a model report the metric. Raises ConfigError that lists those it does report."""
    valid = [TOTAL_LOSS, *(f"val/{name}" for name in list_metrics(model))]
    if metric not in valid:
        raise ConfigError(
            f"`search.metric` must be one that training reports, but got {metric!r}. Metrics: {', '.join(valid)}."
        )
