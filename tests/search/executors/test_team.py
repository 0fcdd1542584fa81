"""The worker's side of a training on several devices: with scripted ranks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from cityopt.search.executors.base import TRACEBACK_SIGNAL
from cityopt.search.executors.team import Team

SCRIPT = Path(__file__).with_name("scripted_team.py")


class Worker:
    """What a worker does for its team; remembers what it was told."""

    def __init__(self):
        self.epochs, self.progress = [], []

    def answer(self, epoch, metrics):
        self.epochs.append((epoch, metrics))
        return "stop" if epoch == 2 else "continue"


def play(story, worker=None):
    worker = worker or Worker()
    with Team(2, 1, [sys.executable, str(SCRIPT), story]) as team:
        return team.train({"type": "run", "run_id": "r"}, worker.answer, worker.progress.append)


@pytest.mark.parametrize("story", ["complete", "one_dies_when_it_is_done"])
def test_team_returns_what_its_leader_found_when_all_are_done(story):
    worker = Worker()
    ending = play(story, worker)
    assert ending == {"outcome": "complete", "result": {"answer": "continue", "job": "r"}}
    assert worker.epochs == [(1, {"ap": 0.5}), (2, {"ap": 0.6})] and worker.progress == [{"phase": "train"}]


@pytest.mark.parametrize(
    ("story", "outcome", "reason", "message"),
    [
        ("one_is_out_of_memory", "failed", "oom", "it was oom (rank 1 of 2)"),
        ("one_fails_for_a_reason_after_the_other_complained", "failed", "disk", "it was disk (rank 1 of 2)"),
        ("one_dies_and_the_other_complains", "lost", "crash", "rank 1 of 2 ended"),
        ("one_crashes", "failed", "crash", "it was crash (rank 1 of 2)"),
        ("none_begins", "lost", "crash", "torchrun ended with exit code 4"),
    ],
)
def test_team_ends_at_once_for_the_reason_that_tells_most_when_a_rank_fails(story, outcome, reason, message):
    begin = time.monotonic()
    assert play(story) == {"outcome": outcome, "reason": reason, "message": message}
    assert time.monotonic() - begin < 20  # the ranks themselves would wait for ever


def test_ranks_are_asked_where_they_are_when_the_worker_is():
    class Asking(Worker):
        """Is asked when both ranks have begun to hang."""

        def __init__(self):
            super().__init__()
            self.progress = self

        def append(self, _):
            self.num_heard = getattr(self, "num_heard", 0) + 1
            if self.num_heard == 2:
                os.kill(os.getpid(), TRACEBACK_SIGNAL)

    before = signal.getsignal(TRACEBACK_SIGNAL)
    assert play("both_hang", Asking()) == {"outcome": "failed", "reason": "oom", "message": "it was oom (rank 1 of 2)"}
    assert signal.getsignal(TRACEBACK_SIGNAL) == before


def test_rank_says_where_it_is_and_ends_when_its_worker_is_gone(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(1)
        command = [sys.executable, "-m", "cityopt.search.executors.rank", path]
        rank = subprocess.Popen(command, env={**os.environ, "RANK": "1"}, stderr=subprocess.PIPE, text=True)
        pipe = Connection(door.accept()[0].detach())
        assert json.loads(pipe.recv_bytes()) == {"type": "ready", "rank": 1, "pid": rank.pid}
        assert rank.poll() is None
        rank.send_signal(TRACEBACK_SIGNAL)
        assert rank.stderr is not None and "most recent call first" in rank.stderr.readline()
        pipe.close()
        rank.communicate(timeout=60)
        assert rank.returncode == 3
