"""MLflow for a coordinator that cannot go on without an answer: a server that is away is asked again for a while.

What a run records never waits for MLflow: it goes to the run's folder, and the shipper has a patience of its own. Nor
does a trial wait for its run: the coordinator would leave the other workers without answers meanwhile, so that the
trial begins in a folder of its own (`deferred_run`). But the study's own run must be there before anything else is.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cityopt.errors import StoreError
from cityopt.services import hide_password
from cityopt.store import run_folder
from cityopt.tracking.deferred_run import (
    DeferredRun,
    defer_run,
    find_mlflow_id,
    follow_link,
    is_deferred,
    note_closed,
)
from cityopt.tracking.mlflow_store import MlflowStore, RefusedError

T = TypeVar("T")
PATIENCE_S = 120.0
_LONGEST_PAUSE_S = 15.0


class PatientStore(MlflowStore):
    """A store whose server may be away for up to `PATIENCE_S` seconds; a database on this machine never is.

    `on_wait` takes a line for the user when the waiting begins and when it ends. A method that waited in vain raises
    StoreError, which says that nothing is lost.
    """

    def __init__(self, store: Path, tracking_uri: str | None = None, *, on_wait: Callable[[str], None]) -> None:
        super().__init__(store, tracking_uri)
        self._on_wait = on_wait
        self._is_away = self._is_back = False
        self._next_probe = 0.0

    def open_parent(self, study: str, tags: Mapping[str, object] | None = None) -> str:
        """Return the id of a study's parent run, running again, made where it is missing."""
        return self._insist(lambda: MlflowStore.open_parent(self, study, tags))

    def create_run(
        self,
        study: str,
        name: str,
        kind: str,
        tags: Mapping[str, object] | None = None,
    ) -> str:
        """Create a child run of a study. A run that an unanswered request made already is taken, not made twice."""

        def find_or_create() -> str:
            found = MlflowStore.find_run(self, study, name)
            return found or MlflowStore.create_run(self, study, name, kind, tags)

        return self._insist(lambda: MlflowStore.create_run(self, study, name, kind, tags), find_or_create)

    def find_run(self, study: str, name: str) -> str | None:
        """Return the id of a study's newest run of this name, None where there is none."""
        return self._insist(lambda: MlflowStore.find_run(self, study, name))

    def reopen_run(self, run_id: str) -> None:
        """Make an ended run RUNNING again, to go on with it; where the server is away, the shipper does that later."""
        folder = run_folder(self.store, run_id)
        known = find_mlflow_id(folder)
        if known is None:
            return
        if not self._is_known_away():
            with self._going_on():
                MlflowStore.reopen_run(self, known)
                return
        note_closed(follow_link(folder))

    def open_run(self, request: str, run: DeferredRun, *, may_exist: bool) -> str:
        """Return the id of a run, made if need be. One that MLflow cannot make now has an id of the store until it can.

        Whoever makes it later finds it by the tag of its request, if MLflow has it already.
        """
        if self.is_embedded:
            return MlflowStore.open_run(self, request, run, may_exist=may_exist)
        if not is_deferred(self.store, request) and not self._is_known_away():
            with self._going_on():
                return MlflowStore.open_run(self, request, run, may_exist=may_exist)
        return defer_run(self.store, request, run)

    def _is_known_away(self) -> bool:
        """Say whether MLflow was away when it was asked last; a thread looks now and then whether it still is.

        To ask a server that takes a connection and never answers takes most of a minute, in which the workers of a
        coordinator would get no answers either.
        """
        if not self._is_away or self._is_back:
            return False
        if time.monotonic() >= self._next_probe:
            self._next_probe = math.inf  # one at a time
            threading.Thread(target=self._probe, name="mlflow-probe", daemon=True).start()
        return True

    def _probe(self) -> None:
        try:
            self.check()
        except Exception:  # whatever answers there, it is not MLflow yet
            self._next_probe = time.monotonic() + _LONGEST_PAUSE_S
        else:
            self._is_back = True

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Do without an answer; a refusal, and the word of a database on this machine, are answers."""
        try:
            yield
        except RefusedError:
            raise
        except StoreError as error:
            if self.is_embedded:
                raise
            if not self._is_away:
                self._on_wait(f"{_end(error)} Training goes on; MLflow gets everything when it answers again.")
            self._is_away, self._is_back = True, False
            self._next_probe = time.monotonic() + _LONGEST_PAUSE_S
        else:
            if self._is_away:
                self._on_wait("MLflow answers again.")
            self._is_away = False

    def _insist(self, ask: Callable[[], T], ask_again: Callable[[], T] | None = None) -> T:
        """Ask until there is an answer, a refusal, or no patience left."""
        begin, pause = time.monotonic(), 1.0
        while True:
            try:
                answer = ask()
            except RefusedError:
                raise
            except StoreError as error:
                waited = time.monotonic() - begin
                if self.is_embedded:
                    raise
                if waited + pause > PATIENCE_S:
                    raise self._give_up(error, waited) from error
                if pause == 1.0:
                    self._on_wait(f"{_end(error)} It is asked again for up to {PATIENCE_S:.0f} s.")
            else:
                if pause > 1.0:
                    self._on_wait("MLflow answers again.")
                return answer
            time.sleep(pause)
            ask, pause = ask_again or ask, min(2 * pause, _LONGEST_PAUSE_S)

    def _give_up(self, error: StoreError, waited: float) -> StoreError:
        return StoreError(
            f"{_end(error)} MLflow at {hide_password(self.tracking_uri)} was asked for {waited:.0f} s. "
            f"Nothing is lost: all that is finished is in {self.store}. "
            "When MLflow answers again, the same command goes on."
        )


def _end(error: StoreError) -> str:
    """Return an error as a sentence: MLflow's own have no full stop."""
    return f"{str(error).rstrip().removesuffix('.')}."
