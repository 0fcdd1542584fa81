"""What the studies' database misses while it is away is told later, in order, once, and not about others' trials."""

import pytest
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import IntegrityError, OperationalError

from cityopt.errors import StoreError
from cityopt.search import ledger as module
from cityopt.search.ledger import Ledger, is_away
from cityopt.search.ownership import LeaseLostError, SoleOwner


class _Answer(Exception):
    """What a driver raises."""

    __module__ = "psycopg.errors"

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("connection refused")
        self.sqlstate = sqlstate


def refuse(sqlstate: str | None = None) -> None:
    try:
        raise OperationalError("SELECT", {}, _Answer(sqlstate))
    except OperationalError as error:
        raise StorageInternalError("An exception is raised during the commit.") from error


class Server:
    """A database that is up or not."""

    def __init__(self) -> None:
        self.is_up, self.told = True, list[str]()

    def tell(self, what: str) -> None:
        if not self.is_up:
            refuse()
        self.told.append(what)


class Owner(SoleOwner):
    """Asks the server whether it is alone."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def is_alone(self) -> bool:
        self.server.tell("?")
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_what_waits_is_told_in_order_when_the_database_is_back(clock: list[float]):
    server, said = Server(), list[str]()
    ledger = Ledger(Owner(server), said.append)
    ledger.write(0, lambda: server.tell("a"))
    server.is_up = False
    ledger.write(0, lambda: server.tell("b"))
    ledger.write(1, lambda: server.tell("c"))
    server.is_up = True
    ledger.write(1, lambda: server.tell("d"))  # not before what came before it
    assert ledger.is_away and ledger.waiting == {0, 1} and server.told == ["a"]
    ledger.catch_up()
    assert server.told == ["a"]  # it was asked a moment ago
    clock[0] += 1.5
    ledger.catch_up()
    assert server.told == ["a", "?", "b", "c", "d"] and not ledger.is_away and ledger.waiting == set()
    assert len(said) == 2 and "connection refused" in said[0] and "answers again" in said[1]


def test_nothing_is_told_about_a_trial_that_was_lost_meanwhile(clock: list[float]):
    server = Server()
    ledger = Ledger(Owner(server), lambda _: None)
    server.is_up = False
    ledger.write(0, lambda: server.tell("a"))
    ledger.write(1, lambda: server.tell("b"))
    ledger.lose(0)
    assert ledger.take_lost() == {0} and ledger.take_lost() == set() and ledger.waiting == {1}
    server.is_up, clock[0] = True, clock[0] + 5
    ledger.catch_up()
    assert server.told == ["?", "b"]

    def find_out() -> None:
        raise LeaseLostError(1)

    ledger.write(1, find_out)
    assert ledger.take_lost() == {1}


def test_patience_ends_with_an_error_that_says_that_nothing_is_lost(clock: list[float]):
    server = Server()
    ledger = Ledger(Owner(server), lambda _: None, patience_s=60)
    server.is_up = False
    ledger.write(0, lambda: server.tell("a"))
    with pytest.raises(StoreError, match=r"for [67]\d s: connection refused. Nothing is lost"):
        for _ in range(100):
            clock[0] += 1
            ledger.catch_up()


@pytest.mark.parametrize(("state", "away"), [(None, True), ("57P03", True), ("08006", True), ("23505", False)])
def test_server_is_away_when_it_says_so_or_nothing(state: str | None, away: bool):
    with pytest.raises(StorageInternalError) as raised:
        refuse(state)
    assert is_away(raised.value) == away


def test_error_of_a_file_is_raised_at_once():
    error = OperationalError("SELECT", {}, Exception("database is locked"))
    assert not is_away(error) and not is_away(IntegrityError("INSERT", {}, _Answer("23505")))
    with pytest.raises(OperationalError):
        Ledger(SoleOwner(), lambda _: None).ask(lambda: (_ for _ in ()).throw(error), None)
