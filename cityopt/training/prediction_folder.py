"""The folder that `cityopt predict` writes to: a new one, an empty one, or one of its own.

    OUT/overlays/<name>.jpg      the picture with what was found, beside the ground truth where there is one
    OUT/detections/<name>.json   classes, scores, boxes and masks (COCO's compressed RLE), in the picture's pixels
    OUT/summary.json             model, threshold, totals, what could not be read, and the files that predict owns

A file that predict does not own is never replaced: `summary.json` names what it may write before it does, so that
this holds after a kill too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cityopt.data.pictures import Picture
from cityopt.errors import ConfigError, StoreError
from cityopt.evaluation.matching import Matching
from cityopt.tracking.run_folder import read_json, write_atomically, write_json

FORMAT = "cityopt-predict-1"
SUMMARY = "summary.json"
OVERLAYS, DETECTIONS = "overlays", "detections"
_KINDS = {OVERLAYS: ".jpg", DETECTIONS: ".json"}


@dataclass
class PredictSummary:
    """What `run_prediction` did."""

    num_pictures: int = 0
    num_detections: int = 0
    """Of at least the score asked for."""
    num_labelled: int = 0
    """Pictures with ground truth, of which the next three tell."""
    num_found: int = 0
    num_false: int = 0
    num_missed: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    """What could not be read, and why."""

    def count(self, num_detections: int, matching: Matching | None) -> None:
        """Add a picture."""
        self.num_pictures += 1
        self.num_detections += num_detections
        if matching is not None:
            self.num_labelled += 1
            self.num_found += matching.num_found
            self.num_false += matching.num_false
            self.num_missed += matching.num_missed


@dataclass(frozen=True)
class ModelFacts:
    """What every JSON says about the model."""

    reference: str
    checkpoint: str
    input_size: tuple[int, int]
    """(height, width) that pictures are fitted into."""


class OutFolder:
    """The folder that predict writes to: a new one, an empty one, or one of its own."""

    def __init__(self, path: Path, pictures: Sequence[Picture]) -> None:
        """Look at what is there, and touch nothing.

        Raises ConfigError: something there is not predict's. Raises StoreError: it cannot be looked at.
        """
        self.path = path
        self.written: set[str] = set()
        self.planned = {f"{kind}/{p.name}{suffix}" for p in pictures for kind, suffix in _KINDS.items()}
        with _naming(path):
            self.owned = self._check()

    def _check(self) -> set[str]:
        """Return the files there that are predict's. Raises ConfigError: others are there or in the way."""
        path = self.path
        if path.exists() and not path.is_dir():
            raise ConfigError(f"`--out` must be a folder, but {path} is a file.")
        there = sorted(child.name for child in path.iterdir() if child.name[0] != ".") if path.exists() else []
        summary = read_json(path / SUMMARY) if SUMMARY in there else None
        if there and (summary is None or summary.get("format") != FORMAT):
            raise ConfigError(
                f"`--out` must be a new folder, an empty one, or one that predict made, but {path} holds {there[0]!r}"
                f"{f' and {len(there) - 1} more' if there[1:] else ''}. Choose another folder."
            )
        owned: set[str] = set(summary["files"]) if summary else set()
        foreign = sorted(name for name in self.planned - owned if (path / name).exists())
        if foreign:
            raise ConfigError(
                f"predict replaces only files that it made, but {path / foreign[0]} is not one of them. "
                "Move it away, or choose another folder with --out."
            )
        return owned

    def claim(self, facts: ModelFacts, score: float) -> None:
        """Make the folder and name what will be written there, before any of it is. Raises StoreError."""
        self._write_summary(facts, score, self.owned | self.planned, {"is_complete": False})

    def write(self, kind: str, name: str, content: bytes | dict[str, Any]) -> None:
        """Write one file whole. Raises StoreError."""
        file = f"{kind}/{name}{_KINDS[kind]}"
        try:
            (self.path / file).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                write_atomically(self.path / file, content)
            else:
                write_json(self.path / file, content)
        except OSError as error:
            raise StoreError(f"`--out` must be writable, but {self.path / file} is not: {error}.") from error
        self.written.add(file)

    def finish(self, facts: ModelFacts, score: float, summary: PredictSummary) -> None:
        """Write what came of it all. Raises StoreError."""
        self._write_summary(facts, score, self.owned | self.written, {"is_complete": True, **asdict(summary)})

    def _write_summary(self, facts: ModelFacts, score: float, files: set[str], rest: dict[str, Any]) -> None:
        head = {"format": FORMAT, "model": asdict(facts), "score_threshold": score}
        with _naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / SUMMARY, head | rest | {"files": sorted(files)})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"`--out` must be a writable folder, but {path} is not: {error}.") from error
