"""Device slots of this machine: how many workers there are, and which device each of them has."""

from cityopt.errors import ConfigError
from cityopt.runtime import count_gpus


def plan_slots(device: str, *, workers: int | None = None, per_device: int | None = None) -> tuple[str, ...]:
    """Return the device of each worker: `auto` and `cuda` spread them over all GPUs in turn, the CPU is one device.

    `workers` is one by default, or with `per_device` as many as that on each device.

    Raises ConfigError: a number below 1, or more workers than `per_device` leaves room for.
    """
    check_numbers(workers=workers, per_device=per_device)
    if workers in (None, 1) and per_device is None:
        return (device,)
    devices = _list_devices(device)
    room = len(devices) * per_device if per_device else None
    if workers and room and workers > room:
        raise ConfigError(
            f"`--workers` must be at most {room} with `--workers-per-device {per_device}` on {', '.join(devices)}, "
            f"but got {workers}. Raise --workers-per-device or lower --workers."
        )
    return tuple(devices[slot % len(devices)] for slot in range(workers or room or 1))


def check_numbers(*, workers: int | None, per_device: int | None) -> None:
    """Check the numbers that were given. Raises ConfigError: one is below 1."""
    for option, value in (("--workers", workers), ("--workers-per-device", per_device)):
        if value is not None and value < 1:
            raise ConfigError(f"`{option}` must be at least 1, but got {value}.")


def _list_devices(device: str) -> tuple[str, ...]:
    num_gpus = count_gpus() if device in ("auto", "cuda") else 0
    if num_gpus:
        return tuple(f"cuda:{number}" for number in range(num_gpus))
    return ("cpu",) if device == "auto" else (device,)
