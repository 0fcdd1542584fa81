"""Ctrl-C and SIGTERM in a sweep or a promotion: once to end in good order, twice to leave at once."""

import os
import signal
from types import FrameType

from cityopt.search.observer import Observer

_STOPPING = "Stopping: what is finished is kept. Ctrl-C again to leave at once."
_LEFT = "Left at once. Nothing is lost: the same command goes on, and ends what MLflow still shows as running."


class Interrupt:
    """Listens while it is entered; `is_set` from the first signal on, also afterwards.

    The second signal ends the process, whatever it is at: its workers die with it, and the next start finishes what
    it left half done.
    """

    def __init__(self, observer: Observer) -> None:
        self.is_set = False
        self._observer = observer
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        """Take the signals. For the main thread alone."""
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            self._observer.leave(_LEFT)
            os._exit(128 + number)
        self.is_set = True
        self._observer.say(_STOPPING)
