"""What every run writes down before it trains: settings, images, environment, code.

Params are flat and dotted like config keys; what is long (config, anchors, packages, diff) becomes an artifact.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from cityopt.config import DEFAULT_ANCHORS, RunConfig
from cityopt.runtime import list_packages, read_git_state
from cityopt.tracking.run_folder import Tracker
from cityopt.training.dataset import TrainingData
from cityopt.training.optim import REFERENCE_BATCH, scale_learning_rate
from cityopt.training.shares import count_own_images


def write_provenance(tracker: Tracker, config: RunConfig, data: TrainingData, environment: Mapping[str, str]) -> None:
    """Log params and write `config.yaml`, `anchors.json`, `environment.txt` and, if code is uncommitted, `git.diff`."""
    tracker.log_params({**flatten_config(config), **describe_data(data), **describe_rate(config)})
    tracker.log_params({f"environment.{name}": value for name, value in environment.items()})
    tracker.write_artifact("config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    tracker.write_artifact("anchors.json", json.dumps(describe_anchors(config), indent=1))
    tracker.write_artifact("environment.txt", list_packages())
    diff = read_git_state().diff
    if diff:
        tracker.write_artifact("git.diff", diff)


def flatten_config(config: RunConfig) -> dict[str, object]:
    """Return the settings as dotted keys; the anchors are left to their artifact."""
    tree = config.model_dump(mode="json")
    tree["model"].pop("anchor_table")
    return _flatten(tree, "")


def describe_data(data: TrainingData) -> dict[str, object]:
    """Return counts and content hashes of the images."""
    return {
        "data.num_train_images": len(data.train),
        "data.num_validation_images": len(data.validation),
        "data.train_fingerprint": data.train_fingerprint,
        "data.train_hash": data.train_hash,
        "data.validation_hash": data.validation_hash,
        "data.fingerprint": data.fingerprint,
    }


def describe_rate(config: RunConfig) -> dict[str, object]:
    """Return the learning rate that results from linear scaling, and the rule; with several devices their shares."""
    rule = f"{config.training.learning_rate:g} x batch {config.training.batch_size} / {REFERENCE_BATCH}"
    rate = {"training.scaled_learning_rate": scale_learning_rate(config.training), "training.scaling_rule": rule}
    shares = {"training.images_per_device": count_own_images(config)} if config.devices > 1 else {}
    return {**rate, **shares}


def describe_anchors(config: RunConfig) -> dict[str, Any]:
    """Return the anchors in numbers, with where they come from."""
    table = config.model.anchor_table or DEFAULT_ANCHORS
    return {"anchors": config.model.anchors, **table.model_dump(mode="json")}


def _flatten(tree: Mapping[str, Any], prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
