"""Write the report where people look for it: a file of their choice, and the study's own run in MLflow.

A sweep that ends, a promotion and `cityopt report` come here. The parent run's folder gets the page as `report.html`;
a sweep at work mirrors it from there, and where none is, MLflow is told at once, with the study's description.
"""

from pathlib import Path

from cityopt.errors import StoreError
from cityopt.report.findings import Findings, read_findings
from cityopt.report.page import write_page
from cityopt.search.note import describe_study
from cityopt.search.status import read_status
from cityopt.services import has_runs, read_services
from cityopt.store import run_folder
from cityopt.tracking.mlflow_restore import restore_runs
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import ARTIFACTS, write_atomically

NAME = "report.html"


def write_report(store: Path, name: str, out: Path) -> str:
    """Write a study's report to a file and put it on the study's run. Returns lines that say where it is.

    Raises StoreError: no such study, or a file that cannot be written.
    """
    problem = _fetch_others(store, name)
    findings = read_findings(store, name)
    content = write_page(findings).encode()
    target = out.expanduser().absolute()
    try:
        write_atomically(target, content)
    except OSError as error:
        raise StoreError(
            f"the report must go into a file that can be written, but {target} cannot be: {error.strerror}. "
            "Give another one with --out FILE."
        ) from error
    size = f"{out} ({len(content) / 1e6:.1f} MB)"
    return "\n".join(filter(None, [size, problem, _warn_of_failure(findings, content)[1]]))


def publish_report(store: Path, name: str) -> str:
    """Put a study's report on the study's run; returns a line that says where it is, or what went wrong."""
    try:
        _fetch_others(store, name)
        findings = read_findings(store, name)
        path, warning = _warn_of_failure(findings, write_page(findings).encode())
    except Exception as error:  # whatever it is, it must not hide how the sweep or promotion ended
        return f"The report could not be made ({type(error).__name__}: {error}). See: cityopt report --study {name}"
    return warning or f"Report: {path}"


def put_on_parent(findings: Findings, content: bytes) -> Path:
    """Put a page on the study's run, with the description. Raises StoreError: there is no such run, or no MLflow."""
    store, name = findings.store, findings.config.name
    mlflow = MlflowStore(store)
    if not has_runs(store):
        raise StoreError(f"there is no mlflow.db in {store}.")
    parent = mlflow.find_parent(name)
    if parent is None:
        raise StoreError(f"MLflow has no run of the study {name!r}.")
    path = run_folder(store, parent) / ARTIFACTS / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    mlflow.put_artifact(parent, path, NAME)
    mlflow.describe_run(parent, describe_study(findings.status, mlflow.open_experiment(name)))
    return path


def _fetch_others(store: Path, name: str) -> str:
    """Fetch what other machines recorded; returns what was said against it: a report can do without."""
    if read_services(store).tracking_uri is None:
        return ""
    try:
        best = read_status(store, name).best
        restore_runs(MlflowStore(store), name, drawn=[best.run_id] if best else [])
    except StoreError as error:
        return f"The report may lack what other machines recorded: {error}"
    return ""


def _warn_of_failure(findings: Findings, content: bytes) -> tuple[Path | None, str]:
    """Put a page on the study's run; what MLflow or the disk says against it is no reason to lose the page."""
    try:
        return put_on_parent(findings, content), ""
    except (StoreError, OSError) as error:
        return None, f"The report is not on the study's run in MLflow: {error}"
