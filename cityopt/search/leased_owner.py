"""Ownership by leases: a coordinator among others on PostgreSQL.

A thread renews this coordinator's leases, whatever its main thread waits for. What it writes about a trial is fenced:
the transaction that writes also locks the trial's lease, and is undone when the lease is another's. So a coordinator
that was suspended for longer than its leases writes nothing when it wakes up.
"""

import math
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cityopt.search.leases import PARENT, Lease, LeaseTable, lock_decisions, name_coordinator, name_trial
from cityopt.search.ownership import LeaseLostError, Ownership, SoleOwner
from cityopt.search.processes import is_gone, name_process

LEASE_S = 120.0
"""Generous: a machine under load, or a network that is away for a minute, must not cost a trial its place."""
_RENEWALS_PER_LEASE = 8
_GRACE = 0.25
"""Part of a lease's time in which one who has just come leaves alone what has run out. The database may have answered
nobody for long, as after a crash: whoever is alive renews now."""
_BLIND = 0.5
"""Part of a lease's time without an answer after which others may have had none either, and their leases run out."""
_LOOK_INTERVAL_S = 2.0
_MAX_IDLE_S = 60.0
"""Seconds after which the server undoes a transaction whose client does nothing: it may be suspended, with locks.

Shorter leases make it shorter, so that a lease that has run out can be taken."""


def open_ownership(storage: RDBStorage, study: optuna.Study, lease_s: float = LEASE_S) -> Ownership:
    """Return what suits a study's database."""
    if storage.engine.dialect.name == "sqlite":
        return SoleOwner()
    return LeasedOwner(storage, study, lease_s)


