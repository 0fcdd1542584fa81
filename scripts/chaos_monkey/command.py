"""`scripts/chaos`: kill a sweep again and again, let it end, and compare it with one that nobody disturbed."""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import optuna
from postgres import Cluster, run_cluster

from chaos_monkey.lives import Lives, await_end, choose_kill, list_workers, no_orphans, read_trials
from chaos_monkey.verdict import check_finished, check_store, list_running, summarize
from cityopt.tracking.mlflow_store import MlflowStore

_MORE_TRIALS = 4
_LONGEST_S = 1.5
"""Of the random delay before a kill: four times in five from when a life has begun its trials, else from its start."""
_GOOD = (0, 130)
"""Exit codes of a sweep at its end, and of one that was stopped."""


def main() -> int:
    """Run the command; a violation is an AssertionError that says what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="cityopt-chaos-") as folder,
        run_cluster() if options.storage == "postgresql" else nullcontext() as server,
    ):
        database = server.create_database() if server else None
        disturbed = Lives(Path(folder) / "disturbed", workers=options.workers, database=database)
        trials, kills = disturb(disturbed, options.kills, random.Random(options.seed), server)
        check_store(disturbed.store, trials)
        assert not list_running(disturbed.store)
        if options.workers == 1:
            calm = Lives(Path(folder) / "calm", workers=1)
            assert await_end(calm.begin(trials)) == 0
            assert summarize(disturbed.store) == summarize(calm.store), "the study is another one than without kills"
    told = ", ".join(f"{count} x {whom} {how}" for (whom, how), count in sorted(kills.items()))
    print(
        f"{trials} trials, {sum(kills.values())} kills ({told}) in {time.monotonic() - begin:.0f} s: as if undisturbed"
    )
    return 0


def disturb(
    lives: Lives, num_kills: int, rng: random.Random, server: Cluster | None
) -> tuple[int, Counter[tuple[str, str]]]:
    """Kill a sweep, or its database, so many times, then let it end. Returns its number of trials and what was done."""
    trials, kills, finished = _MORE_TRIALS, Counter[tuple[str, str]](), dict[int, optuna.trial.FrozenTrial]()
    MlflowStore(lives.store).open_experiment("warm-up")  # making the database takes seconds
    pid = lives.begin(trials)
    while sum(kills.values()) < num_kills:
        if not lives.wait_for_moment(pid, rng.uniform(0, _LONGEST_S), after_begin=rng.random() < 0.8):
            assert await_end(pid) == 0
            trials += _MORE_TRIALS  # it came to its end: go on with more
            pid = lives.begin(trials)
            continue
        whom, how = choose_kill(rng, has_server=server is not None)
        workers = list_workers(pid)
        if whom == "coordinator":
            with no_orphans(workers):
                os.kill(pid, how)
                _check_end(lives, await_end(pid), how)
            finished |= {t.number: t for t in read_trials(lives.store) if t.state.is_finished()}
            pid = lives.begin(trials)
        elif whom == "database" and server is not None and lives.marker.exists():
            restart(server, how)
        elif whom == "worker" and workers and lives.may_kill_worker():
            os.kill(rng.choice(workers), how)
        else:
            continue
        kills[whom, how.name] += 1
        check_finished(finished, read_trials(lives.store))
    assert await_end(pid) == 0
    check_finished(finished, read_trials(lives.store))
    return trials, kills


def restart(server: Cluster, how: signal.Signals) -> None:
    """End a database server, by force or in good order, and start it again."""
    server.kill() if how == signal.SIGKILL else server.stop()
    server.start()


def _check_end(lives: Lives, code: int, how: signal.Signals) -> None:
    """Check that a life ended as the signal asks for: at once, or in good order with nothing running."""
    if how == signal.SIGKILL:
        assert code in (-signal.SIGKILL, *_GOOD), code
        return
    assert code in (*_GOOD, -how), f"{how.name} ended a life with {code}"
    if code in _GOOD and lives.marker.exists():
        assert not list_running(lives.store), f"MLflow shows runs as running after {how.name}"
