"""Dotted keys: the way to every setting of a config, and errors that name the key and the fix.

`training.learning_rate` is the name of a setting in `--set`, in the search space, in baselines and in a promotion's
overrides. The functions here turn trees of such settings into models of `config.py` and replace settings in them.
"""

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from cityopt.errors import ConfigError

T = TypeVar("T", bound=BaseModel)
STUDY_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a study may be called: its name is that of files, an experiment and a registered model."""
_TRAINING_SECTIONS = ("data", "model", "training")


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validate(model: type[T], tree: Mapping[str, Any], *, origin: str) -> T:
    """Turn a tree into a config model. Raises ConfigError that names key, value, origin and the nearest valid key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe(model, dict(item), origin) for item in error.errors())) from error


def replace_settings(config: T, settings: Mapping[str, Any]) -> T:
    """Return a copy of a config with dotted keys replaced, validated again. Raises ConfigError."""
    if not settings:
        return config
    tree = config.model_dump()
    for key, value in settings.items():
        set_in_tree(type(config), tree, key, value)
    return validate(type(config), tree, origin=", ".join(settings))


def replace_section(section: T, **fields: Any) -> T:
    """Return a copy of a section with fields replaced, validated again. Raises ConfigError."""
    return validate(type(section), {**section.model_dump(), **fields}, origin=", ".join(fields))


def list_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return every dotted key of a config model."""
    keys = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section = _section_of(field.annotation)
        keys.extend([key] if section is None else [key, *list_keys(section, f"{key}.")])
    return keys


def set_in_tree(model: type[BaseModel], tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a config model in a tree of its settings. Raises ConfigError: the model has no such key."""
    parts = _split_key(model, key)
    if parts is None:
        valid = list_keys(model)
        leaves = [k for k in valid if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        hint = f" Did you mean {leaves[0]!r}?" if leaves else name_nearest(key, valid)
        raise ConfigError(f"there is no config key {key!r}.{hint}")
    entry: Any = tree
    for part in parts[:-1]:
        entry = _copy_entry(entry, part, key)
    entry[parts[-1]] = value


def check_settings(config: BaseModel, where: str, settings: Mapping[str, Any]) -> None:
    """Check that settings of a training exist and that the study's own would stand beside them. Raises ValueError."""
    tree: dict[str, Any] = {name: getattr(config, name).model_dump() for name in _TRAINING_SECTIONS}
    for key, value in settings.items():
        if not key.startswith(tuple(f"{name}." for name in _TRAINING_SECTIONS)):
            raise ValueError(f"`{where}` takes keys of data, model and training, but got {key!r}")
        try:
            set_in_tree(type(config), tree, key, value)
        except ConfigError as error:
            raise ValueError(f"`{where}`: {error}") from error
    for name, section in tree.items():
        try:
            validate(type(getattr(config, name)), section, origin=name)
        except ConfigError as error:
            given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            raise ValueError(f"`{where}`: with {given}, {str(error).removesuffix(f' ({name}).')}") from error


def name_nearest(word: str, valid: Iterable[str]) -> str:
    """Return the end of an error about an unknown word: a question with the valid one most like it, or nothing."""
    found = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.4)
    return f" Did you mean {found[0]!r}?" if found else ""


def _copy_entry(tree: Any, part: str, key: str) -> Any:
    """Return the part of a tree that a key leads into, as a copy in its place; that of a list is found by its name."""
    if isinstance(tree, list):
        names = [str(item.get("name")) if isinstance(item, dict) else "" for item in tree]
        if part not in names:
            nearest = name_nearest(part, names)
            raise ConfigError(f"there is no config key {key!r}, since no entry is named {part!r}.{nearest}")
        place: Any = names.index(part)
    else:
        place = part
        tree.setdefault(part, {})
    found = tree[place]
    tree[place] = list(found) if isinstance(found, list | tuple) else dict(found) if isinstance(found, dict) else {}
    return tree[place]


def _split_key(model: type[BaseModel], key: str) -> list[str] | None:
    """Split a dotted key where sections end: the keys of a mapping (space, overrides) hold dots themselves.

    An entry of a list of sections goes by its name, as in `promotion.stages.pretrain.epochs`.
    """
    name, _, rest = key.partition(".")
    if name not in model.model_fields or not rest:
        return [name] if name in model.model_fields and key == name else None
    annotation = model.model_fields[name].annotation
    if get_origin(annotation) is dict:
        entry, (head, _, leaf) = _section_of(get_args(annotation)[1]), rest.rpartition(".")
        return [name, head, leaf] if entry is not None and head and leaf in entry.model_fields else [name, rest]
    section = _section_of(annotation)
    if get_origin(annotation) is tuple and (entry := _section_of(get_args(annotation)[0])) is not None:
        head, _, leaf = rest.partition(".")
        inner = _split_key(entry, leaf)
        return None if inner is None else [name, head, *inner]
    tail = None if section is None else _split_key(section, rest)
    return None if tail is None else [name, *tail]


def _describe(model: type[BaseModel], item: dict[str, Any], origin: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        entry = _entry_at(model, item["loc"])
        if entry is not None:
            return f"unknown key {key!r} ({origin}).{name_nearest(str(item['loc'][-1]), entry.model_fields)}"
        siblings = [k for k in list_keys(model) if k.count(".") == key.count(".")]
        return f"unknown key {key!r} ({origin}).{name_nearest(key, siblings or list_keys(model))}"
    message = str(item["msg"]).removeprefix("Value error, ")
    if not key:
        return f"{message} ({origin})."
    given = "" if isinstance(item["input"], dict | BaseModel) else f", but got {item['input']!r}"
    return f"`{key}`: {message}{given} ({origin})."


def _entry_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel] | None:
    """Return the section that the entries of a mapping or a list are, where a path leads into such a one."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None and get_origin(field.annotation) in (dict, tuple):
            return _section_of(get_args(field.annotation)[get_origin(field.annotation) is dict])
        section = None if field is None else _section_of(field.annotation)
        if section is None:
            return None
        model = section
    return None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return next((s for a in get_args(annotation) if (s := _section_of(a)) is not None), None)
    return None
