"""Where a sweep's trials run: on this machine, or on a cluster that an option names."""

import importlib.util
import os
from typing import TYPE_CHECKING

from cityopt.errors import ConfigError
from cityopt.settings import name_nearest

if TYPE_CHECKING:
    from cityopt.search.executors.ray import RayCluster

EXECUTORS = ("local", "ray")
_RAY_SETTINGS = {
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # or else `uv run cityopt` sends the working directory to each node
    "RAY_NUM_REDIS_GET_RETRIES": "1",  # of 40 s each, while nothing answers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or else a warning
}
"""Environment variables that Ray reads when it is imported."""


def find_cluster(
    executor: str, address: str | None, *, device: str, workers: int | None, per_device: int | None
) -> "RayCluster | None":
    """Return the cluster that `--executor` and `--address` mean; None is this machine.

    Raises ConfigError: no such executor, an address without a cluster, Ray is not installed, or numbers that a cluster
    cannot have. Raises ClusterError: nothing answers at the address.
    """
    if executor not in EXECUTORS:
        raise ConfigError(
            f"`--executor` must be local or ray, but got {executor!r}.{name_nearest(executor, EXECUTORS)}"
        )
    if executor == "local":
        if address is not None:
            raise ConfigError(f"`--address {address}` is a cluster's, which takes --executor ray, but got local.")
        return None
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise ConfigError("`--executor ray` needs Ray, which is not installed. Try: pip install 'cityopt[ray]'")
    for name, value in _RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    from cityopt.search.executors.ray import RayCluster

    return RayCluster(address or "auto", device=device, workers=workers, per_device=per_device)
