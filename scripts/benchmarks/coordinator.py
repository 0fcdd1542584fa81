"""Benchmark: what the coordinator spends on a trial whose training costs nothing, beside Optuna's TPE alone.

Ours is everything between two trials of a real sweep: ask, MLflow run, run folder with its fsyncs, reports and
pruner, tell, and MLflow's mirror, whose thread must have sent all runs of a block before its clock stops. The peer
asks, suggests, reports and tells on the same kind of storage and nothing else. All of them take turns block by block,
a young study and an old one too: minutes later the same machine may be half as fast.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import optuna
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage

from benchmarks.measuring import Bound, Row
from benchmarks.null_executor import NullExecutor, invent_metrics
from cityopt.config import DEFAULT_ANCHORS, StudyConfig
from cityopt.search.coordinator import Coordinator
from cityopt.search.facts import StudyFacts
from cityopt.search.observer import Observer
from cityopt.search.parent_run import open_parent
from cityopt.search.space import sample_settings
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.study_file import load_study
from cityopt.tracking.mlflow_store import MlflowStore

EPOCHS = 5
WORKERS = (4, 8)
WARM_UP = 2
"""Trials of each turn that are not measured."""
SWEEP = Path(__file__).parents[2] / "sweeps" / "maskrcnn.yaml"


def bench_coordinator(*, quick: bool) -> list[Row]:
    """Measure ten blocks around the 100th and up to the 1,000th trial; quick: a short one at the 5th and the 10th."""
    begins, num_blocks, block = ({5: 3, 10: 8}, 1, 2) if quick else ({100: 50, 1000: 890}, 10, 10)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        studies = {number: Studies(Path(folder) / str(number)) for number in begins}
        for number, study in studies.items():
            study.fill(begins[number])
        for _ in range(num_blocks):
            for study in studies.values():
                study.measure(block)
    rows = []
    for number, study in studies.items():
        window = f"{begins[number]}-{begins[number] + num_blocks * (block + WARM_UP)}"
        unit = f"ms per trial of {EPOCHS} epochs, trials {window} in blocks of {block}; peer: Optuna's TPE alone"
        bound = Bound("ours", "<=", 150)
        rows.append(Row(f"coordinator-trial-{number}", median(study.ours), median(study.peer), unit, bound))
    unit = f"{rows[1].name} in ms; peer: {rows[0].name}, block by block in turns"
    rows.append(Row("coordinator-growth", rows[1].ours, rows[0].ours, unit, Bound("ratio", "<=", 1.3)))
    return rows + [_bench_workers(num_slots, quick=quick) for num_slots in WORKERS]


def _bench_workers(num_slots: int, *, quick: bool) -> Row:
    """Measure blocks of a young study with several workers, whose trials end at about the same moments."""
    num_blocks, block = (1, 2 * num_slots) if quick else (5, 5 * num_slots)
    with tempfile.TemporaryDirectory() as folder:
        study = Studies(Path(folder) / "study", num_slots)
        for _ in range(num_blocks):
            study.measure(block)
    unit = f"ms per trial of {EPOCHS} epochs on {num_slots} workers, in blocks of {block}; peer: Optuna's TPE alone"
    return Row(
        f"coordinator-workers-{num_slots}", median(study.ours), median(study.peer), unit, Bound("ours", "<=", 150)
    )


class Studies:
    """A study of ours and one of the peer's, which advance by turns.

    `ours` and `peer` hold milliseconds per trial, one number a block.
    """

    def __init__(self, folder: Path, num_slots: int = 1, name: str | None = None) -> None:
        folder.mkdir()
        self.folder, self._num_slots = folder, num_slots
        self.name = name or configure(1).name
        self.ours: list[float] = []
        self.peer: list[float] = []
        self._facts, config = invent_facts(), configure(1)
        self._space, self._metric = config.search.space, config.search.metric
        peer = folder / "peer"
        peer.mkdir()
        sampler = TPESampler(seed=0, n_startup_trials=config.search.sampler.startup_trials)
        self._peer_study = optuna.create_study(storage=open_storage(peer), sampler=sampler, direction="maximize")

    def fill(self, num_trials: int) -> None:
        """Bring both studies to a number of trials."""
        self.advance(num_trials)
        for _ in range(num_trials):
            self._run_peer_trial()

    def measure(self, block: int) -> None:
        """Advance both by a block of trials, against the clock.

        Ours begins in its second trial, when all is warm, at the same place of its course where the last one ends.
        """
        self.ours.append(self.advance(block + WARM_UP))
        begin = time.perf_counter()
        for _ in range(block):
            self._run_peer_trial()
        self.peer.append(1000 * (time.perf_counter() - begin) / block)
        for _ in range(WARM_UP):
            self._run_peer_trial()

    def advance(
        self, num_trials: int, num_slots: int | None = None, on_job: Callable[[], object] = lambda: None
    ) -> float:
        """Run a coordinator for some trials; return its milliseconds per trial, from when each slot has had one on.

        The clock stops when MLflow has all that came before. `on_job` is called before each trial's job.
        """
        slots, storage = num_slots or self._num_slots, open_storage(self.folder)
        config = configure(num_trials + self._count_trials(storage), self.name)
        study, facts = open_study(storage, config, self._facts)
        mlflow, moments = MlflowStore(self.folder), list[tuple[float, int]]()
        with open_parent(mlflow, config, facts, Observer()) as (parent, shipper):

            def before_job(num_begun: int, num_ended: int) -> None:
                on_job()
                if num_begun == num_trials - 1:
                    assert shipper.drain(60)
                if num_begun == num_trials - 1 or (num_ended >= slots and not moments):
                    moments.append((time.perf_counter(), num_ended))

            coordinator = Coordinator(
                store=self.folder,
                study=study,
                config=config,
                facts=facts,
                device="cpu",
                executor=NullExecutor(before_job, slots),
                mlflow=mlflow,
                shipper=shipper,
                observer=Observer(),
                parent=parent,
            )
            coordinator.run()
        (begin, num_before), (end, num_after) = moments[0], moments[-1]
        return 1000 * (end - begin) / max(num_after - num_before, 1)

    def _count_trials(self, storage: RDBStorage) -> int:
        if self.name not in optuna.get_all_study_names(storage):
            return 0
        study = optuna.load_study(study_name=self.name, storage=storage)
        return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))

    def _run_peer_trial(self) -> None:
        trial = self._peer_study.ask()
        settings = sample_settings(trial, self._space)
        values = [
            invent_metrics(float(settings["training.learning_rate"]), epoch)[self._metric]
            for epoch in range(1, EPOCHS + 1)
        ]
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        self._peer_study.tell(trial, values[-1])


def configure(num_trials: int, name: str | None = None) -> StudyConfig:
    """Return the study of `maskrcnn`, by its own or another name, with a number of short trials."""
    settings = [f"training.epochs={EPOCHS}", f"search.trials={num_trials}", "search.pruner.min_epochs=1"]
    return load_study(str(SWEEP), settings=settings, name=name)


def invent_facts() -> StudyFacts:
    """Return facts of a dataset that nobody opens."""
    table = DEFAULT_ANCHORS
    anchors = {"sizes": [*map(list, table.sizes)], "ratios": [*map(list, table.ratios)], "adopted": "default"}
    return StudyFacts("/nowhere", "0" * 16, "1" * 16, "2" * 16, 372, 125, 1, anchors)
