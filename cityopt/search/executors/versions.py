"""What a node must have in common with the coordinator, so that a trial's score does not depend on where it ran."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import cityopt

_PACKAGES = ("torch", "torchvision", "numpy", "pillow")


def describe_versions() -> dict[str, str]:
    """Return the versions of Python, of what computes scores, and of cityopt: a hash of its source tells edits too."""
    versions = {"Python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return versions | {"cityopt": f"{importlib.metadata.version('cityopt')} (source {_hash_source()})"}


def list_mismatches(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return what differs, such as `torch 2.11.0 where the coordinator has 2.12.0`."""
    return [
        f"{name} {found.get(name, 'of no version')} where the coordinator has {version}"
        for name, version in wanted.items()
        if found.get(name) != version
    ]


def _hash_source() -> str:
    root, digest = Path(cityopt.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
