"""The objective of a study: a metric that trainings report. Asked for before any work is done."""

from cityopt.errors import ConfigError
from cityopt.evaluation.coco_ap import metric_names

TOTAL_LOSS = "train/loss/total"


def check_objective(metric: str) -> None:
    """Check that a training reports the metric. Raises ConfigError that lists those it does report."""
    valid = [TOTAL_LOSS, *(f"val/{name}" for name in metric_names())]
    if metric not in valid:
        raise ConfigError(
            f"`search.metric` must be one that training reports, but got {metric!r}. Metrics: {', '.join(valid)}."
        )
