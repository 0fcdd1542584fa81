"""Processes by a name that no other ever has: what tells a dead one from one that is far away."""

from contextlib import suppress
from pathlib import Path

_BOOT, _NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


def name_process(pid: int) -> str:
    """Return the name of a process on this machine: boot, namespace of pids, pid and start. Empty where unknown."""
    with suppress(OSError):
        if (started := _read_start(pid)) is not None:
            return f"{_name_machine()} {pid} {started}"
    return ""


def is_gone(name: str) -> bool:
    """Say whether a process was on this machine and is no more. One that is elsewhere, or unknown, may be alive."""
    machine, _, process = name.rpartition(" ")[0].rpartition(" ")
    with suppress(OSError):
        return bool(name) and machine == _name_machine() and _read_start(int(process)) != name.rpartition(" ")[2]
    return False


def _name_machine() -> str:
    return f"{_BOOT.read_text().strip()} {_NAMESPACE.readlink()}"


def _read_start(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot; None where it is gone, or has ended and waits."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] in "ZX" else fields[19]
