"""A worker that trains nothing: it speaks the real worker's protocol, and its scores follow from a run's settings.

Run as the real one: `python worker.py -m cityopt.search.executors.worker FD DEVICE`. An epoch takes a twentieth of a
second; its record and its checkpoint are written as a training writes them.
"""

import math
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cityopt.runtime import die_with_parent
from cityopt.search.executors import worker
from cityopt.tracking.run_folder import LAST, RunFolder, write_atomically

METRIC = "val/coco/segm/ap"
EPOCH_S = 0.05


class Session(worker.Session):
    """The real worker's side of the pipe, around a training of sleep."""

    def serve(self) -> None:
        """Run job after job; there is nothing to warm up."""
        threading.Thread(target=self._read, daemon=True).start()
        self._send({"type": "ready", "device": "cpu"})
        while True:
            self._run(self._jobs.get())

    def _train(self, run_id: str, folder: Path, message: dict[str, Any]) -> dict[str, Any]:
        tracker, training = RunFolder(folder, message["token"]), message["config"]["training"]
        done = {record.step: record.metrics for record in tracker.read_records()}
        for epoch in range(max(len(done), 1), training["epochs"] + 1):
            if epoch not in done:
                time.sleep(EPOCH_S)
                done[epoch] = {METRIC: judge(training["learning_rate"], epoch), "system/epoch_s": EPOCH_S}
                write_atomically(folder / LAST, str(epoch).encode())
                tracker.log_metrics(done[epoch], epoch)
            self._send({"type": "epoch", "run_id": run_id, "epoch": epoch, "metrics": done[epoch]})
            if self._answers.get() == "stop":
                return {"outcome": "stopped", "result": {"seconds": epoch * EPOCH_S}}
        return {"outcome": "complete", "result": {"seconds": training["epochs"] * EPOCH_S}}


def judge(learning_rate: float, epoch: int) -> float:
    """Return a score that is best near a learning rate of .01 and grows with the epochs."""
    return math.exp(-abs(math.log10(learning_rate) + 2)) * (1 - 0.5**epoch)


if __name__ == "__main__":
    die_with_parent()
    worker.signal.signal(worker.signal.SIGINT, worker.signal.SIG_IGN)
    worker._measure_left_gib = lambda device: 0.0
    Session(Connection(int(sys.argv[3])), device=sys.argv[4]).serve()
