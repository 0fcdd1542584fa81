"""A process of a training on several devices: a worker's session over a socket, for one run.

torchrun starts it for a worker's `Team` as `python -m cityopt.search.executors.rank SOCKET`. Messages are those of a
worker. The leader's go on to the coordinator; any rank tells of its failure, and then waits to be ended: were it to
leave, those that wait for it would fail too, for no reason of their own.
"""

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
from multiprocessing.connection import Connection

from cityopt.runtime import die_with_parent
from cityopt.search.executors.base import TRACEBACK_SIGNAL
from cityopt.search.executors.worker import Session


def main() -> None:
    """Train one run; return when it is complete or stopped, never when it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable(2)
    faulthandler.register(TRACEBACK_SIGNAL, 2)
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    door = socket.socket(socket.AF_UNIX)
    door.connect(sys.argv[1])
    session = Session(Connection(door.detach()), device="", in_team=True)
    if session.serve_one(rank=int(os.environ["RANK"]))["outcome"] == "failed":
        threading.Event().wait()


if __name__ == "__main__":
    main()
