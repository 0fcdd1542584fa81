"""A slot on a node: where it trains, what it reports, and what it leaves behind."""

import fcntl
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import FACTS, make_config

from cityopt.data.roots import cache_folder, place_scenes
from cityopt.search.executors.base import EpochDone, Event, Job, JobEnded, WorkerReady
from cityopt.search.executors.mirror import Inbox, Piece
from cityopt.search.executors.node import NodeSlot, SlotPlan, claim_place, settle_run
from cityopt.search.executors.silence import HangRule
from cityopt.search.space import build_trial_config

_WORKER = """#!{python}
import json, pathlib, sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[3]))
def tell(**message):
    pipe.send_bytes(json.dumps(message).encode())
tell(type="ready", device="cpu")
while True:
    job = json.loads(pipe.recv_bytes())
    folder = pathlib.Path(job["folder"])
    (folder / "last.pt").write_bytes(b"one epoch more than " + (folder / "last.pt").read_bytes())
    (folder / "metrics.jsonl").write_text(job["config"]["cache"])
    tell(type="epoch", run_id=job["run_id"], epoch=1, metrics=dict())
    pipe.recv_bytes()  # the answer
    (folder / "log.txt").write_text("it failed")
    tell(type="ended", run_id=job["run_id"], outcome="failed", reason="nan", message="no number")
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlotPlan:
    """Slots whose node caches in `home/cityopt`, with a worker that speaks the protocol."""
    script = tmp_path / "stand-in"
    script.write_text(_WORKER.format(python=sys.executable))
    script.chmod(0o755)
    monkeypatch.setattr("cityopt.search.executors.local.sys.executable", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("socket.gethostname", lambda: "node-7")
    store = tmp_path / "store"
    store.mkdir()
    return SlotPlan("street", store, ".seen", "head", "cpu", 1, HangRule())


@pytest.fixture
def job(tmp_path: Path) -> Job:
    config = build_trial_config(make_config(), FACTS, 0, {}, device="cpu", cache=cache_folder(tmp_path / "store"))
    folder = tmp_path / "store" / "run"
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"a checkpoint")
    return Job("run", folder, "token", config)


def report(slot: NodeSlot, inbox: Inbox, kind: type[Event]) -> list[Event]:
    """Take reports until there is an event of a kind, as a coordinator does."""
    seen: list[Event] = []
    while not any(isinstance(event, kind) for event in seen):
        found = slot.next_report(5.0)
        inbox.put(found.pieces)
        assert not (found.pieces and found.events)
        seen += found.events
    return seen


def test_slot_trains_in_a_folder_of_its_own_when_it_does_not_see_the_store(plan, job, tmp_path):
    slot, inbox = NodeSlot(plan), Inbox(job.folder)
    assert slot.describe().host == "node-7" and not slot.describe().sees_store
    slot.start()
    (place,) = (tmp_path / "home" / "cityopt" / "slots").glob("[!.]*")
    slot.receive(job.token, [Piece("last.pt", b"what was sent")])
    slot.submit(job)
    events = report(slot, inbox, EpochDone)
    assert WorkerReady("cpu of node-7") in events and events[-1] == EpochDone("run", 1, {})
    assert (job.folder / "last.pt").read_bytes() == b"one epoch more than what was sent"
    assert (job.folder / "metrics.jsonl").read_text() == str(tmp_path / "home" / "cityopt")  # the cache
    assert not (job.folder / "attempt.json").exists() and (place / "token").is_dir()
    slot.answer("run", "continue")
    end = report(slot, inbox, JobEnded)[-1]
    assert end == JobEnded("run", "failed", "nan", "on node-7: no number")
    assert (job.folder / "log.txt").read_text() == "it failed"
    assert not (place / "token").exists()
    slot.close()
    assert not place.exists()


@pytest.mark.parametrize("host", ["head", "node-7"])
def test_slot_trains_in_the_store_when_it_sees_it_and_decodes_there_only_at_home(plan, job, tmp_path, host):
    (plan.store / plan.probe).touch()
    slot = NodeSlot(replace(plan, host=host))
    assert slot.describe().sees_store
    slot.start()
    slot.submit(job)
    while not (found := slot.next_report(5.0)).events or not isinstance(found.events[-1], EpochDone):
        assert not found.pieces
    slot.close()
    assert (job.folder / "last.pt").read_bytes() == b"one epoch more than a checkpoint"
    cache = cache_folder(plan.store) if host == "node-7" else tmp_path / "home" / "cityopt"
    assert (job.folder / "metrics.jsonl").read_text() == str(cache)


def test_nothing_is_reported_of_a_run_that_was_abandoned(plan, job):
    slot, inbox = NodeSlot(plan), Inbox(job.folder)
    slot.start()
    slot.receive(job.token, [Piece("last.pt", b"")])
    slot.submit(job)
    while not slot.next_report(5.0).pieces:  # the epoch's event is held back until the last piece is taken
        pass
    slot.abandon("run")
    again = replace(job, run_id="next", token="next")
    slot.receive(again.token, [Piece("last.pt", b"")])
    slot.submit(again)
    seen = report(slot, inbox, EpochDone)
    assert {getattr(event, "run_id", "next") for event in seen} == {"next"}
    slot.close()


def test_run_finds_its_data_where_the_node_has_it(job, tmp_path, monkeypatch):
    config, mine = job.config, tmp_path / "mine"
    monkeypatch.setenv("CITYSCAPES_DATASET", "/here")

    def settle(root: Path) -> str | None:
        data = config.data.model_copy(update={"root": str(root)})
        settled = settle_run(config.model_copy(update={"data": data}), mine)
        assert settled.cache == str(mine) and settled.data.model_copy(update={"root": str(root)}) == data
        return settled.data.root

    assert settle(place_scenes(config.data.synthetic, Path(config.cache))) == str(
        place_scenes(config.data.synthetic, mine)
    )
    assert settle(tmp_path) == str(tmp_path)
    assert settle(tmp_path / "not here") == "/here"
    monkeypatch.delenv("CITYSCAPES_DATASET")
    assert settle(tmp_path / "not here") == str(tmp_path / "not here")


def test_places_of_slots_that_are_gone_are_removed_and_no_others(tmp_path):
    gone, lock = claim_place(tmp_path / "slots")
    (gone / "token").mkdir()
    lock.close()  # as the end of a process does
    held, its_lock = claim_place(tmp_path / "slots")
    another, other_lock = claim_place(tmp_path / "slots")
    assert not gone.exists() and held.is_dir() and another.is_dir() and held != another
    its_lock.close()
    other_lock.close()


def test_place_that_another_slot_is_making_is_left_alone(tmp_path, monkeypatch):
    """The other slot begins at the worst moment: just before this one has its place's lock."""
    folder, others, begun = tmp_path / "slots", [], []

    def begin_another(file, operation):
        if file.name.endswith("/lock") and operation == fcntl.LOCK_EX and not others:
            others.append(threading.Thread(target=lambda: begun.append(claim_place(folder))))
            others[0].start()
            others[0].join(0.2)
        flock(file, operation)

    flock = fcntl.flock
    monkeypatch.setattr("fcntl.flock", begin_another)
    place, lock = claim_place(folder)
    others[0].join(10)
    ((other, other_lock),) = begun
    assert place.is_dir() and other.is_dir() and place != other
    lock.close()
    other_lock.close()
