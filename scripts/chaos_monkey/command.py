"""`scripts/chaos`: kill a sweep again and again, let it end, and compare it with one that nobody disturbed."""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import optuna
from mlflow_server import MlflowServer, run_server
from postgres import Cluster, run_cluster

from chaos_monkey.lives import STARTUP, Life, Lives, await_end, choose_kill, list_workers, no_orphans, read_trials
from chaos_monkey.verdict import check_finished, check_store, list_running, summarize
from cityopt.tracking.mlflow_store import MlflowStore

_MORE_TRIALS = 4
_LONGEST_S = 1.5
"""Of the random delay before a kill: four times in five from when a life has begun its trials, else from its start."""
_GOOD = (0, 130)
"""Exit codes of a sweep at its end, and of one that was stopped."""


@dataclass(frozen=True, slots=True)
class Servers:
    """What a study may need beside its store."""

    database: Cluster | None = None
    mlflow: MlflowServer | None = None

    @property
    def names(self) -> list[str]:
        """Whom `restart` knows."""
        return ["database"] * (self.database is not None) + ["mlflow"] * (self.mlflow is not None)

    def restart(self, name: str, how: signal.Signals) -> bool:
        """End a server, by force or in good order, and start it again; MLflow, unless it is at its start: False."""
        if name == "database" and self.database:
            self.database.kill() if how == signal.SIGKILL else self.database.stop()
            self.database.start()
        elif self.mlflow:
            if not self.mlflow.answers():
                return False
            self.mlflow.kill(how)
            self.mlflow.launch()  # which takes a while: nobody waits for it
        return True

    def wait_until_up(self) -> None:
        """Wait until all answer."""
        if self.mlflow:
            self.mlflow.wait_until_up()


def main() -> int:
    """Run the command; a violation is an AssertionError that says what does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--mlflow", action="store_true", help="runs are on an MLflow server, which is killed too")
    parser.add_argument("--coordinators", type=int, default=1, help="several share the study (PostgreSQL and --mlflow)")
    parser.add_argument("--apart", action="store_true", help="each coordinator has a store of its own")
    options = parser.parse_args()
    if options.coordinators > 1 and not (options.storage == "postgresql" and options.mlflow):
        parser.error("--coordinators needs --storage postgresql --mlflow")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cityopt-chaos-") as folder, ExitStack() as stack:
        database = stack.enter_context(run_cluster()) if options.storage == "postgresql" else None
        backend = database.create_database() if database else None
        mlflow = stack.enter_context(run_server(backend)) if options.mlflow else None
        stores = [Path(folder) / f"disturbed-{number}" for number in range(options.coordinators)]
        disturbed = Lives(
            *(stores if options.apart else stores[:1]),
            workers=options.workers,
            database=database.create_database() if database else None,
            tracking_uri=mlflow.url if mlflow else None,
        )
        servers = Servers(database, mlflow)
        trials, kills = disturb(disturbed, options.kills, random.Random(options.seed), servers, options.coordinators)
        check_store(disturbed.stores, trials)
        assert not list_running(disturbed.store)
        compare(disturbed, Path(folder) / "calm", trials, is_alone=options.coordinators * options.workers == 1)
    told = ", ".join(f"{count} x {whom} {how}" for (whom, how), count in sorted(kills.items()))
    print(
        f"{trials} trials, {sum(kills.values())} kills ({told}) in {time.monotonic() - begin:.0f} s: as if undisturbed"
    )
    return 0


def compare(disturbed: Lives, store: Path, trials: int, *, is_alone: bool) -> None:
    """Compare with a study that nobody disturbs: all of it, or the settings that follow from the seed alone."""
    calm = Lives(store)
    assert await_end(calm.begin(trials if is_alone else STARTUP)) == 0
    ours, theirs = read_trials(disturbed.store), read_trials(store)
    if is_alone:
        assert summarize(ours) == summarize(theirs), "the study is another one than without kills"
    else:
        assert [t.params for t in ours[:STARTUP]] == [t.params for t in theirs], "the first trials are others"


def disturb(
    lives: Lives, num_kills: int, rng: random.Random, servers: Servers, coordinators: int = 1
) -> tuple[int, Counter[tuple[str, str]]]:
    """Kill sweeps, or their servers, so many times, then let all end. Returns the number of trials and the kills."""
    trials, kills, finished = _MORE_TRIALS, Counter[tuple[str, str]](), dict[int, optuna.trial.FrozenTrial]()
    MlflowStore(lives.store).open_experiment("warm-up")  # making the database takes seconds
    alive = [lives.begin(trials, lives.stores[place % len(lives.stores)]) for place in range(coordinators)]
    while sum(kills.values()) < num_kills:
        place = rng.randrange(coordinators)
        life = alive[place]
        if not lives.wait_for_moment(life, rng.uniform(0, _LONGEST_S), after_begin=rng.random() < 0.8):
            assert await_end(life) == 0
            trials += _MORE_TRIALS  # it came to its end: go on with more
            alive[place] = lives.begin(trials, life.store)
            continue
        whom, how = choose_kill(rng, servers.names)
        workers = list_workers(life.pid)
        if whom == "coordinator":
            with no_orphans(workers):
                os.kill(life.pid, how)
                _check_end(lives, life, how, is_alone=coordinators == 1 and not servers.mlflow)
            finished |= {t.number: t for t in read_trials(lives.store) if t.state.is_finished()}
            alive[place] = lives.begin(trials, life.store)
        elif whom == "worker" and workers and life.may_kill_worker():
            os.kill(rng.choice(workers), how)
        elif whom not in servers.names or not all(one.has_begun for one in alive) or not servers.restart(whom, how):
            continue
        kills[whom, how.name] += 1
        check_finished(finished, read_trials(lives.store))
    servers.wait_until_up()
    assert [await_end(life) for life in alive] == [0] * coordinators
    if servers.mlflow:  # what it did not hear before they ended, the next start sends
        assert [await_end(lives.begin(trials, store)) for store in lives.stores] == [0] * len(lives.stores)
    check_finished(finished, read_trials(lives.store))
    return trials, kills


def _check_end(lives: Lives, life: Life, how: signal.Signals, *, is_alone: bool) -> None:
    """Check that a life ended as the signal asks for: at once, or in good order with nothing running."""
    code = await_end(life)
    if how == signal.SIGKILL:
        assert code in (-signal.SIGKILL, *_GOOD), code
        return
    assert code in (*_GOOD, -how), f"{how.name} ended a life with {code}"
    if code in _GOOD and life.has_begun and is_alone:
        assert not list_running(lives.store), f"MLflow shows runs as running after {how.name}"
