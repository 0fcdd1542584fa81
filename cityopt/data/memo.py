"""A JSON file of things that were slow to find out, shared by processes; losing it costs time and nothing else."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cityopt.errors import StoreError

_LOG = logging.getLogger("cityopt")


def read_memo(path: Path, version: int) -> dict[str, Any]:
    """Return the entries of a memo; one that is missing, broken or of another version has none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content["entries"]) if content["version"] == version else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("what was remembered in %s cannot be read (%s); looking again", path, error)
        return {}


def write_memo(path: Path, version: int, entries: Mapping[str, Any]) -> None:
    """Add entries to a memo, in one step: a reader sees the old file or the new one. Raises StoreError.

    Of two processes that write at once, one may lose what it added, never the file.
    """
    content = {"version": version, "entries": {**read_memo(path, version), **entries}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            json.dump(content, file)
        Path(file.name).replace(path)
    except OSError as error:
        raise StoreError(
            f"the store must be writable, but {path} is not: {error}. Choose another with --store."
        ) from error
