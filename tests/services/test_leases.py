"""Leases in a real PostgreSQL, whose clock is another than this machine's: claims at once, expiry, theft, restarts."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy
from postgres import Cluster
from sqlalchemy.orm import Session

from cityopt.search.leases import PARENT, LeaseTable, name_coordinator, name_trial

pytestmark = pytest.mark.services
SHORT_S, LONG_S = 0.4, 600.0
"""Who claims what has expired has short leases: it waits for so long after the server's start, too."""
MakeTable = Callable[..., LeaseTable]


@pytest.fixture
def engine(database: str) -> Iterator[sqlalchemy.Engine]:
    engine = sqlalchemy.create_engine(database, pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def holder(engine: sqlalchemy.Engine, postgres: Cluster) -> MakeTable:
    """Return a function that makes a holder of leases, by its name."""

    def make(name: str, lease_s: float = LONG_S, study: int = 1) -> LeaseTable:
        table = LeaseTable(engine, study, owner=name, place="here", token=name, lease_s=lease_s)
        table.create()
        return table

    postgres.wait_until_up_for(2 * SHORT_S)
    return make


def expire(engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        moment = "clock_timestamp() - interval '1 ms'"
        connection.execute(sqlalchemy.text(f"UPDATE cityopt_leases SET expires_at = {moment}"))


def owners(table: LeaseTable) -> dict[str, str]:
    return {lease.subject: lease.owner for lease in table.read()}


def test_one_of_many_gets_a_lease_when_all_claim_it_at_once(holder: MakeTable):
    tables = [holder(f"h{number}") for number in range(8)]
    start = threading.Barrier(len(tables))
    won: list[tuple[int, int]] = []

    def claim(number: int) -> None:
        for trial in range(20):
            start.wait()
            if tables[number].claim(name_trial(trial)):
                won.append((trial, number))

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(len(tables))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(trial for trial, _ in won) == list(range(20))
    assert owners(tables[0]) == {name_trial(trial): f"h{number}" for trial, number in won}


def test_one_of_many_gets_an_expired_lease_when_all_claim_it_at_once(holder: MakeTable):
    dead, tables = holder("dead", SHORT_S), [holder(f"h{number}", SHORT_S) for number in range(8)]
    assert all(dead.claim(name_trial(trial)) for trial in range(10))
    time.sleep(2 * SHORT_S)
    with_token = threading.Barrier(len(tables))
    won: list[int] = []

    def claim(table: LeaseTable) -> None:
        with_token.wait()
        won.extend(trial for trial in range(10) if table.claim(name_trial(trial)))

    threads = [threading.Thread(target=claim, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(10))


def test_lease_runs_out_by_the_database_clock_unless_it_is_renewed(holder: MakeTable):
    one, two = holder("one", SHORT_S), holder("two", SHORT_S)
    assert one.claim("trial-3") and not two.claim("trial-3")
    for _ in range(4):
        time.sleep(SHORT_S / 2)
        assert one.renew() == {"trial-3"} and not two.claim("trial-3")
    time.sleep(1.5 * SHORT_S)
    assert not two.claim("trial-3", takes_expired=False)
    assert two.claim("trial-3") and owners(two) == {"trial-3": "two"}


def test_renewal_finds_out_when_a_lease_was_taken(holder: MakeTable, engine: sqlalchemy.Engine):
    one, two = holder("one"), holder("two", SHORT_S)
    assert one.claim("trial-0") and one.claim("trial-1")
    expire(engine)
    assert one.renew() == {"trial-0", "trial-1"}  # nobody took them meanwhile
    expire(engine)
    assert two.claim("trial-1")
    assert one.renew() == {"trial-0"} and owners(one) == {"trial-0": "one", "trial-1": "two"}
    one.release("trial-1")
    one.hand_over(["trial-1"])
    assert two.renew() == {"trial-1"}  # nobody gives away what is another's


def test_lease_of_a_holder_known_to_be_dead_is_free_at_once(holder: MakeTable):
    one, two, three = holder("one"), holder("two"), holder("three")
    assert one.claim("trial-0") and one.claim("trial-1")
    assert two.claim("trial-0", dead="one") and not three.claim("trial-0", dead="one")
    assert not two.claim("trial-1", dead="three") and owners(one) == {"trial-0": "two", "trial-1": "one"}


def test_leases_are_free_at_once_when_their_holder_hands_them_over(holder: MakeTable):
    one, two, other = holder("one"), holder("two"), holder("one", study=2)
    assert one.claim("trial-0") and one.claim(PARENT) and other.claim("trial-0")
    one.hand_over(["trial-0"])
    assert two.claim("trial-0", takes_expired=False) and not two.claim(PARENT)
    assert one.renew() == {PARENT} and other.renew() == {"trial-0"}
    one.release(PARENT)
    assert owners(two) == {"trial-0": "two"}


def test_expired_leases_are_kept_for_their_holders_when_the_database_was_down(
    holder: MakeTable, engine: sqlalchemy.Engine, postgres: Cluster
):
    one, two = holder("one", 3.0), holder("two", 3.0)
    assert one.claim("trial-0")
    postgres.stop()
    expired = time.monotonic() + 3.0
    time.sleep(3.2)
    postgres.start()
    assert time.monotonic() > expired and not two.read()[0].is_live
    assert not two.claim("trial-0")
    assert one.renew() == {"trial-0"}
    postgres.wait_until_up_for(3.0)
    assert not two.claim("trial-0")
    time.sleep(3.2)
    assert two.claim("trial-0")


def test_lease_cannot_be_taken_while_its_holder_writes(holder: MakeTable, engine: sqlalchemy.Engine):
    one, two = holder("one"), holder("two", SHORT_S)
    assert one.claim("trial-0")
    expire(engine)
    with Session(engine) as session:
        assert one.holds(session, "trial-0") and not two.holds(session, "trial-0")
        begin = time.monotonic()
        assert not two.claim("trial-0")
        assert time.monotonic() - begin < 10
    assert two.claim("trial-0")
    with Session(engine) as session:
        assert not one.holds(session, "trial-0")


def test_leases_say_what_they_are_about(holder: MakeTable):
    one = holder("one")
    for subject in (name_trial(12), PARENT, name_coordinator("one")):
        assert one.claim(subject)
    assert [(lease.trial, lease.is_coordinator) for lease in one.read()] == [(None, True), (None, False), (12, False)]