class LeasedOwner(Ownership):
    """Owns the trials that it has leases for."""

    def __init__(self, storage: RDBStorage, study: optuna.Study, lease_s: float) -> None:
        self._storage, self._engine, self._study_id, self._lease_s = storage, storage.engine, study._study_id, lease_s
        self._max_idle_s = min(_MAX_IDLE_S, lease_s)
        self.look_interval_s = min(_LOOK_INTERVAL_S, lease_s / 4)
        token = uuid.uuid4().hex
        self._presence = name_coordinator(token)
        owner = f"{socket.gethostname()}:{os.getpid()}:{token[:8]}"
        self._table = LeaseTable(
            self._engine, self._study_id, owner=owner, place=name_process(os.getpid()), token=token, lease_s=lease_s
        )
        self._token, self._fenced = token, threading.local()
        self._guard = threading.Lock()
        """Held while a statement claims, renews or gives up leases: what is held here is what is held there."""
        self._held: set[str] = set()
        self._lost: deque[str] = deque()
        self._renewed = self._trusts_expiry_from = math.inf  # from its first moment on
        self._next_try_at_parent = self._next_watch = 0.0
        self._parent_expires: float | None = None
        self._has_left = False
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="leases", daemon=True)

    def __enter__(self) -> "LeasedOwner":
        """Be there for the other coordinators to see."""
        sqlalchemy.event.listen(self._engine, "connect", self._limit_idle_transactions)
        self._engine.dispose()
        sqlalchemy.event.listen(self._storage.scoped_session, "before_commit", self._check_fence)
        with lock_decisions(self._engine, study_id=0):  # the table is all studies'
            self._table.create()
        self._claim(self._presence)
        self._renewed = time.monotonic()
        self._trusts_expiry_from = self._renewed + self._lease_s * _GRACE
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Let others have at once what is left."""
        self._leaving.set()
        self._thread.join()
        sqlalchemy.event.remove(self._storage.scoped_session, "before_commit", self._check_fence)
        with suppress(SQLAlchemyError):  # the database is away: the leases run out
            self._table.hand_over(self._held)
            self._table.release(self._presence)
            self._table.bury(lease.token for lease in self._list_others() if not lease.may_be_alive)

    def deciding(self, longest_s: float | None = None) -> AbstractContextManager[None]:
        """Wait for one's turn, and keep the others off."""
        return lock_decisions(self._engine, self._study_id, longest_s or self._max_idle_s)

    def inherit(self, running: Sequence[int]) -> list[int]:
        """Return none: they are claimed one by one, when there is a slot for them."""
        return []

    def look_around(self, survey: Callable[[], list[int]]) -> list[int]:
        """Look."""
        return survey()

    def claim_new(self, number: int) -> None:
        """Take a lease. Raises LeaseLostError: somebody found the trial without one, and took it for lost."""
        if not self._claim(name_trial(number)):
            raise LeaseLostError(number)

    def claim_orphan(self, running: Sequence[int]) -> int | None:
        """Take over a trial whose lease has run out, or was handed over, or whose coordinator was here and is gone.

        One without a lease lost its coordinator after it was asked for: both happens while `deciding`. After this
        coordinator could not reach the database for a while, others may have had the same trouble: what ran out
        meanwhile is left to them for one more lease's time.
        """
        if not running:
            return None
        leases = {lease.trial: lease for lease in self._table.read()}
        return next((number for number in running if self._take_over(name_trial(number), leases.get(number))), None)

    def release(self, number: int) -> None:
        """Remove a trial's lease."""
        with self._guard:
            self._table.release(name_trial(number))
            self._held.discard(name_trial(number))

    @contextmanager
    def writing(self, number: int) -> Iterator[None]:
        """Fence what this thread writes."""
        outer = getattr(self._fenced, "number", None)
        self._fenced.number = number
        try:
            yield
        finally:
            self._fenced.number = outer

    def take_lost(self) -> set[int]:
        """Return the trials whose leases the last renewals found to be another's."""
        lost = {self._lost.popleft() for _ in range(len(self._lost))}
        return {int(subject.removeprefix("trial-")) for subject in lost if subject.startswith("trial-")}

    def holds_parent(self) -> bool:
        """Look whether the study's own run is free, every now and then."""
        if PARENT not in self._held and time.monotonic() >= self._next_try_at_parent:
            self._next_try_at_parent = time.monotonic() + self.look_interval_s
            with suppress(SQLAlchemyError):  # it is tried again
                leases = {lease.subject: lease for lease in self._table.read()}
                self._take_over(PARENT, leases.get(PARENT))
        return PARENT in self._held

    def is_alone(self) -> bool:
        """Look for other coordinators that are alive."""
        return not any(lease.may_be_alive for lease in self._list_others())

    @property
    def is_new(self) -> bool:
        """Whether this coordinator came, or could reach the database again, too lately to tell who is gone."""
        return time.monotonic() < self._trusts_expiry_from

    def must_watch(self) -> bool:
        """Stay as the writer of the study's own run; else until that one has renewed its lease: it is alive, and stays.

        One that is killed leaves its leases behind for a while, and whoever goes home by them leaves nobody.
        """
        if self.holds_parent() or time.monotonic() < self._next_watch:
            return True
        self._next_watch = time.monotonic() + self.look_interval_s
        expires = next((lease.expires for lease in self._table.read() if lease.subject == PARENT), None)
        before, self._parent_expires = self._parent_expires, expires
        return before is None or expires is None or before == expires

    def leave(self) -> bool:
        """Give up its presence, and the study's own run if there are others: of two that leave, one comes later."""
        with self.deciding():
            self._has_left = True
            with self._guard:
                self._table.release(self._presence)
                self._held.discard(self._presence)
            if self.is_alone():
                return self._ends_parent()
            with self._guard:
                self._table.hand_over([PARENT])
                self._held.discard(PARENT)
            return False

    def hand_over(self, prepare: Callable[[], None]) -> None:
        """Do it while the coordinator itself is still there."""
        prepare()
        with self._guard:
            trials = self._held - {PARENT, self._presence}
            self._table.hand_over(trials)
            self._held -= trials

    def is_last(self) -> bool:
        """Say whether this coordinator is the only one and writes the study's own run."""
        return self.is_alone() and self._ends_parent()

    def _ends_parent(self) -> bool:
        """Take the study's own run, whose holder is not there any more: somebody must end it."""
        self._next_try_at_parent = 0.0
        return self.holds_parent() or self._claim(PARENT)

    @property
    def _trusts_expiry(self) -> bool:
        return not self.is_new and time.monotonic() - self._renewed <= self._lease_s * _BLIND

    def _list_others(self) -> list[Lease]:
        return [lease for lease in self._table.read() if lease.is_coordinator and lease.token != self._token]

    def _take_over(self, subject: str, lease: Lease | None) -> bool:
        """Claim what may be free; says whether it was."""
        dead = lease.token if lease is not None and is_gone(lease.place) else None
        if lease is None or not lease.is_live:
            return self._claim(subject, takes_expired=self._trusts_expiry, dead=dead)
        return dead is not None and self._claim(subject, dead=dead)

    def _claim(self, subject: str, *, takes_expired: bool = True, dead: str | None = None) -> bool:
        with self._guard:
            is_mine = self._table.claim(subject, takes_expired=takes_expired, dead=dead)
            if is_mine:
                self._held.add(subject)
                self._parent_expires = None  # there is work: who stays at its end is to be seen then
        return is_mine

    def _keep_renewing(self) -> None:
        while not self._leaving.wait(self._lease_s / _RENEWALS_PER_LEASE):
            with suppress(SQLAlchemyError):  # it is tried again; the main thread says so when it needs the database
                self._renew()

    def _renew(self) -> None:
        """Renew all, and give back what was claimed by a statement whose answer was lost with the database."""
        with self._guard:
            renewed = self._table.renew()
            self._lost.extend(self._held - renewed)
            self._held &= renewed
            if unknown := renewed - self._held:
                self._table.hand_over(unknown)
            is_missed = self._presence not in self._held and not self._has_left
            if is_missed and self._table.claim(self._presence):  # somebody buried it
                self._held.add(self._presence)
        now = time.monotonic()
        if now - self._renewed > self._lease_s * _BLIND:
            self._trusts_expiry_from = now + self._lease_s
        self._renewed = now

    def _limit_idle_transactions(self, connection: Any, _: Any) -> None:
        connection.execute(f"SET idle_in_transaction_session_timeout = {1000 * self._max_idle_s:.0f}")
        connection.commit()

    def _check_fence(self, session: Session) -> None:
        number = getattr(self._fenced, "number", None)
        if number is not None and not self._table.holds(session, name_trial(number)):
            raise LeaseLostError(number)
