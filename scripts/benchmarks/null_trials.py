"""Benchmark: trials whose training costs nothing, beside what others spend on one.

Ours is a whole study of null trials on eight null workers (`null_executor`): ask, MLflow run, run folder with its
fsyncs, reports and pruner, tell, and MLflow's mirror, until it has everything. The peers are sampled on a few trials of
as many reports, and are spared much of it: a process per trial, as Ultralytics' tuner starts one, does nothing
but import torch and report; Ray Tune draws at random; plain `study.optimize` logs to MLflow and has no run folder.
Start-up is left out on all sides: each has run some trials before its clock starts.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import optuna
from optuna.samplers import TPESampler

from benchmarks.coordinator import EPOCHS, Studies, configure
from benchmarks.measuring import Bound, Row
from benchmarks.null_executor import invent_metrics
from cityopt.search.space import sample_settings
from cityopt.search.storage import open_storage
from cityopt.tracking.mlflow_store import MlflowStore

AT_ONCE = 8


def bench_trials(*, quick: bool) -> list[Row]:
    """Measure 1,000 of our trials and 30 of each peer's; quick: some of ours, two of theirs, and no Ray."""
    num_ours, num_few, num_peer = (16, 8, 2) if quick else (1000, 60, 30)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        study = Studies(Path(place) / "ours")
        costs = {slots: study.advance(num_few, slots) for slots in (1, 4)}
        costs[AT_ONCE] = study.advance(num_ours, AT_ONCE)
        check_whole(study.folder, num_ours + 2 * num_few)
        ours = 1000 / costs[AT_ONCE]
        plain = time_optimize(study.folder, num_peer)
        rows = [
            Row(
                f"trials-workers-{slots}",
                cost,
                1000 / plain,
                f"ms per trial of {EPOCHS} reports on {slots} null workers; peer: study.optimize with MLflow calls",
                Bound("ours", "<=", 150),
            )
            for slots, cost in costs.items()
        ]
        protocol = f"trials a second of {EPOCHS} reports, {num_ours} of ours on {AT_ONCE} null workers; peer: "
        module = "json" if quick else "torch"
        alone = time_processes(module, num_peer)
        rows += [
            Row("trials-optimize", ours, plain, f"{protocol}study.optimize with MLflow calls", None),
            Row(
                "trials-subprocess",
                ours,
                alone,
                f"{protocol}a process per trial that imports {module}, {AT_ONCE} at once",
                Bound("ratio", ">=", 10),
            ),
        ]
        if quick or find_spec("ray") is None:
            print("trials-ray-tune is left out: it needs `uv run --with 'ray[tune]' scripts/bench trials`")
            return rows
        tuned = time_ray_tune(Path(place) / "ray", num_peer)
        return [
            *rows,
            Row("trials-ray-tune", ours, tuned, f"{protocol}Ray Tune, {AT_ONCE} at once", Bound("ratio", ">=", 20)),
        ]


def check_whole(folder: Path, num_trials: int) -> None:
    """Check that each number was given once, that every trial has ended, and that MLflow has one ended run of each."""
    name = configure(1).name
    trials = optuna.load_study(study_name=name, storage=open_storage(folder)).get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(num_trials))
    assert all(trial.state.is_finished() for trial in trials)
    mlflow = MlflowStore(folder)
    ended = mlflow._search(name, "attributes.status != 'RUNNING' AND tags.`cityopt.kind` = 'trial'", limit=1000)
    assert len(ended) == num_trials


def time_processes(module: str, num_trials: int) -> float:
    """Return trials a second where each is a process that imports a module and reports, several at once."""
    code = f"import {module}\nfor epoch in range({EPOCHS}): print(epoch, flush=True)"

    def run(count: int) -> None:
        waiting, running = count, list[subprocess.Popen[bytes]]()
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                running.append(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL))
                waiting -= 1
            running = [process for process in running if process.poll() is None]
            time.sleep(0.002)

    run(1)
    return num_trials / _time(lambda: run(num_trials))


def time_optimize(folder: Path, num_trials: int) -> float:
    """Return trials a second of plain Optuna, which logs to MLflow from the objective; MLflow's database is there."""
    import mlflow

    config = configure(1)
    space, metric = config.search.space, config.search.metric
    mlflow.set_tracking_uri(MlflowStore(folder).tracking_uri)
    mlflow.set_experiment("plain")
    sampler = TPESampler(seed=0, n_startup_trials=config.search.sampler.startup_trials)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'plain.db'}", sampler=sampler, direction="maximize")

    def objective(trial: optuna.Trial) -> float:
        settings = sample_settings(trial, space)
        value = 0.0
        with mlflow.start_run(run_name=f"trial-{trial.number}"):
            mlflow.log_params(settings)
            for epoch in range(1, EPOCHS + 1):
                metrics = invent_metrics(float(settings["training.learning_rate"]), epoch)
                mlflow.log_metrics(metrics, step=epoch)
                value = metrics[metric]
                trial.report(value, epoch)
        return value

    study.optimize(objective, n_trials=1)
    return num_trials / _time(lambda: study.optimize(objective, n_trials=num_trials))


def time_ray_tune(folder: Path, num_trials: int) -> float:
    """Return trials a second of Ray Tune, several at once on one machine, after some that do not count."""
    # Or else Ray, started below `uv run`, starts each worker with `uv run` too, and waits for ever without a network.
    os.environ |= {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray import tune

    def train(config: dict[str, float]) -> None:
        for epoch in range(EPOCHS):
            tune.report({"score": config["rate"] * epoch})

    def run(count: int) -> None:
        tuner = tune.Tuner(
            train,
            param_space={"rate": tune.loguniform(1e-5, 1e-1)},
            tune_config=tune.TuneConfig(num_samples=count, max_concurrent_trials=AT_ONCE),
            run_config=tune.RunConfig(storage_path=str(folder), verbose=0),
        )
        assert tuner.fit().num_errors == 0

    ray.init(num_cpus=AT_ONCE, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        run(AT_ONCE)
        return num_trials / _time(lambda: run(num_trials))
    finally:
        ray.shutdown()


def _time(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin
