"""Runs of other machines: their records come from the MLflow server, as folders like those of this machine's own runs.

A report, a promotion and a look at finalists read run folders. Where several stores share a study, each has those of
its own runs; what the others recorded is on the server. Checkpoints are fetched one by one where one is needed.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from cityopt.store import run_folder
from cityopt.tracking.deferred_run import REQUEST, is_request
from cityopt.tracking.mlflow_store import MlflowStore, translate_errors
from cityopt.tracking.record import RECORD, unpack_record
from cityopt.tracking.run_folder import ARTIFACTS

_ENDED = ("complete", "pruned", "failed")
_HEAVY = ("checkpoints", "model")
_WITH_PICTURES = "promotion"


def restore_runs(mlflow: MlflowStore, study: str, *, drawn: Collection[str | None] = ()) -> int:
    """Make the folders that this store lacks of a study's ended runs; returns how many. Raises StoreError.

    Pictures and tables are fetched for promotions and for the runs in `drawn`. A run that only stopped for a while is
    left to whoever takes it up again. Without a server there is nothing to fetch.
    """
    if mlflow.is_embedded:
        return 0
    return sum(_restore(mlflow, run, drawn) for run in _list_ended(mlflow, study))


def _list_ended(mlflow: MlflowStore, study: str) -> list[Any]:
    experiment = mlflow.open_experiment(study)
    found, token = list[Any](), None
    with translate_errors(f"list the runs of {study!r}"):
        while True:
            page = mlflow.client.search_runs(
                [experiment], "attributes.status != 'RUNNING'", max_results=1000, page_token=token
            )
            found += [run for run in page if run.data.tags.get("cityopt.state") in _ENDED]
            token = page.token
            if not token:
                return found


def _restore(mlflow: MlflowStore, run: Any, drawn: Collection[str | None]) -> bool:
    run_id, request = str(run.info.run_id), str(run.data.tags.get(REQUEST, ""))
    folder, other = (run_folder(mlflow.store, name) for name in (run_id, request if is_request(request) else run_id))
    if folder.exists() or other.exists():
        return False
    record = mlflow.fetch_artifact(run_id, RECORD)
    if record is None:
        return False
    if other != folder:
        with suppress(OSError):  # it is there and leads nowhere, if this was cut off before
            other.symlink_to(folder.name)  # the study knows a run by this name if MLflow was away when it began
    has_pictures = run.data.tags.get("cityopt.kind") == _WITH_PICTURES or {run_id, other.name} & set(drawn)
    unpack_record(record, folder, lambda partial: _fetch_light(mlflow, run_id, partial) if has_pictures else None)
    return True


def _fetch_light(mlflow: MlflowStore, run_id: str, folder: Path) -> None:
    with translate_errors(f"fetch the artifacts of the run {run_id}"):
        for item in mlflow.client.list_artifacts(run_id):
            if item.path not in (*_HEAVY, RECORD):
                (folder / ARTIFACTS).mkdir(exist_ok=True)
                mlflow.client.download_artifacts(run_id, item.path, str(folder / ARTIFACTS))
