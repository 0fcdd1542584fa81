"""The tests' own PostgreSQL server keeps what it was told through a stop and a kill."""

import pytest
from postgres import PASSWORD, Cluster

pytestmark = pytest.mark.services


def test_server_keeps_committed_rows_when_it_is_stopped_and_killed(postgres: Cluster, database: str):
    psycopg = pytest.importorskip("psycopg")
    address = database.replace("+psycopg", "")
    with psycopg.connect(address) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    for end in (postgres.stop, postgres.kill):
        end()
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(address)
        postgres.start()
        with psycopg.connect(address) as connection:
            assert connection.execute("SELECT number FROM kept").fetchall() == [(7,)]


def test_server_refuses_a_wrong_password(database: str):
    psycopg = pytest.importorskip("psycopg")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(database.replace("+psycopg", "").replace(PASSWORD, "another"))
