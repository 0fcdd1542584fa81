"""A study's YAML -> a `StudyConfig`: finding the file, `extends`, and settings from the command line on top.

The command line calls `load_study`; what stands in the file is checked by `config.py`. What was stored when there were
fewer settings is completed here.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cityopt.config import RunConfig, StudyConfig
from cityopt.errors import ConfigError
from cityopt.promotion import PromotionConfig
from cityopt.search_config import PrunerConfig, SearchConfig
from cityopt.settings import STUDY_NAME, name_nearest, replace_section, replace_settings, set_in_tree, validate


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number (YAML 1.1 wants `1.0e-5`), and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_study(
    source: str, *, settings: Iterable[str] = (), name: str | None = None, extra: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Read a study from a name in `sweeps/` or a path to a YAML.

    `settings` are `key=value` texts with values in YAML, `name` another name for the study, `extra`
    dotted keys and values that come last (from options such as `--seed`).

    Raises ConfigError: no such study, no YAML, unknown key, wrong type, impossible value.
    """
    path = find_study(source)
    tree = _read_tree(path, seen=())
    tree.setdefault("name", path.stem)
    changes = [*map(parse_setting, settings), *(extra or {}).items()]
    for key, value in changes:
        set_in_tree(StudyConfig, tree, key, value)
    if name is not None:
        tree["name"] = name
    return validate(StudyConfig, tree, origin=f"{path} and the command line" if changes else str(path))


def change_study(
    config: StudyConfig,
    *,
    settings: Iterable[str] = (),
    name: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> StudyConfig:
    """Return a study of the store with other settings; see `load_study`. Raises ConfigError."""
    changed = replace_settings(config, {**dict(map(parse_setting, settings)), **(extra or {})})
    return changed if name is None else replace_section(changed, name=name)


def has_yaml(source: str) -> bool:
    """Say whether `--study` means a YAML: a path, or a name in `sweeps/`."""
    return _is_path(source) or (sweeps_folder() / f"{source}.yaml").is_file()


def find_study(source: str) -> Path:
    """Return the YAML that `--study` means: a path as it is, a name from `sweeps/`."""
    if _is_path(source):
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"`--study` must be a name or a YAML that exists, but there is no file {path}.")
        return path
    path = sweeps_folder() / f"{source}.yaml"
    if path.is_file():
        return path
    names = sorted(p.stem for p in sweeps_folder().glob("*.yaml"))
    raise ConfigError(
        f"there is no study {source!r}.{name_nearest(source, names)} "
        f"Studies: {', '.join(names)}; or give the path of a YAML."
    )


def name_study(source: str, name: str | None = None) -> str:
    """Return a stored study's name: `name`, else what `source` says; it need not have a YAML any more.

    Raises ConfigError: no study can have this name.
    """
    if name is None and _is_path(source):
        return load_study(source).name
    found = source if name is None else name
    if not re.fullmatch(STUDY_NAME, found):
        raise ConfigError(f"a study's name has up to 64 letters, digits, `.`, `_` and `-`, but got {found!r}.")
    return found


def sweeps_folder() -> Path:
    """Return the folder of the shipped studies: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    inside = package / "sweeps"
    return inside if inside.is_dir() else package.parent / "sweeps"


def _is_path(source: str) -> bool:
    return source.endswith((".yaml", ".yml")) or "/" in source


def parse_setting(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML, so `[256, 512]`, `true` and `null` work.

    Raises ConfigError: no `=`, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"`--set` takes key=value, but got {text!r}. Example: --set training.epochs=6")
    try:
        return key.strip(), yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of `--set {text}` is no YAML: {error}") from error


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"`extends` runs in a circle at {path}.")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, but holds {type(tree).__name__}.")
    base = tree.pop("extends", None)
    if base is None:
        return tree
    local = path.with_name(f"{base}.yaml")
    base_path = local if local.is_file() else find_study(str(base))
    merged = _merge(_read_tree(base_path, (*seen, path.resolve())), tree)
    merged["name"] = tree.get("name", path.stem)
    return merged


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees, `over` first. A null stays: in a search space it takes a dimension out."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def settle_training(study: StudyConfig, settings: Mapping[str, Any]) -> StudyConfig:
    """Return a study with the settings of one training in place. Raises ConfigError: they cannot stand together.

    Its search is left out: what holds for all trials (a range, the pruner's epochs) need not hold beside these values.
    """
    search = SearchConfig(pruner=PrunerConfig(name="none"))
    return replace_settings(study.model_copy(update={"search": search, "promotion": PromotionConfig()}), settings)


PINS = ("train_fingerprint", "weights_hash")
"""Content that a training was planned with."""


def complete_run(stored: Mapping[str, Any], wanted: RunConfig) -> dict[str, Any]:
    """Add to the config of a stored training what was not there to be set then, as it is in the one that is wanted.

    Which heads a training starts with matters no more once it has begun; only COCO's once started it afresh. Nor does
    the content of what it has started from, which nobody knows.
    """
    pins = {key: getattr(wanted, key) for key in PINS}
    model = stored["model"]
    rider_from = "none" if model.get("weights") == "coco" else wanted.model.rider_from
    return {**pins, **stored, "model": {"rider_from": rider_from, **model}}
