"""`promote --devices N`: how many processes train a promotion, and what each of them gets.

Stands between `promote.py` and the plan of its trainings; the rules for a batch are in `training/shares.py`.
"""

from dataclasses import replace

from cityopt.errors import ConfigError
from cityopt.runtime import count_gpus, resolve_device, share_threads
from cityopt.search.observer import Observer
from cityopt.search.plan import PlannedStage
from cityopt.settings import replace_section
from cityopt.training.shares import check_shares, count_own_images


def count_devices(text: str, device: str) -> int:
    """Return the number that `--devices` means; `auto` is all GPUs, or 1 without any.

    Raises ConfigError: neither a number of at least 1 nor `auto`, more than there are GPUs, or several beside one that
    `--device` names.
    """
    if text != "auto" and not (text.isdecimal() and int(text) >= 1):
        raise ConfigError(f"`--devices` must be a number of at least 1, or auto, but got {text!r}.")
    if text == "1" or (text == "auto" and device == "cpu"):
        return 1
    is_named = ":" in device
    if is_named and text != "auto":
        raise ConfigError(
            f"`--devices {text}` takes GPUs from the first on, but got --device {device}. Use one of both."
        )
    if is_named:
        return 1
    on_cuda = resolve_device(device).type == "cuda"
    num_gpus = count_gpus() if on_cuda else 0
    if text == "auto":
        return max(1, num_gpus)
    if on_cuda and int(text) > num_gpus:
        raise ConfigError(f"`--devices {text}` needs as many GPUs, but found {num_gpus}. Use --devices {num_gpus}.")
    return int(text)


def check_devices(plan: tuple[PlannedStage, ...], devices: int, whose: str = "") -> None:
    """Check that devices can share every batch of a plan equally; `whose` it is stands before what is wrong.

    Raises ConfigError.
    """
    try:
        for stage in plan:
            check_shares(replace_section(stage.run, devices=devices))
    except ConfigError as error:
        raise ConfigError(f"{whose}: {error}" if whose else str(error)) from error


def share_out(plan: tuple[PlannedStage, ...], devices: int, observer: Observer) -> tuple[PlannedStage, ...]:
    """Return the plan with every training on `devices` devices, which share the CPU's cores.

    Raises ConfigError: a batch that cannot be shared out equally.
    """
    if devices == 1:
        return plan
    shared = []
    for stage in plan:
        run = replace_section(stage.run, devices=devices, threads=share_threads(stage.run.threads, devices))
        check_shares(run)
        batch = run.training.batch_size
        observer.say(
            f"{run.name}: {devices} devices train on {count_own_images(run)} images each of every batch of {batch}; "
            f"the learning rate is that of a batch of {batch}, whatever their number"
        )
        shared.append(replace(stage, run=run))
    return tuple(shared)
