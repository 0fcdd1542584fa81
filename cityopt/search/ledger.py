"""What a coordinator tells the studies' database of its trials: now, or, while the database is away, in order later.

A server that is restarted, or out of reach for minutes, stops no training: what it misses is in the run folders, and
is told when it answers again. About a trial that is another coordinator's by then nothing is told.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cityopt.errors import StoreError
from cityopt.search.ownership import LeaseLostError, Ownership
from cityopt.search.storage import name_cause
from cityopt.services import name_storage

T = TypeVar("T")
PATIENCE_S = 600.0
_LONGEST_PAUSE_S = 15.0
AWAY = (StorageInternalError, SQLAlchemyError)
"""What is raised when a database does not answer (and for other reasons, which `is_away` tells apart)."""


class Ledger:
    """Writes about trials in order. `say` takes a line for the user when the waiting begins and when it ends."""

    def __init__(self, ownership: Ownership, say: Callable[[str], None], patience_s: float = PATIENCE_S) -> None:
        self._ownership, self._say, self._patience_s = ownership, say, patience_s
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._lost: set[int] = set()
        self._away_since: float | None = None
        self._next_try, self._pause = 0.0, 1.0

    @property
    def is_away(self) -> bool:
        """Whether the database did not answer when it was asked last, or has not been told everything since."""
        return self._away_since is not None or bool(self._waiting)

    @property
    def waiting(self) -> set[int]:
        """Numbers of the trials about which something waits to be told."""
        return {number for number, _ in self._waiting}

    def take_lost(self) -> set[int]:
        """Return the trials that turned out to be another coordinator's since this was asked last."""
        lost = self._lost | self._ownership.take_lost()
        self._lost = set()
        self._waiting = deque((number, action) for number, action in self._waiting if number not in lost)
        return lost

    def write(self, number: int, action: Callable[[], None]) -> None:
        """Do what writes about a trial, now or later. It may be begun again: what it did once must do no harm twice."""
        if self.is_away or not self.ask(lambda: self._write(number, action), False):
            self._waiting.append((number, action))

    def lose(self, number: int) -> None:
        """Take note that a trial is another coordinator's."""
        self._lost.add(number)

    def ask(self, action: Callable[[], T], otherwise: T) -> T:
        """Return what an action that needs the database returns, or `otherwise` if it does not answer.

        Raises what a database in a file raises. Raises StoreError: a server does not answer for longer than patience.
        """
        try:
            answer = action()
        except AWAY as error:
            if not is_away(error):
                raise
            self._note_outage(error)
            return otherwise
        if self._away_since is not None:
            self._away_since, self._pause = None, 1.0
            self._say("The studies' database answers again.")
        return answer

    def catch_up(self) -> None:
        """Tell what waits, if it is time to try again."""
        if not self.is_away or time.monotonic() < self._next_try:
            return
        self.ask(self._ownership.is_alone, True)  # any question will do
        while self._waiting and self._away_since is None and self.ask(lambda: self._write(*self._waiting[0]), False):
            self._waiting.popleft()

    def _write(self, number: int, action: Callable[[], None]) -> bool:
        """Do what writes about a trial, unless it is lost. True: that is settled."""
        if number not in self._lost:
            try:
                with self._ownership.writing(number):
                    action()
            except LeaseLostError:
                self._lost.add(number)
        return True

    def _note_outage(self, error: BaseException) -> None:
        now = time.monotonic()
        if self._away_since is None:
            self._away_since = now
            self._say(
                f"The studies' database does not answer ({name_cause(error)}). Training goes on; it is asked again for "
                f"up to {self._patience_s / 60:.0f} minutes."
            )
        if now - self._away_since > self._patience_s:
            raise StoreError(
                f"the studies' database did not answer for {now - self._away_since:.0f} s: {name_cause(error)}. "
                "Nothing is lost: all that is finished is in the run folders. When it answers again, the same command "
                "goes on."
            ) from error
        self._next_try = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)


@contextmanager
def explaining_outages(store: Path) -> Iterator[None]:
    """Say how to go on when the studies' database goes away where nothing special can be done. Raises StoreError."""
    try:
        yield
    except AWAY as error:
        if not is_away(error):
            raise
        raise StoreError(
            f"the studies' database {name_storage(store)} does not answer: {name_cause(error)}. Nothing is lost: all "
            "that is finished is in the run folders. When it answers again, the same command goes on."
        ) from error


def is_away(error: BaseException) -> bool:
    """Say whether an error means that a database server cannot be reached now."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DBAPIError):
            state = getattr(found.orig, "sqlstate", None) or ""
            is_server = type(found.orig).__module__.startswith("psycopg")
            # Without a state there was no answer; classes 08, 57 and 53: connection, shutdown and start, resources.
            return is_server and (found.connection_invalidated or not state or state[:2] in ("08", "57", "53", "25"))
        found = found.__cause__ or found.__context__
    return False
