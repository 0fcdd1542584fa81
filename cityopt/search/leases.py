"""Leases: who works on what in a study that several coordinators share, as a table in the study's database.

    cityopt_leases    study_id, subject, owner, place, token, begun_at, expires_at

A subject is a trial (`trial-7`), the study's own run (`parent`), or the presence of a coordinator. The holder, who has
the token, renews all its leases at once; whoever finds one expired may claim it, and at once that of a process that
was on the same machine and is gone. All times are of the database's clock, so that machines whose clocks differ agree.
A time in which the database itself was down expires nothing: after its start, holders have a whole lease's time to come
back. Its start is where it begins to recover from a crash, which may take long: what is claimed soon after it answers
again is therefore for the claimant to judge (`leased_owner.py`). What a holder hands over expired in the year one.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cityopt.search.processes import is_gone

PARENT = "parent"
_COORDINATOR = "coordinator-"
_LOCK_PATIENCE_MS = 2000
_PLACE = int.from_bytes(b"city", "big")
"""The first half of our advisory locks, which a database may have for other programs too."""
_CREATE = text("""
    CREATE TABLE IF NOT EXISTS cityopt_leases (
        study_id integer NOT NULL,
        subject text NOT NULL,
        owner text NOT NULL,
        place text NOT NULL,
        token text NOT NULL,
        begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        expires_at timestamptz NOT NULL,
        PRIMARY KEY (study_id, subject)
    )""")
_CLAIM = text("""
    INSERT INTO cityopt_leases AS held (study_id, subject, owner, place, token, expires_at)
    VALUES (:study, :subject, :owner, :place, :token, clock_timestamp() + :lease_s * interval '1 second')
    ON CONFLICT (study_id, subject) DO UPDATE SET
        owner = excluded.owner, place = excluded.place, token = excluded.token,
        begun_at = excluded.begun_at, expires_at = excluded.expires_at
    WHERE held.expires_at = '-infinity' OR held.token = :dead OR (
        :takes_expired
        AND held.expires_at < clock_timestamp()
        AND pg_postmaster_start_time() < clock_timestamp() - :lease_s * interval '1 second'
    )
    RETURNING subject""")
_DECIDE = text("""
    SELECT pg_advisory_xact_lock(:place, :study),
        set_config('idle_in_transaction_session_timeout', :longest, true)""")
_RENEW = text("""
    UPDATE cityopt_leases SET expires_at = clock_timestamp() + :lease_s * interval '1 second'
    WHERE study_id = :study AND token = :token RETURNING subject""")
_RELEASE = text("DELETE FROM cityopt_leases WHERE study_id = :study AND token = :token AND subject = :subject")
_BURY = text(
    "DELETE FROM cityopt_leases WHERE study_id = :study AND token = ANY(:tokens) AND subject LIKE :coordinators"
)
_HAND_OVER = text("""
    UPDATE cityopt_leases SET owner = 'nobody', token = '', expires_at = '-infinity'
    WHERE study_id = :study AND token = :token AND subject = ANY(:subjects)""")
_LIST = text("""
    SELECT subject, owner, place, token, expires_at > clock_timestamp() AS is_live,
        CAST(extract(epoch FROM begun_at) AS float) AS begun, CAST(extract(epoch FROM expires_at) AS float) AS expires
    FROM cityopt_leases WHERE study_id = :study ORDER BY subject""")
_CHECK = text("""
    SELECT 1 FROM cityopt_leases WHERE study_id = :study AND token = :token AND subject = :subject FOR SHARE""")


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as others see it; times are in seconds since 1970, of the database's clock."""

    subject: str
    owner: str
    place: str
    token: str
    is_live: bool
    begun: float
    expires: float

    @property
    def is_coordinator(self) -> bool:
        """Whether it says that a coordinator is at work on the study."""
        return self.subject.startswith(_COORDINATOR)

    @property
    def may_be_alive(self) -> bool:
        """Whether its holder gave a sign of life lately, and is not a process that was on this machine and is gone."""
        return self.is_live and not is_gone(self.place)

    @property
    def trial(self) -> int | None:
        """The number of the trial that it is about, None when it is about something else."""
        found = re.fullmatch(r"trial-(\d+)", self.subject)
        return int(found[1]) if found else None


