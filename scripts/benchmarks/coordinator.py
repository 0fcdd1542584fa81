"""Benchmark: what the coordinator spends on a trial whose training costs nothing, beside Optuna's TPE alone.

Ours is everything between two trials of a real sweep: ask, MLflow run, run folder with its fsyncs, reports and
pruner, tell, and MLflow's mirror, whose thread must have sent all runs of a block before its clock stops. The peer
asks, suggests, reports and tells on the same kind of storage and nothing else. Both take turns, block by block.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import optuna
from optuna.samplers import TPESampler

from benchmarks.measuring import Bound, Row
from benchmarks.null_executor import NullExecutor, invent_metrics
from cityopt.config import DEFAULT_ANCHORS
from cityopt.search.coordinator import Coordinator
from cityopt.search.facts import StudyFacts
from cityopt.search.observer import Observer
from cityopt.search.space import sample_settings
from cityopt.search.study import open_storage, open_study
from cityopt.search.sweep import open_parent
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_shipper import Shipper
from cityopt.tracking.mlflow_store import MlflowStore

EPOCHS = 5
BLOCK = 10
"""Trials per turn."""
SWEEP = Path(__file__).parents[2] / "sweeps" / "maskrcnn.yaml"


def bench_coordinator(*, quick: bool) -> list[Row]:
    """Measure trials around the 100th and the 1,000th; quick: around the 20th and the 30th."""
    early, late, window = (20, 30, 10) if quick else (100, 1000, 50)
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(Path(folder), late)
        turns.run()
    rows = []
    for number, low, high in ((early, early - window, early + window), (late, late - 2 * window, late)):
        ours, peer = (turns.time_per_trial(blocks, low, high) for blocks in (turns.ours, turns.peer))
        unit = f"ms per trial of {EPOCHS} epochs, median over trials {low}-{high} in tens; peer: Optuna's TPE alone"
        rows.append(Row(f"coordinator-trial-{number}", ours, peer, unit, Bound("ours", "<=", 150)))
    unit = f"ms per trial at trial {late}; peer: ours at trial {early}"
    rows.append(Row("coordinator-growth", rows[1].ours, rows[0].ours, unit, Bound("ratio", "<=", 1.3)))
    return rows


class Turns:
    """A sweep of ours and a study of the peer's, advancing by turns."""

    def __init__(self, folder: Path, num_trials: int) -> None:
        settings = [f"training.epochs={EPOCHS}", f"search.trials={num_trials}", "search.pruner.min_epochs=1"]
        self.config = load_study(str(SWEEP), settings=settings)
        self.folder = folder
        self.ours: list[float] = []
        """Seconds of each block."""
        self.peer: list[float] = []
        self._begin = 0.0
        self._shipper: Shipper | None = None
        self._peer_study = self._open_peer()

    def run(self) -> None:
        """Run both to the end."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        facts = invent_facts()
        study, facts = open_study(open_storage(self.folder), self.config, facts)
        mlflow = MlflowStore(self.folder)
        executor = NullExecutor(self._take_turns)
        with open_parent(mlflow, self.config, facts, Observer()) as (parent, self._shipper):
            coordinator = Coordinator(
                store=self.folder,
                study=study,
                config=self.config,
                facts=facts,
                device="cpu",
                executor=executor,
                mlflow=mlflow,
                shipper=self._shipper,
                observer=Observer(),
            )
            coordinator.run(parent)
            self._take_turns(executor.num_ended)

    def time_per_trial(self, blocks: list[float], low: int, high: int) -> float:
        """Return the median milliseconds per trial over the blocks from trial `low` to trial `high`."""
        return 1000 * median(blocks[low // BLOCK : high // BLOCK]) / BLOCK

    def _take_turns(self, num_ended: int) -> None:
        """At the end of a block, wait until MLflow has it, stop the clock, and let the peer run its block."""
        if num_ended % BLOCK:
            return
        if num_ended:
            assert self._shipper is not None and self._shipper.drain(60)
            self.ours.append(time.perf_counter() - self._begin)
            begin = time.perf_counter()
            for _ in range(BLOCK):
                self._run_peer_trial()
            self.peer.append(time.perf_counter() - begin)
        self._begin = time.perf_counter()

    def _open_peer(self) -> optuna.Study:
        folder = self.folder / "peer"
        folder.mkdir()
        sampler = TPESampler(seed=0, n_startup_trials=self.config.search.sampler.startup_trials)
        return optuna.create_study(storage=open_storage(folder), sampler=sampler, direction="maximize")

    def _run_peer_trial(self) -> None:
        trial = self._peer_study.ask()
        settings = sample_settings(trial, self.config.search.space)
        values = [
            invent_metrics(float(settings["training.learning_rate"]), epoch)[self.config.search.metric]
            for epoch in range(1, EPOCHS + 1)
        ]
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        self._peer_study.tell(trial, values[-1])


def invent_facts() -> StudyFacts:
    """Return facts of a dataset that nobody opens."""
    table = DEFAULT_ANCHORS
    anchors = {"sizes": [*map(list, table.sizes)], "ratios": [*map(list, table.ratios)], "adopted": "default"}
    return StudyFacts("/nowhere", "0" * 16, "1" * 16, "2" * 16, 372, 125, 1, anchors)
