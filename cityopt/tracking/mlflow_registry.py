"""The model registry: promoted models as `cityopt-<study>`, and references to them back to checkpoint files.

A version holds the model as an MLflow model, for `mlflow.pytorch.load_model("models:/cityopt-demo@champion")`
anywhere, and names the checkpoint that cityopt itself reads: never the pickle, which could run code.
"""

import importlib.metadata
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cityopt.errors import StoreError
from cityopt.services import has_runs
from cityopt.store import run_folder
from cityopt.tracking.mlflow_shipper import CHECKPOINT
from cityopt.tracking.mlflow_store import MlflowStore, import_mlflow, translate_errors
from cityopt.tracking.run_folder import BEST

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion
    from torch import nn

CHAMPION, CHALLENGER = "champion", "challenger"
_CHECKPOINT_TAG = "cityopt.checkpoint"
_MODEL = "model"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model. `tags` say how good it is, on what, and by which protocol."""

    name: str
    version: int
    run_id: str
    tags: dict[str, str]
    aliases: tuple[str, ...]
    description: str


def name_model(study: str) -> str:
    """Return the name of a study's registered model."""
    return f"cityopt-{study}"


def register_model(
    store: MlflowStore,
    study: str,
    model: "nn.Module",
    *,
    checkpoint: Path,
    run_id: str,
    tags: Mapping[str, object],
    description: str = "",
) -> ModelVersion:
    """Register a model that a run made: takes a list of (3, H, W) floats in [0, 1], returns dicts as torchvision's.

    The model is moved to the CPU and into evaluation mode. A run has one version: registering it again returns
    that one, with tags and description renewed. Raises StoreError.
    """
    name = name_model(study)
    texts = {key: str(value) for key, value in tags.items()} | {_CHECKPOINT_TAG: f"checkpoints/{checkpoint.name}"}
    found = _find_versions(store, f"name = '{name}' and run_id = '{run_id}'")
    if not found:
        store.put_artifact(run_id, checkpoint, texts[_CHECKPOINT_TAG])
        source = _put_model(store, model.cpu().eval(), run_id)
        with translate_errors(f"register {name}"):
            _create_registered_model(store, name)
            created = store.client.create_model_version(name, source, run_id, texts, description=description)
        return _describe(created)
    with translate_errors(f"renew {name}"):
        for key, value in texts.items():
            store.client.set_model_version_tag(name, str(found[0].version), key, value)
        store.client.update_model_version(name, str(found[0].version), description)
    return _find_versions(store, f"name = '{name}' and run_id = '{run_id}'")[0]


def set_alias(store: MlflowStore, study: str, alias: str, version: int) -> None:
    """Let an alias of a study's model mean this version. Raises StoreError: no such version."""
    with translate_errors(f"set the alias {alias!r} of {name_model(study)}"):
        store.client.set_registered_model_alias(name_model(study), alias, str(version))


def find_champion(store: MlflowStore, study: str) -> ModelVersion | None:
    """Return the version that is a study's champion, None where there is none."""
    return _find_alias(store, name_model(study), CHAMPION)


def resolve_checkpoint(store: Path, reference: str, tracking_uri: str | None = None) -> Path:
    """Return the checkpoint file that a reference means.

    References: a file; `models:/cityopt-demo@champion`; `models:/cityopt-demo/3`; the id of an MLflow run.
    Raises StoreError that lists what there is.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", reference)
    if not match and not re.fullmatch(r"[0-9a-f]{32}", reference):
        raise StoreError(
            f"a model must be a checkpoint file that exists, models:/NAME@ALIAS, models:/NAME/VERSION or the id of an "
            f"MLflow run, but got {reference!r}. {_list_models(store, tracking_uri)}"
        )
    if tracking_uri is None and not has_runs(store):
        raise StoreError(f"the store has no {reference}. {_list_models(store, tracking_uri)}")
    opened = MlflowStore(store, tracking_uri)
    if not match:
        return _checkpoint_of_run(opened, reference)
    version = _find_version(opened, *match.groups())
    if version is None:
        raise StoreError(f"the store has no {reference}. {_list_models(store, tracking_uri)}")
    found = opened.fetch_artifact(version.run_id, version.tags.get(_CHECKPOINT_TAG, CHECKPOINT))
    if found is None:
        raise StoreError(f"{reference} must have a checkpoint, but it is gone from the run {version.run_id}.")
    return found


def _checkpoint_of_run(store: MlflowStore, run_id: str) -> Path:
    own = run_folder(store.store, run_id) / BEST
    found = own if own.is_file() else store.fetch_artifact(run_id, CHECKPOINT)
    if found is None:
        raise StoreError(f"the run {run_id} has no checkpoint ({CHECKPOINT}). Choose a run that finished an epoch.")
    return found


def _put_model(store: MlflowStore, model: "nn.Module", run_id: str) -> str:
    """Put an MLflow model among a run's artifacts and return where it lies."""
    with tempfile.TemporaryDirectory() as folder, translate_errors(f"save the model of the run {run_id}"):
        saved = Path(folder) / _MODEL
        _save_model(model, saved)
        target = store.artifact_folder(run_id)
        if target is None:
            store.client.log_artifacts(run_id, str(saved), _MODEL)
        else:
            shutil.rmtree(target / _MODEL, ignore_errors=True)
            shutil.copytree(saved, target / _MODEL)
        return f"{store.artifact_uri(run_id)}/{_MODEL}"


def _save_model(model: "nn.Module", folder: Path) -> None:
    """Save an MLflow model. It is pickled, since detectors cannot be exported; fixed requirements spare a search."""
    import_mlflow()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "cityopt")}
    requirements = [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own type hints
        import mlflow.pytorch

        mlflow.pytorch.save_model(model, folder, serialization_format="pickle", pip_requirements=requirements)


def _create_registered_model(store: MlflowStore, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find_version(store: MlflowStore, name: str, alias: str | None, version: str | None) -> ModelVersion | None:
    if alias is not None:
        return _find_alias(store, name, alias)
    found = _find_versions(store, f"name = '{name}'")
    return next((item for item in found if item.version == int(version or 0)), None)


def _find_alias(store: MlflowStore, name: str, alias: str) -> ModelVersion | None:
    import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        return _describe(store.client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no alias
            return None
        raise StoreError(f"MLflow could not find {name}@{alias}: {error.message}") from error


def _find_versions(store: MlflowStore, condition: str) -> list[ModelVersion]:
    with translate_errors("search the model registry"):
        return [_describe(version) for version in store.client.search_model_versions(condition)]


def _list_models(store: Path, tracking_uri: str | None) -> str:
    """Say which models the store has, for an error message."""
    nothing = f"{store} has no models yet. Make one with: cityopt promote --study NAME"
    if tracking_uri is None and not has_runs(store):
        return nothing
    opened = MlflowStore(store, tracking_uri)
    with translate_errors("list the models"):
        models = opened.client.search_registered_models()
    lines = []
    for model in models:
        versions = ", ".join(f"/{v.version}" for v in reversed(_find_versions(opened, f"name = '{model.name}'")))
        aliases = ", ".join(f"@{alias} (= /{version})" for alias, version in sorted(model.aliases.items()))
        lines.append(f"models:/{model.name} has {versions or 'no version'}" + (f", {aliases}" if aliases else ""))
    return "\n".join(["Models of the store:", *lines]) if lines else nothing


def _describe(version: "MlflowVersion") -> ModelVersion:
    return ModelVersion(
        version.name,
        int(version.version),
        version.run_id or "",
        dict(version.tags),
        tuple(version.aliases),
        version.description or "",
    )
