"""Ranks without torch: `python scripted_team.py STORY SOCKET` starts two processes that say what a story says.

Stands for torchrun and its ranks; each is a child of this process, which ends when they have.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from multiprocessing.connection import Connection


class Rank:
    def __init__(self, rank: int, path: str) -> None:
        door = socket.socket(socket.AF_UNIX)
        door.connect(path)
        self.pipe = Connection(door.detach())
        self.say("ready", rank=rank, pid=os.getpid())
        self.job = self.hear()

    def say(self, kind: str, **content: object) -> None:
        self.pipe.send_bytes(json.dumps({"type": kind, **content}).encode())

    def hear(self) -> dict:
        return json.loads(self.pipe.recv_bytes())

    def fail(self, reason: str) -> None:
        self.say("ended", run_id="r", outcome="failed", reason=reason, message=f"it was {reason}")
        self.wait()

    def wait(self) -> None:
        """Wait, as in a collective that never ends; end with the worker, as a real rank does."""
        with contextlib.suppress(EOFError):
            self.hear()
        os._exit(3)


def complete(rank: int, me: Rank) -> None:
    if rank == 0:
        me.say("progress", progress={"phase": "train"})
        me.say("epoch", epoch=1, metrics={"ap": 0.5})
        answer = me.hear()["answer"]
        me.say("epoch", epoch=2, metrics={"ap": 0.6})
        me.hear()
        me.say("ended", run_id="r", outcome="complete", result={"answer": answer, "job": me.job["run_id"]})
    else:
        me.say("ended", run_id="r", outcome="complete", result={"checkpoint": None})


def one_is_out_of_memory(rank: int, me: Rank) -> None:
    if rank == 1:
        me.fail("oom")
    me.wait()


def one_dies_and_the_other_complains(rank: int, me: Rank) -> None:
    if rank == 0:
        me.fail("crash")
    time.sleep(0.2)
    os._exit(1)


def one_fails_for_a_reason_after_the_other_complained(rank: int, me: Rank) -> None:
    time.sleep(0.2 * rank)
    me.fail("disk" if rank == 1 else "crash")


def one_crashes(rank: int, me: Rank) -> None:
    if rank == 1:
        me.fail("crash")
    me.wait()


def one_dies_when_it_is_done(rank: int, me: Rank) -> None:
    if rank == 0:
        time.sleep(0.2)
    complete(rank, me)


def both_hang(rank: int, me: Rank) -> None:
    """As real ranks write where they are; only the last to be asked tells of it."""
    signal.signal(signal.SIGUSR1, lambda *_: me.fail("oom") if rank == 1 else None)
    me.say("progress", progress={"phase": "train"})
    me.wait()


def main(story: str, path: str) -> None:
    if story == "none_begins":
        sys.exit(4)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            globals()[story](rank, Rank(rank, path))
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
