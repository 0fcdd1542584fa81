"""A folder that appears whole, or not at all: exports and reports are written in one of these.

A new folder appears by one rename. One that is there, empty, may be a mount point or a link, which nothing can be
renamed to: it is filled from within, on its own device.
"""

import os
import shutil
from pathlib import Path


class PartialFolder:
    """A folder to write to, out of sight until `finish`."""

    def __init__(self, folder: Path) -> None:
        """Begin what becomes `folder`, which is new or empty. Raises OSError."""
        self._folder = folder.absolute()
        self._is_there = self._folder.is_dir()
        place = self._folder if self._is_there else self._folder.parent
        self.path = place / f".{self._folder.name}.{os.getpid()}.partial"
        """Where to write until then."""
        self.path.mkdir(parents=True)

    def finish(self) -> None:
        """Move what was written to its place. Raises OSError; nothing of it is there then."""
        if not self._is_there:
            self.path.rename(self._folder)
            return
        moved: list[Path] = []
        try:
            for child in sorted(self.path.iterdir()):
                moved.append(child.rename(self._folder / child.name))
        except BaseException:
            for path in moved:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            raise

    def discard(self) -> None:
        """Remove what was not moved."""
        shutil.rmtree(self.path, ignore_errors=True)
