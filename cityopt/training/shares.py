"""How one training is shared out over devices: asked before any work is done, and without torch.

`training.batch_size` is the batch of all devices together, whatever their number: each takes its share of it, so that
steps, order, schedule and learning rate (stated per batch of 8, scaled linearly with the batch) stay the same.
"""

from cityopt.config import RunConfig
from cityopt.errors import ConfigError


def check_shares(config: RunConfig) -> None:
    """Check that each device gets an equal share of each micro-batch. Raises ConfigError."""
    training, devices = config.training, config.devices
    if training.batch_size % (training.accumulation * devices):
        raise ConfigError(
            "`training.batch_size` must be a multiple of devices x `training.accumulation`, but got "
            f"batch_size={training.batch_size}, devices={devices}, accumulation={training.accumulation} "
            f"({config.name}). Use another --devices, or --set training.batch_size={_round_up(config)}."
        )


def count_own_images(config: RunConfig) -> int:
    """Return the images of each optimiser step that one device trains on."""
    return config.training.batch_size // config.devices


def _round_up(config: RunConfig) -> int:
    """Return the least batch that can be shared out and is no smaller than the config's."""
    share = config.training.accumulation * config.devices
    return -(-config.training.batch_size // share) * share
