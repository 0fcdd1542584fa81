"""Run folders that two machines hold: what one side wrote is put into the other's folder, piece by piece.

A node that does not see the store trains in a folder of its own. Its `Outbox` cuts what has changed there into pieces,
the coordinator's `Inbox` puts them into the run's folder; the other way round before an attempt begins. Pieces are
small enough for any transport. A file is replaced whole, and checkpoints come before the records that they explain, so
that a transfer may be cut off anywhere: what has arrived is what a kill between two writes would have left. Nothing is
put anywhere but where a training writes, whatever the other side calls it.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cityopt.tracking.run_folder import ARTIFACTS, BEST, LAST, LOG, METRICS, PARAMS, link_atomically

PIECE_BYTES = 8 * 2**20
_ORDER = (PARAMS, LAST, BEST, METRICS, LOG)
"""Files of a run that both sides have, beside artifacts; the attempt, the end and what MLflow has are each side's."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file. `link` names a file of the folder that this one is the same as; there is no content then."""

    name: str
    content: bytes = b""
    is_first: bool = True
    is_last: bool = True
    link: str = ""


class Outbox:
    """What has changed in a run's folder and is to be sent."""

    def __init__(self, folder: Path, *, artifacts: bool = True) -> None:
        """Watch a folder; without `artifacts`, only what a training reads when it goes on."""
        self._folder, self._artifacts = folder, artifacts
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._names: deque[str] = deque()
        self._pieces: Iterator[Piece] = iter(())

    def skip(self) -> None:
        """Take all that is there as sent."""
        self._stamps = {name: _stamp(self._folder / name) for name in self._list()}

    def look(self) -> None:
        """Find what has changed since it was sent. Nobody may write to the folder until it has been taken."""
        found = {name: _stamp(self._folder / name) for name in self._list()}
        self._pieces = self._cut([name for name, stamp in found.items() if stamp != self._stamps.get(name)])
        self._stamps = found

    def take(self, limit: int = PIECE_BYTES) -> list[Piece]:
        """Return the next pieces, about `limit` bytes of them; none when all is sent. Raises OSError."""
        taken, size = list[Piece](), 0
        while size < limit and (piece := next(self._pieces, None)) is not None:
            taken.append(piece)
            size += len(piece.content)
        return taken

    def _list(self) -> list[str]:
        files = [self._folder / name for name in _ORDER]
        if self._artifacts:
            files = [*sorted((self._folder / ARTIFACTS).rglob("*")), *files]
        shown = [path for path in files if path.is_file() and not path.name.startswith(".")]
        return [path.relative_to(self._folder).as_posix() for path in shown]

    def _cut(self, names: list[str]) -> Iterator[Piece]:
        last = self._folder / LAST
        for name in names:
            path = self._folder / name
            if name == BEST and last.is_file() and path.samefile(last):
                yield Piece(name, link=LAST)
                continue
            with path.open("rb") as file:
                content, is_first = file.read(PIECE_BYTES), True
                while following := file.read(PIECE_BYTES):
                    yield Piece(name, content, is_first, is_last=False)
                    content, is_first = following, False
                yield Piece(name, content, is_first)


class Inbox:
    """Puts pieces into a run's folder, in the order in which they were taken."""

    def __init__(self, folder: Path) -> None:
        """Write to a folder, which is made where it is missing."""
        self._folder = folder

    def put(self, pieces: list[Piece]) -> None:
        """Add pieces; a file appears whole with its last one. Raises OSError, ValueError: no file of a training."""
        for piece in pieces:
            _check_name(piece.name)
            target = self._folder / piece.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if piece.link:
                _check_name(piece.link)
                link_atomically(self._folder / piece.link, target)
            else:
                self._append(target, piece)

    def _append(self, target: Path, piece: Piece) -> None:
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        with partial.open("wb" if piece.is_first else "ab") as file:
            file.write(piece.content)
            if piece.is_last:
                file.flush()
                os.fsync(file.fileno())
        if piece.is_last:
            partial.replace(target)


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    is_artifact = len(path.parts) > 1 and path.parts[0] == ARTIFACTS and ".." not in path.parts
    if name not in _ORDER and not is_artifact:
        raise ValueError(f"a node may send {', '.join(_ORDER)} and files in {ARTIFACTS}/, but got {name!r}.")


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced or grows."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
