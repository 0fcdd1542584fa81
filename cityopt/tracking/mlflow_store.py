"""MLflow behind one class: the database of a store, experiments, runs, and what is logged to them.

One study is one experiment with one parent run; trials and promotions are its children. Only the modules
`mlflow_*` know MLflow. It takes three seconds to import, so it is imported where it is first used.
"""

import fcntl
import getpass
import importlib
import json
import logging
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse
from urllib.request import url2pathname

from cityopt.errors import StoreError
from cityopt.services import hide_password, read_services
from cityopt.tracking.deferred_run import REQUEST, DeferredRun
from cityopt.tracking.mlflow_batch import BatchWriter
from cityopt.tracking.run_folder import Record, link_atomically

if TYPE_CHECKING:
    from mlflow import MlflowClient

RunEnd = Literal["FINISHED", "KILLED", "FAILED"]

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow would repeat what the server did, and make a run twice
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
DESCRIPTION = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
_MAX_TEXT = 6000
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's page then opens on runs and curves, not on traces of language models."""
_FOREVER = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")


class RefusedError(StoreError):
    """MLflow refuses something for good: the run was deleted, or the data are not valid. Trying again is no use."""


class MlflowStore:
    """MLflow's side of a store: `mlflow.db` and `artifacts/`, or the server that it points to (or `tracking_uri`).

    Safe to use from several threads. Every method raises StoreError when MLflow cannot do what is asked.
    """

    def __init__(self, store: Path, tracking_uri: str | None = None) -> None:
        self.store = store.absolute()
        own = tracking_uri or read_services(self.store).tracking_uri
        self.tracking_uri = own or f"sqlite:///{self.store / 'mlflow.db'}"
        self._experiments: dict[str, str] = {}
        self._parents: dict[str, str] = {}
        self._artifacts: dict[str, str] = {}
        self._lock = threading.RLock()
        self._batches = BatchWriter(self._database)

    @property
    def is_embedded(self) -> bool:
        """Say whether the database is a file."""
        return self.tracking_uri.startswith("sqlite:")

    def _turn(self) -> AbstractContextManager[object]:
        """Write to a database on this machine one thread at a time: SQLite lets the others sleep longer than needed."""
        return self._lock if self.is_embedded else nullcontext()

    @property
    def _database(self) -> Path:
        return Path(self.tracking_uri.removeprefix("sqlite:///"))

    @cached_property
    def client(self) -> "MlflowClient":
        """Return MLflow's client. The first call makes the database where it is missing, one process at a time."""
        import_mlflow()
        from mlflow import MlflowClient

        with translate_errors(f"open {hide_password(self.tracking_uri)}"):
            if not self.is_embedded:
                return MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)
            with _locked(self.store / "mlflow.lock"):
                with closing(sqlite3.connect(self._database)) as database:
                    database.execute("PRAGMA journal_mode=WAL")
                return MlflowClient(self.tracking_uri, registry_uri=self.tracking_uri)

    def check(self) -> None:
        """Ask for anything. Raises StoreError: there is no MLflow at this address, or it does not answer now."""
        try:
            with translate_errors("answer"):
                self.client.search_experiments(max_results=1)
        except StoreError as error:
            raise StoreError(
                f"an MLflow server must answer at {hide_password(self.tracking_uri)}. {error}\n"
                "Is it up, and may this machine reach it? Start one with: mlflow server --host HOST --port PORT"
            ) from error

    def open_experiment(self, study: str) -> str:
        """Return the id of a study's experiment, made where it is missing. Raises StoreError: it is deleted."""
        if study not in self._experiments:
            with translate_errors(f"open the experiment {study!r}"):
                self._experiments[study] = self._open_experiment(study)
        return self._experiments[study]

    def open_parent(self, study: str, tags: Mapping[str, object] | None = None) -> str:
        """Return the id of a study's parent run, running again, made where it is missing."""
        found = self.find_parent(study)
        with translate_errors(f"open the parent run of {study!r}"):
            if found:
                self.client.update_run(found, status="RUNNING")
                self.log(found, tags=tags or {})
            run_id = found or self._create_run(study, study, "study", tags or {})
        self._parents[study] = run_id
        return run_id

    def find_parent(self, study: str) -> str | None:
        """Return the id of a study's parent run as it is, None where there is none."""
        experiment = self.open_experiment(study)
        with translate_errors(f"find the parent run of {study!r}"):
            found = self.client.search_runs(
                [experiment], "tags.`cityopt.kind` = 'study'", max_results=1, order_by=["attributes.start_time ASC"]
            )
        return str(found[0].info.run_id) if found else None

    def describe_run(self, run_id: str, text: str) -> None:
        """Give a run a description in Markdown, in place of an earlier one."""
        self.log(run_id, tags={DESCRIPTION: text})

    def create_run(
        self,
        study: str,
        name: str,
        kind: str,
        tags: Mapping[str, object] | None = None,
    ) -> str:
        """Create a child run of a study, RUNNING, and return its id.

        Tags `cityopt.study`, `cityopt.kind` and MLflow's own are set beside the given ones.
        """
        parent = self._parents.get(study) or self.open_parent(study)
        with translate_errors(f"create the run {name!r}"):
            return self._create_run(study, name, kind, {"mlflow.parentRunId": parent, **(tags or {})})

    def make_run(self, request: str, run: DeferredRun) -> str:
        """Return the id of a run that began while MLflow was away, made where no request has made it."""
        made = self._search(run.study, f"tags.`{REQUEST}` = '{request}'", limit=1)
        return (
            made[0]
            if made
            else MlflowStore.create_run(self, run.study, run.name, run.kind, {**run.tags, REQUEST: request})
        )

    def open_run(self, request: str, run: DeferredRun, *, may_exist: bool) -> str:
        """Return the id of a run, made if need be; `may_exist` says whether this was asked for before."""
        if self.is_embedded:
            known = self.find_run(run.study, run.name) if may_exist else None
            return known or self.create_run(run.study, run.name, run.kind, run.tags)
        if may_exist:
            return self.make_run(request, run)
        return MlflowStore.create_run(self, run.study, run.name, run.kind, {**run.tags, REQUEST: request})

    def find_or_create_run(self, study: str, name: str, kind: str, tags: Mapping[str, object]) -> str:
        """Return the id of a study's run of this name, which a kill may have left unrecorded, or of a new one."""
        return self.find_run(study, name) or self.create_run(study, name, kind, tags)

    def find_run(self, study: str, name: str) -> str | None:
        """Return the id of a study's newest run of this name, None where there is none."""
        ids = self._search(study, f"attributes.run_name = '{name}'", limit=1)
        return ids[0] if ids else None

    def list_running(self, study: str) -> list[str]:
        """Return the ids of a study's runs that are RUNNING, its parent among them."""
        return self._search(study, "attributes.status = 'RUNNING'", limit=1000)

    def reopen_run(self, run_id: str) -> None:
        """Make an ended run RUNNING again, to go on with it."""
        with self._turn(), translate_errors(f"reopen the run {run_id}"):
            self.client.update_run(run_id, status="RUNNING")
            self.client.set_tag(run_id, "cityopt.state", "running")

    def log(
        self,
        run_id: str,
        *,
        records: Iterable[Record] = (),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Log metrics, params and tags of a run, by the fast way where it can be taken.

        Logging the same again changes nothing. Raises RefusedError: the run was deleted, or a param changed.
        """
        import_mlflow()
        from mlflow.entities import Metric, Param, RunTag

        kept = list(records)
        texts, labels = ({k: _shorten(v) for k, v in (pairs or {}).items()} for pairs in (params, tags))
        if self.is_embedded:
            with self._turn():
                if self._batches.write(run_id, kept, texts, labels):
                    return
        metrics = [Metric(k, value, r.time_ms, r.step) for r in kept for k, value in r.metrics.items()]
        with self._turn(), translate_errors(f"log to the run {run_id}"):
            self.client.log_batch(
                run_id,
                metrics=metrics,
                params=[Param(name, text) for name, text in texts.items()],
                tags=[RunTag(name, text) for name, text in labels.items()],
            )

    def read_params(self, run_id: str) -> dict[str, str]:
        """Return the params of a run as MLflow has them; none of one that is gone."""
        try:
            with translate_errors(f"read the run {run_id}"):
                return dict(self.client.get_run(run_id).data.params)
        except RefusedError:
            return {}

    def log_dataset(self, run_id: str, name: str, digest: str, source: str, context: str = "training") -> None:
        """Name a dataset as input of a run: its name, a digest (36 characters are kept) and where it lies."""
        import_mlflow()
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], source_type="local", source=json.dumps({"uri": source}))
        with self._turn(), translate_errors(f"log a dataset to the run {run_id}"):
            if self.is_embedded and self._batches.link_dataset(run_id, dataset.name, dataset.digest, context):
                return
            tags = [InputTag("mlflow.data.context", context)]
            self.client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])

    def finish_run(
        self, run_id: str, status: RunEnd, tags: Mapping[str, object] | None = None, end_ms: int | None = None
    ) -> None:
        """End a run, at `end_ms` (now)."""
        if tags:
            self.log(run_id, tags=tags)
        with self._turn(), translate_errors(f"end the run {run_id}"):
            moment = end_ms or time.time_ns() // 1_000_000
            if not (self.is_embedded and self._batches.end_run(run_id, status, moment)):
                self.client.set_terminated(run_id, status, moment)

    def artifact_uri(self, run_id: str) -> str:
        """Return where the artifacts of a run lie."""
        if run_id not in self._artifacts:
            with translate_errors(f"find the run {run_id}"):
                self._artifacts[run_id] = self.client.get_run(run_id).info.artifact_uri
        return self._artifacts[run_id]

    def artifact_folder(self, run_id: str) -> Path | None:
        """Return the folder of a run's artifacts, None when they lie elsewhere than on this machine."""
        uri = urlparse(self.artifact_uri(run_id))
        return Path(url2pathname(uri.path)) if uri.scheme in ("", "file") else None

    def put_artifact(self, run_id: str, source: Path, name: str) -> None:
        """Give a run an artifact: a hard link where that is possible, a copy or an upload elsewhere.

        A link is safe with files that are replaced, not changed, as all files of run folders are.
        """
        folder = self.artifact_folder(run_id)
        if folder is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            link_atomically(source, folder / name)
            return
        with translate_errors(f"upload {source}"):
            self.client.log_artifact(run_id, str(source), str(Path(name).parent) if "/" in name else None)

    def fetch_artifact(self, run_id: str, name: str) -> Path | None:
        """Return the path of a run's artifact, fetched into the store if need be; None where it does not exist."""
        folder = self.artifact_folder(run_id)
        if folder is not None:
            return folder / name if (folder / name).is_file() else None
        target = self.store / "cache" / "artifacts" / run_id / name
        if target.is_file():
            return target
        with translate_errors(f"list the artifacts of the run {run_id}"):
            parent = str(Path(name).parent) if "/" in name else None
            if name not in {info.path for info in self.client.list_artifacts(run_id, parent)}:
                return None
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as partial, translate_errors(f"download {name}"):
            return Path(self.client.download_artifacts(run_id, name, partial)).replace(target)

    def _open_experiment(self, study: str) -> str:
        found = self.client.get_experiment_by_name(study)
        if found is None:
            return self._create_experiment(study)
        if found.lifecycle_stage != "active":
            raise RefusedError(
                f"the MLflow experiment {study!r} must not be deleted, but it is. Restore it with: "
                f"MLFLOW_TRACKING_URI={hide_password(self.tracking_uri)} "
                f"mlflow experiments restore -x {found.experiment_id} or begin another study with --name NEW."
            )
        return str(found.experiment_id)

    def _create_experiment(self, study: str) -> str:
        from mlflow.exceptions import MlflowException

        location = (self.store / "artifacts" / study).as_uri() if self.is_embedded else None
        try:
            return str(self.client.create_experiment(study, location, _EXPERIMENT_TAGS))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else another process was faster
                raise
            return self._open_experiment(study)

    def _create_run(self, study: str, name: str, kind: str, tags: Mapping[str, object]) -> str:
        own = {"cityopt.study": study, "cityopt.kind": kind, "mlflow.user": _user(), "mlflow.source.name": "cityopt"}
        texts = {key: _shorten(value) for key, value in {**own, **tags}.items()}
        experiment = self.open_experiment(study)
        with self._turn():
            made = self._batches.create_run(experiment, name, texts) if self.is_embedded else None
            if made is None:
                info = self.client.create_run(experiment, tags=texts, run_name=name).info
                made = str(info.run_id), str(info.artifact_uri)
        self._artifacts[made[0]] = made[1]
        return made[0]

    def _search(self, study: str, condition: str, limit: int) -> list[str]:
        experiment = self.open_experiment(study)
        with translate_errors(f"search the runs of {study!r}"):
            found: list[str] = []
            token = None
            while True:
                page = self.client.search_runs([experiment], condition, max_results=limit, page_token=token)
                found.extend(run.info.run_id for run in page)
                token = page.token
                if not token or len(found) >= limit == 1:
                    return found


@cache
def import_mlflow() -> None:
    """Import MLflow so that it keeps quiet: no telemetry, no chatter on stdout or stderr."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    importlib.import_module("mlflow")

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def translate_errors(action: str) -> Iterator[None]:
    """Turn what MLflow, its database and the file system raise into a StoreError that says what failed."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        kind = RefusedError if error.error_code in _FOREVER else StoreError
        raise kind(f"MLflow could not {action}: {hide_password(_name_cause(error))}") from error
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(f"MLflow could not {action}: {hide_password(str(error))}") from error


def _name_cause(error: BaseException) -> str:
    """Return what MLflow says, or why its client had no answer, without the request and three libraries around it."""
    if str(error).startswith("API request to"):
        while inner := error.__cause__ or error.__context__:
            error = inner
    return str(error)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shorten(value: object) -> str:
    text = json.dumps(value) if isinstance(value, list | dict | tuple) else str(value)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
