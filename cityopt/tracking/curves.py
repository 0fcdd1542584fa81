"""What the records of a run add up to: the metrics of an epoch, the best epoch, the time on the device.

Stands above the run folder's `metrics.jsonl`, for whoever shows, compares or ends runs.
"""

from collections.abc import Sequence

from cityopt.tracking.run_folder import Record


def merge_metrics(records: Sequence[Record], step: int) -> dict[str, float]:
    """Return all metrics of a step, which may be spread over several records."""
    return {name: value for record in records if record.step == step for name, value in record.metrics.items()}


def pick_epoch(records: Sequence[Record], metric: str, direction: str) -> tuple[int, dict[str, float]]:
    """Return the epoch at which a training's metric was best, the first of equals, and all metrics of that epoch.

    It is the epoch whose checkpoint a training with `keep: best` keeps. Raises ValueError: the metric is in no record.
    """
    curve = [(record.metrics[metric], record.step) for record in records if metric in record.metrics]
    sign = -1.0 if direction == "maximize" else 1.0
    epoch = min(curve, key=lambda point: (sign * point[0], point[1]))[1]
    return epoch, merge_metrics(records, epoch)


def sum_seconds(records: Sequence[Record]) -> float:
    """Return the seconds that went into the finished epochs, for a run that could not say itself how long it took."""
    return sum(record.metrics.get("system/epoch_s", 0.0) for record in records)
