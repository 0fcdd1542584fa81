"""The pretrained weights of a study: named for good, and at hand before the first worker wants them.

`model.weights` may be the path of a file. The study then keeps its absolute path and its content's hash: scores from
other weights would not compare.
"""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cityopt.config import ModelConfig, StudyConfig
from cityopt.errors import WeightsError
from cityopt.search.observer import Observer
from cityopt.settings import replace_section

KEY = "model.weights"
_NAMES = ("coco", "imagenet", "none")


def settle_paths(config: StudyConfig) -> StudyConfig:
    """Return a study whose paths of weights are absolute: its own, the searched ones, the promotion's."""
    search, space = config.search, dict(config.search.space)
    if KEY in space:
        space[KEY] = replace_section(space[KEY], choices=tuple(_settle(c) for c in space[KEY].choices or ()))
    baselines = tuple(settle_path(baseline) for baseline in search.baselines)
    model = replace_section(config.model, weights=_settle(config.model.weights))
    stages = [{**dict(stage), "overrides": settle_path(stage.overrides)} for stage in config.promotion.stages]
    promotion = replace_section(config.promotion, overrides=settle_path(config.promotion.overrides), stages=stages)
    search = replace_section(search, space=space, baselines=baselines)
    return config.model_copy(update={"model": model, "search": search, "promotion": promotion})


def settle_path(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which a path of weights is absolute."""
    return {key: _settle(value) if key == KEY else value for key, value in settings.items()}


def hash_files(config: StudyConfig) -> dict[str, str]:
    """Return the content hash of every file of weights that a study's trials may start from, by path.

    Raises WeightsError: a file is missing or cannot be read.
    """
    return {name: _hash_file(Path(name)) for name in _list_values(config, KEY) if name not in _NAMES}


def hash_weights(weights: str) -> str | None:
    """Return the content hash of the file that `model.weights` names, None where it names none. Raises WeightsError."""
    return None if weights in _NAMES else _hash_file(Path(weights))


def fetch_weights(config: StudyConfig, observer: Observer) -> None:
    """Have the weights of a study at hand before its first trial. Raises WeightsError: they cannot be had."""
    for url in _list_addresses(config):
        _fetch(url, observer)


def check_searched_weights(config: StudyConfig, model: ModelConfig) -> None:
    """Check that weights exist for the network of a trial that may lack what other trials of its study have.

    Raises WeightsError. Where nothing is searched all trials start from the same weights: their absence is no trial's
    own failure, and comes from the training itself.
    """
    if _is_searched(config) and model.weights != "none":
        from cityopt.models.weights import find_url

        find_url(model)


def fetch_start(model: ModelConfig, observer: Observer) -> None:
    """Have the weights of a model at hand that are downloaded. Raises WeightsError: they cannot be had."""
    if model.weights == "none":
        return
    from cityopt.models.weights import find_url

    if url := find_url(model):
        _fetch(url, observer)


def _list_addresses(config: StudyConfig) -> list[str]:
    """Return where the weights of all trials come from. A searched pair that does not exist may be none of a trial."""
    names = [name for name in _list_values(config, KEY) if name != "none"]
    if not names:
        return []
    from cityopt.models.weights import find_url

    found: dict[str, None] = {}
    for name, backbone in itertools.product(names, _list_values(config, "model.backbone")):
        try:
            url = find_url(replace_section(config.model, weights=name, backbone=backbone))
        except WeightsError:
            if not _is_searched(config):
                raise
        else:
            found |= {url: None} if url else {}
    return list(found)


def _is_searched(config: StudyConfig) -> bool:
    return bool({KEY, "model.backbone"} & config.search.space.keys())


def _fetch(url: str, observer: Observer) -> None:
    from cityopt.models.weights import fetch_file

    fetch_file(url, observer.reporter(f"downloading {url.rsplit('/', 1)[-1]}, MiB"))


def _list_values(config: StudyConfig, key: str) -> list[str]:
    """Return the values that a setting of the model has in a study's trials."""
    searched = config.search.space.get(key)
    if searched is not None:
        return [str(choice) for choice in searched.choices or ()]
    return [str(getattr(config.model, key.removeprefix("model.")))]


def _settle(weights: Any) -> Any:
    if not isinstance(weights, str) or weights in _NAMES:
        return weights
    return str(Path(weights).expanduser().absolute())


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"`{KEY}` must be {', '.join(f'`{name}`' for name in _NAMES)} or the path of a file, "
            f"but {path} cannot be read: {error.strerror}."
        ) from error
