"""Where a dataset lies: the root that is meant, and the synthetic scenes that are made where no dataset is.

First of all in the flow, for every command that reads images.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from cityopt.config import SyntheticConfig
from cityopt.data.cityscapes import OnCount
from cityopt.data.synthetic import RECIPE_VERSION, write_synthetic
from cityopt.errors import DataError

SYNTHETIC = "synthetic"
ROOT_VARIABLE = "CITYSCAPES_DATASET"


def cache_folder(store: Path) -> Path:
    """Return the folder of decoded images and synthetic scenes."""
    return store / "cache"


def choose_root(option: str | None, configured: str | None) -> str:
    """Return `synthetic` or the absolute root that is meant: `--data`, then the study's, then CITYSCAPES_DATASET.

    Raises DataError: none is given.
    """
    root = option or configured or os.environ.get(ROOT_VARIABLE)
    if not root:
        raise DataError(
            f"there is no dataset: give its root with --data, in the study's `data.root`, or in {ROOT_VARIABLE}. "
            "To try without one: --data synthetic."
        )
    return root if root == SYNTHETIC else str(Path(root).expanduser().absolute())


def choose_folder(option: str | None) -> Path:
    """Return the folder of a dataset whose files are looked at as they are. Raises DataError: none, or `synthetic`."""
    root = choose_root(option, None)
    if root == SYNTHETIC:
        raise DataError(
            "`--data synthetic` is for studies. Write scenes with: cityopt data synth OUT; give --data OUT."
        )
    return Path(root)


def place_scenes(config: SyntheticConfig, cache: Path) -> Path:
    """Return where synthetic scenes lie or will lie."""
    text = f"{RECIPE_VERSION} {config.num_images} {config.size} {config.seed}" + " coarse" * config.coarse
    return cache / f"{SYNTHETIC}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def make_scenes(config: SyntheticConfig, cache: Path, on_count: OnCount | None = None) -> Path:
    """Return the root of synthetic scenes, made once, by one process at a time."""
    root = place_scenes(config, cache)
    cache.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob(f".{root.name}-*"):  # of a process that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        write_synthetic(
            root,
            num_images=config.num_images,
            size=config.size,
            seed=config.seed,
            with_coarse=config.coarse,
            progress=on_count,
        )
    return root
