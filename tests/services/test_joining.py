"""A store that points to services: what is checked before, what is found afterwards, what is said when one is away."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from coordinator_process import FACTS, build_config
from postgres import PASSWORD, Cluster
from sqlalchemy import event, text
from sqlalchemy.engine import Engine

from cityopt.errors import StoreError
from cityopt.search.leased_owner import open_ownership
from cityopt.search.leases import LeaseTable, name_coordinator, name_trial
from cityopt.search.processes import name_process
from cityopt.search.requests import open_requests, stop_study
from cityopt.search.status import read_status
from cityopt.search.storage import hold_lock, join_services, open_database, open_storage
from cityopt.search.study import open_study
from cityopt.search.study_lock import is_swept, lock_study
from cityopt.services import SERVICES

pytestmark = pytest.mark.services


def test_store_points_to_the_database_that_answered(database: str, tmp_path: Path):
    store = join_services(tmp_path / "store", database, None)
    optuna.create_study(study_name="seen", storage=open_storage(store))
    assert optuna.get_all_study_names(open_database(database)) == ["seen"]
    assert [path.name for path in store.iterdir()] == [SERVICES]
    elsewhere = join_services(tmp_path / "another machine", database, None)
    assert optuna.get_all_study_names(open_storage(elsewhere)) == ["seen"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (PASSWORD, "wrong", "password authentication failed"),
        ("study_", "nowhere_", "does not exist"),
        ("@127.0.0.1", "@127.0.0.2", "refused"),
        ("@127.0.0.1", "@nowhere.invalid", "resolve host"),
    ],
)
def test_database_that_does_not_answer_is_not_remembered(database: str, tmp_path: Path, old: str, new: str, said: str):
    with pytest.raises(StoreError, match=said) as error:
        join_services(tmp_path / "store", database.replace(old, new), None)
    assert "Is PostgreSQL up" in str(error.value) and f":{PASSWORD}@" not in str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "store").exists()


def test_error_says_so_when_the_server_goes_away_later(postgres: Cluster, database: str, tmp_path: Path):
    store = join_services(tmp_path, database, None)
    postgres.stop()
    try:
        with pytest.raises(StoreError, match=r"must answer, but does not: .*refused"):
            open_storage(store)
    finally:
        postgres.start()
    assert optuna.get_all_study_names(open_storage(store)) == []


def test_tables_of_another_optuna_are_no_bug_of_ours(database: str):
    storage = open_database(database)
    with storage.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v0.9.0.a'"))
    with pytest.raises(StoreError, match="does not suit this version of Optuna"):
        open_database(database)


def test_tables_are_made_once_when_machines_come_at_the_same_time(database: str, tmp_path: Path):
    code = "import sys, cityopt.search.storage as s\ns.open_database(sys.argv[1])"
    several = [
        subprocess.Popen([sys.executable, "-c", code, database], stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[1] for process in several] == [""] * 4


def test_study_has_one_writer_on_all_machines(database: str, tmp_path: Path):
    here, there = (join_services(tmp_path / name, database, None) for name in ("here", "there"))
    with lock_study(here, "small"):
        with pytest.raises(StoreError, match="at work on another machine"), lock_study(there, "small"):
            pytest.fail("two writers")
        with lock_study(there, "other"):
            pass
    with lock_study(there, "small"):
        pass


def test_study_has_no_other_writer_beside_sweeps_whose_lock_went_with_a_restart_of_the_server(
    database: str, tmp_path: Path, postgres: Cluster
):
    store = join_services(tmp_path / "store", database, None)
    storage = open_storage(store)
    study = optuna.create_study(study_name="small", storage=storage)
    with open_ownership(storage, study, 600.0):  # a coordinator, without its lock
        assert is_swept(store, "small")
        with pytest.raises(StoreError, match="at work on another machine"), lock_study(store, "small", "promotion"):
            pytest.fail("a promotion beside a sweep")
    with lock_study(store, "small", "promotion"):
        pass


def test_promotion_of_another_store_hears_a_stop_over_few_connections(database: str, tmp_path: Path):
    here, there = (join_services(tmp_path / name, database, None) for name in ("here", "there"))
    study, _ = open_study(open_storage(here), build_config("small", 2, 1), FACTS)
    begun, connections = threading.Event(), list[object]()

    def promote() -> None:
        with lock_study(here, "small", "promotion"):
            requests = open_requests(here, study)
            begun.set()
            while not requests.hear_stop():
                time.sleep(0.1)
            time.sleep(2.0)

    thread = threading.Thread(target=promote)
    thread.start()
    assert begun.wait(30)

    def count(link: object, _: object) -> None:
        connections.append(link)

    event.listen(Engine, "connect", count)
    try:
        assert "The same command goes on" in stop_study("small", store=there)
    finally:
        event.remove(Engine, "connect", count)
        thread.join(30)
    assert len(connections) <= 5
    with pytest.raises(StoreError, match="nothing to stop"):
        stop_study("small", store=there)


def test_trial_runs_only_while_somebody_has_its_lease(database: str, tmp_path: Path):
    store = join_services(tmp_path / "store", database, None)
    storage = open_storage(store)
    study, _ = open_study(storage, build_config("small", 3, 1), FACTS)
    with open_ownership(storage, study, 600.0) as owner:
        owner.claim_new(study.ask().number)
        study.ask()  # and its coordinator is gone
        found = [(trial.state, trial.reason) for trial in read_status(store, "small").trials]
    assert found == [("running", None), ("waiting", "interrupted")]


def test_lease_that_ran_out_is_left_to_its_holder_for_a_while_by_one_who_has_just_come(
    database: str, tmp_path: Path, postgres: Cluster
):
    """The database may have recovered from a crash for longer than a lease, and answer since a moment ago."""
    lease_s = 4.0
    storage = open_storage(join_services(tmp_path / "store", database, None))
    study = optuna.create_study(study_name="small", storage=storage)
    far = LeaseTable(storage.engine, study._study_id, owner="it", place="elsewhere", token="t", lease_s=0.0)
    far.create()
    assert far.claim(name_trial(0)) and far.claim(name_trial(1))
    postgres.wait_until_up_for(lease_s)
    with open_ownership(storage, study, lease_s) as owner:
        begin = time.monotonic()
        assert owner.claim_orphan([0]) is None and owner.is_new
        while owner.claim_orphan([0]) is None:
            time.sleep(0.05)
        assert 0.2 * lease_s < time.monotonic() - begin < lease_s


def test_lease_that_ran_out_is_taken_at_once_when_its_process_is_gone_from_this_machine(database: str, tmp_path: Path):
    storage = open_storage(join_services(tmp_path / "store", database, None))
    study = optuna.create_study(study_name="small", storage=storage)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        place = name_process(process.pid)
        gone = LeaseTable(storage.engine, study._study_id, owner="it", place=place, token="t", lease_s=0.0)
        gone.create()
        assert gone.claim(name_trial(0))
        process.kill()
    with open_ownership(storage, study, 600.0) as owner:
        assert owner.is_new and owner.claim_orphan([0]) == 0


def test_sweep_is_over_when_its_process_is_gone_from_this_machine(database: str, tmp_path: Path):
    store = join_services(tmp_path / "store", database, None)
    storage = open_storage(store)
    study = optuna.create_study(study_name="small", storage=storage)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        place = name_process(process.pid)
        table = LeaseTable(storage.engine, study._study_id, owner="it", place=place, token="t", lease_s=600.0)
        table.create()
        assert table.claim(name_coordinator("t")) and is_swept(store, "small")
        process.kill()
        process.wait()
        assert not is_swept(store, "small")


def test_lock_ends_with_the_process_that_held_it(database: str):
    code = (
        "import sys, time, cityopt.search.storage as s\n"
        "with s.hold_lock(sys.argv[1], 'x'): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, database], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with hold_lock(database, "x", wait=False) as is_ours:
            assert not is_ours
        holder.kill()
    with hold_lock(database, "x") as is_ours:
        assert is_ours