class LeaseTable:
    """The leases of one study, for one holder. Every method raises SQLAlchemy's errors when the database is away."""

    def __init__(self, engine: Engine, study_id: int, *, owner: str, place: str, token: str, lease_s: float) -> None:
        self._engine = engine
        self._who: dict[str, Any] = {
            "study": study_id,
            "owner": owner,
            "place": place,
            "token": token,
            "lease_s": lease_s,
        }

    def create(self) -> None:
        """Make the table where it is missing, for one holder at a time (`lock_decisions`)."""
        with self._engine.begin() as connection:
            connection.execute(_CREATE)

    def claim(self, subject: str, *, takes_expired: bool = True, dead: str | None = None) -> bool:
        """Take a lease that nobody has, that was handed over, or (`takes_expired`) that ran out; says whether it did.

        `dead` is the token of a holder who is known to be gone.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_PATIENCE_MS}"))
                return bool(self._ask(connection, _CLAIM, subject=subject, takes_expired=takes_expired, dead=dead))
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == "55P03":  # its holder is writing, or was suspended while it was
                return False
            raise

    def renew(self) -> set[str]:
        """Renew all leases of this holder and return their subjects; what is not among them is somebody else's."""
        with self._engine.begin() as connection:
            return set(self._ask(connection, _RENEW))

    def release(self, subject: str) -> None:
        """Remove a lease that nobody needs any more."""
        with self._engine.begin() as connection:
            connection.execute(_RELEASE, {**self._who, "subject": subject})

    def bury(self, tokens: Iterable[str]) -> None:
        """Remove what says that coordinators are there which are gone; their trials' leases are for others to claim."""
        with self._engine.begin() as connection:
            connection.execute(_BURY, {**self._who, "tokens": list(tokens), "coordinators": f"{_COORDINATOR}%"})

    def hand_over(self, subjects: Iterable[str]) -> None:
        """Let others claim these at once."""
        with self._engine.begin() as connection:
            connection.execute(_HAND_OVER, {**self._who, "subjects": list(subjects)})

    def read(self) -> list[Lease]:
        """Return the leases of everybody."""
        with self._engine.begin() as connection:
            return [Lease(*row) for row in connection.execute(_LIST, self._who)]

    def holds(self, session: Session, subject: str) -> bool:
        """Say whether this holder has a lease, which nobody can claim before the session's transaction ends."""
        return bool(session.execute(_CHECK, {**self._who, "subject": subject}).first())

    def _ask(self, connection: Connection, statement: sqlalchemy.TextClause, **values: object) -> list[str]:
        return [str(row[0]) for row in connection.execute(statement, {**self._who, **values})]


@contextmanager
def lock_decisions(engine: Engine, study_id: int, longest_s: float = 60.0) -> Iterator[None]:
    """Let one process at a time decide what of a study is tried next: count its trials, ask for one, own it.

    One that is suspended keeps the others waiting for `longest_s` seconds at most.
    """
    with engine.begin() as connection:
        connection.execute(_DECIDE, {"place": _PLACE, "study": study_id, "longest": f"{1000 * longest_s:.0f}ms"})
        yield


def list_leases(connection: Connection, study: str) -> list[Lease]:
    """Return the leases of those who may be alive, on the study of this name."""
    if connection.execute(text("SELECT to_regclass('cityopt_leases')")).scalar() is None:
        return []
    found = connection.execute(text("SELECT study_id FROM studies WHERE study_name = :name"), {"name": study}).scalar()
    leases = [Lease(*row) for row in connection.execute(_LIST, {"study": found})]
    return [lease for lease in leases if lease.may_be_alive]


def name_trial(number: int) -> str:
    """Return the subject of a trial's lease."""
    return f"trial-{number}"


def name_coordinator(token: str) -> str:
    """Return the subject that says that a coordinator is at work."""
    return f"{_COORDINATOR}{token}"
