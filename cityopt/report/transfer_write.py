"""Write a transfer study where people look for it: a folder of their choice, and runs in MLflow.

OUT/report.html     the page
OUT/transfer.json   every number
OUT/pictures/       the close-ups
"""

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cityopt.errors import ConfigError, StoreError
from cityopt.report.transfer_page import write_transfer_page
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Record, write_atomically, write_json
from cityopt.training.transfer_study import COCO, SIZE, STREETS, Subject, TransferStudy

PAGE, NUMBERS, PICTURES = "report.html", "transfer.json", "pictures"
EXPERIMENT = KIND = "transfer"
_PROBE = ".writable"
_PICTURE = re.compile(r"\d{2,}_(gain|middle|loss)_.+\.jpg")


def check_out(out: Path) -> None:
    """Make the folder, or refuse one that holds something else, before any work is done.

    Raises ConfigError; StoreError: nothing can be written there.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"`--out` must be a folder, but {out} is a file.")
    there = [child.name for child in out.iterdir()] if out.is_dir() else []
    if there and NUMBERS not in there:
        raise ConfigError(f"`--out` must be a new folder, or one that transfer made, but {out} holds {there[0]!r}.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / _PROBE, b"")
        (out / _PROBE).unlink()


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say what the system has against writing into a folder. Raises StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"`--out` must be writable, but {out} is not: {error.strerror}.") from error


def write_transfer(study: TransferStudy, out: Path, store: Path) -> list[str]:
    """Write page, numbers and pictures, and record a run per model. Returns lines that say where they are.

    Raises StoreError: the folder cannot be written. What MLflow says against it is told, and loses nothing.
    """
    page = write_transfer_page(study, command=repeat(study, out)).encode()
    with writing(out):
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        write_atomically(out / PAGE, page)
        write_json(out / NUMBERS, study.to_json())
        write_pictures(study, out / PICTURES)
    lines = [f"{out / PAGE} ({len(page) / 1e6:.1f} MB), {out / NUMBERS}"]
    try:
        record_runs(study, out, store)
    except StoreError as error:
        lines.append(f"The runs are not in MLflow: {error}")
    return lines


def write_pictures(study: TransferStudy, folder: Path) -> None:
    """Write the close-ups, in place of those that an earlier study left there. Raises OSError."""
    for path in folder.glob("*.jpg"):
        if _PICTURE.fullmatch(path.name):
            path.unlink()
    for place, (name, close_up, picture) in enumerate(study.close_ups, start=1):
        write_atomically(folder / f"{place:02d}_{close_up.kind}_{name.replace(' ', '-')}.jpg", picture)


def record_runs(study: TransferStudy, out: Path, store: Path) -> None:
    """Record a run of kind `transfer` for every model. Raises StoreError."""
    mlflow = MlflowStore(store)
    parent = mlflow.open_parent(EXPERIMENT)
    for subject in study.subjects:
        tags = {f"cityopt.data.{x.key}": f"{x.root}: {x.num_images} of {x.num_in_split}" for x in study.grounds}
        run_id = mlflow.create_run(EXPERIMENT, subject.label, KIND, tags)
        record = Record(0, time.time_ns() // 1_000_000, study.list_metrics(subject))
        mlflow.log(run_id, records=[record], params=list_params(study, subject))
        for name in (PAGE, NUMBERS):
            mlflow.put_artifact(run_id, out / name, name)
        mlflow.finish_run(run_id, "FINISHED")
    mlflow.finish_run(parent, "FINISHED")


def repeat(study: TransferStudy, out: Path) -> str:
    """Return the command that repeats a study."""
    conditions, roots = study.conditions, {ground.key: ground.given or str(ground.root) for ground in study.grounds}
    words = ["cityopt", "transfer", *(x for subject in study.subjects for x in ("--weights", subject.reference))]
    words += ["--coco", roots[COCO]] if COCO in roots else []
    words += ["--data", roots[STREETS]] if STREETS in roots else []
    words += ["--limit", str(conditions.limit)] if conditions.limit else []
    words += ["--size", "{}x{}".format(*conditions.size)] if conditions.size != SIZE and STREETS in roots else []
    words += ["--device", conditions.device]
    words += ["--store", str(conditions.store)] if conditions.store else []
    return shlex.join([*words, "--out", str(out)])


def list_params(study: TransferStudy, subject: Subject) -> dict[str, object]:
    """Return what the run of a model notes beside its metrics: the model, its origin, and the conditions."""
    model, conditions = subject.config.model, study.conditions
    facts = {"family": model.family, "backbone": model.backbone, "classes": model.classes, "flavour": model.flavour}
    origin = {f"origin.{name}": value for name, value in subject.origin.items()}
    environment = {**conditions.environment, "threads": subject.config.threads}
    return {
        "weights": subject.reference,
        "size": "{}x{}".format(*conditions.size),
        "device": conditions.device,
        "limit": conditions.limit or "none",
        "begun": conditions.begun,
        **{f"model.{name}": value for name, value in facts.items()},
        **origin,
        **{f"environment.{name}": value for name, value in environment.items()},
    }
