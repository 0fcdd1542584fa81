"""A run's folder on another machine: what has changed is sent, whole files in an order that a cut leaves harmless."""

import os

import pytest

from cityopt.search.executors import mirror
from cityopt.search.executors.mirror import Inbox, Outbox, Piece
from cityopt.tracking.run_folder import begin_attempt, link_atomically, write_atomically


def send(outbox: Outbox, inbox: Inbox, limit: int = 2**20) -> list[str]:
    """Send all that has changed; return the names of the files in the order in which they became whole."""
    outbox.look()
    names = []
    while pieces := outbox.take(limit):
        inbox.put(pieces)
        names += [piece.name for piece in pieces if piece.is_last]
    return names


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "PIECE_BYTES", 1000)
    there, here = tmp_path / "there", tmp_path / "here"
    begin_attempt(there, "theirs")
    begin_attempt(here, "ours")
    return there, here


def write_epoch(folder, epoch, *, is_best):
    (folder / "artifacts" / "overlays").mkdir(parents=True, exist_ok=True)
    (folder / "artifacts" / "overlays" / "one.png").write_bytes(b"picture" * epoch)
    write_atomically(folder / "last.pt", os.urandom(2500))
    if is_best:
        link_atomically(folder / "last.pt", folder / "best.pt")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"epoch {epoch}\n")
    (folder / "log.txt").write_bytes(b"")


def list_contents(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "attempt.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("limit", [1, 10**9])
def test_other_folder_holds_the_same_after_each_epoch(folders, limit):
    there, here = folders
    outbox, inbox = Outbox(there), Inbox(here)
    write_epoch(there, 1, is_best=True)
    (there / "params.json").write_text("{}")
    order = ["artifacts/overlays/one.png", "params.json", "last.pt", "best.pt", "metrics.jsonl", "log.txt"]
    assert send(outbox, inbox, limit) == order
    assert list_contents(here) == list_contents(there) and len(list_contents(here)) == 6
    assert (here / "best.pt").samefile(here / "last.pt")  # sent once
    assert send(outbox, inbox, limit) == []

    write_epoch(there, 2, is_best=False)
    assert send(outbox, inbox, limit) == ["artifacts/overlays/one.png", "last.pt", "metrics.jsonl", "log.txt"]
    assert list_contents(here) == list_contents(there)
    assert (here / "attempt.json").read_bytes() != (there / "attempt.json").read_bytes()


def test_file_is_there_whole_or_as_before_when_a_transfer_is_cut_off(folders):
    there, here = folders
    outbox = Outbox(there)
    write_epoch(there, 1, is_best=True)
    send(outbox, Inbox(here))
    before = list_contents(here)
    write_epoch(there, 2, is_best=True)
    outbox.look()
    Inbox(here).put(outbox.take(1) + outbox.take(1))  # the picture, and the first piece of the checkpoint
    left = {name: content for name, content in list_contents(here).items() if not name.endswith(".partial")}
    assert left == before | {"artifacts/overlays/one.png": b"picture" * 2}

    another = Outbox(there)  # an attempt on another node begins anew
    send(another, Inbox(here))
    assert list_contents(here) == list_contents(there)


def test_training_gets_what_it_reads_and_only_news_come_back(folders):
    there, here = folders
    write_epoch(here, 1, is_best=True)
    assert send(Outbox(here, artifacts=False), Inbox(there)) == ["last.pt", "best.pt", "metrics.jsonl", "log.txt"]
    back = Outbox(there)
    back.skip()
    assert send(back, Inbox(here)) == []
    write_epoch(there, 2, is_best=False)
    assert "best.pt" not in send(back, Inbox(here))
    assert (here / "metrics.jsonl").read_text() == "epoch 1\nepoch 2\n"


@pytest.mark.parametrize(
    "name", ["../out", "artifacts/../../out", "artifacts", "/out", "status.json", "attempt.json", "", "artifacts/.."]
)
def test_nothing_is_put_where_a_training_does_not_write(tmp_path, name):
    inbox = Inbox(tmp_path / "run")
    for piece in (Piece(name, b"x"), Piece("best.pt", link=name or "..")):
        with pytest.raises(ValueError, match="a node may send"):
            inbox.put([piece])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
