"""Write a transfer study where people look for it: a folder of their choice, and runs in MLflow.

OUT/report.html     the page
OUT/transfer.json   every number
OUT/pictures/       the close-ups
"""

import shlex
import time
from pathlib import Path

from cityopt.errors import ConfigError, StoreError
from cityopt.report.transfer_page import write_transfer_page
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import Record, write_atomically, write_json
from cityopt.training.transfer import COCO, STREETS, Subject, TransferStudy

PAGE, NUMBERS, PICTURES = "report.html", "transfer.json", "pictures"
EXPERIMENT = KIND = "transfer"


def check_out(out: Path) -> None:
    """Refuse a folder that holds something else, before any work is done. Raises ConfigError."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"`--out` must be a folder, but {out} is a file.")
    there = [child.name for child in out.iterdir()] if out.is_dir() else []
    if there and NUMBERS not in there:
        raise ConfigError(f"`--out` must be a new folder, or one that transfer made, but {out} holds {there[0]!r}.")


def write_transfer(study: TransferStudy, out: Path, store: Path) -> list[str]:
    """Write page, numbers and pictures, and record a run per model. Returns lines that say where they are.

    Raises StoreError: the folder cannot be written. What MLflow says against it is told, and loses nothing.
    """
    page = write_transfer_page(study, command=repeat(study, out)).encode()
    try:
        (out / PICTURES).mkdir(parents=True, exist_ok=True)
        write_atomically(out / PAGE, page)
        write_json(out / NUMBERS, study.to_json())
        for place, (name, close_up, picture) in enumerate(study.close_ups, start=1):
            write_atomically(out / PICTURES / f"{place:02d}_{close_up.kind}_{name.replace(' ', '-')}.jpg", picture)
    except OSError as error:
        raise StoreError(f"`--out` must be writable, but {out} is not: {error.strerror}.") from error
    lines = [f"{out / PAGE} ({len(page) / 1e6:.1f} MB), {out / NUMBERS}"]
    try:
        record_runs(study, out, store)
    except StoreError as error:
        lines.append(f"The runs are not in MLflow: {error}")
    return lines


def record_runs(study: TransferStudy, out: Path, store: Path) -> None:
    """Record a run of kind `transfer` for every model. Raises StoreError."""
    mlflow = MlflowStore(store)
    parent = mlflow.open_parent(EXPERIMENT)
    for subject in study.subjects:
        tags = {f"cityopt.data.{x.key}": f"{x.root}: {x.num_images} of {x.num_in_split}" for x in study.grounds}
        run_id = mlflow.create_run(EXPERIMENT, subject.label, KIND, tags)
        record = Record(0, time.time_ns() // 1_000_000, study.list_metrics(subject))
        mlflow.log(run_id, records=[record], params=_list_params(subject))
        for name in (PAGE, NUMBERS):
            mlflow.put_artifact(run_id, out / name, name)
        mlflow.finish_run(run_id, "FINISHED")
    mlflow.finish_run(parent, "FINISHED")


def repeat(study: TransferStudy, out: Path) -> str:
    """Return the command that repeats a study."""
    roots = {ground.key: ground.root for ground in study.grounds}
    words = ["cityopt", "transfer", *(x for subject in study.subjects for x in ("--weights", subject.reference))]
    words += ["--coco", str(roots[COCO])] if COCO in roots else []
    words += ["--data", str(roots[STREETS])] if STREETS in roots else []
    parts = [ground for ground in study.grounds if ground.num_images < ground.num_in_split]
    words += ["--limit", str(max(ground.num_images for ground in parts))] if parts else []
    sizes = [ground.seen.replace(" ", "") for ground in study.grounds if ground.key == STREETS]
    words += ["--size", sizes[0]] if sizes and sizes[0] != "1024x2048" else []
    return shlex.join([*words, "--out", str(out)])


def _list_params(subject: Subject) -> dict[str, object]:
    model = subject.config.model
    facts = {"family": model.family, "backbone": model.backbone, "classes": model.classes, "flavour": model.flavour}
    origin = {f"origin.{name}": value for name, value in subject.origin.items()}
    return {"weights": subject.reference, **{f"model.{name}": value for name, value in facts.items()}, **origin}
