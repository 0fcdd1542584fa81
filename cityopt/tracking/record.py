"""What a run recorded, in one file, for stores that have no folder of it.

    record.json     {"params": {…}, "status": {…}, "metrics": "lines of metrics.jsonl"}

The shipper puts it among the artifacts of a run on a server when the run ends; `mlflow_restore` makes a folder of it.
"""

import json
from collections.abc import Callable
from pathlib import Path

from cityopt.errors import StoreError
from cityopt.tracking.partial_folder import PartialFolder
from cityopt.tracking.run_folder import METRICS, PARAMS, STATUS, read_json, write_atomically, write_json

RECORD = "record.json"


def pack_record(folder: Path) -> Path:
    """Write a run's record into its folder and return its path."""
    path, metrics = folder / RECORD, folder / METRICS
    record = {
        "params": read_json(folder / PARAMS),
        "status": read_json(folder / STATUS),
        "metrics": metrics.read_text(encoding="utf-8") if metrics.is_file() else "",
    }
    content = json.dumps(record).encode()
    if not path.is_file() or path.read_bytes() != content:  # a file that stays as it is is not sent again
        write_atomically(path, content)
    return path


def unpack_record(path: Path, folder: Path, add_more: Callable[[Path], None] = lambda _: None) -> None:
    """Make a run's folder of its record, and of what `add_more` puts there, whole or not at all.

    Raises StoreError: it cannot be written, or is broken.
    """
    partial = None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        partial = PartialFolder(folder)
        for name, content in ((PARAMS, record["params"]), (STATUS, record["status"])):
            if content is not None:
                write_json(partial.path / name, content)
        write_atomically(partial.path / METRICS, record["metrics"].encode())
        add_more(partial.path)
        partial.finish()
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"the record {path} cannot be made a folder of: {error}") from error
    finally:
        if partial is not None:
            partial.discard()
