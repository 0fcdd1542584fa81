"""What finalists found: read from the folders of their runs and what the study remembers, and told in words.

Everything but the winner is computed anew from the folders; the winner, once it is known, stays.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from cityopt.config import StudyConfig
from cityopt.errors import StoreError, StudyError
from cityopt.search.evidence import CHEAPER, LEVEL, Cost, Decision, Interval, decide
from cityopt.search.finalist_plan import find_recipe, read_half_score
from cityopt.search.status import describe_trials
from cityopt.search.storage import open_storage
from cityopt.search.study import load_stored_study
from cityopt.search.trust import Point, Trust, judge_ranking
from cityopt.store import find_store, run_folder
from cityopt.tracking.curves import pick_epoch
from cityopt.tracking.mlflow_restore import restore_runs
from cityopt.tracking.mlflow_store import MlflowStore
from cityopt.tracking.run_folder import read_records, read_status

FINALISTS = "cityopt:finalists"
"""The attribute of a study that remembers its finalists."""


@dataclass(frozen=True, slots=True)
class Finalist:
    """One candidate with what its seeds scored."""

    name: str
    trial: int
    settings: dict[str, Any]
    rescaled: tuple[str, ...]
    subset_score: float | None
    """Of its trial; None where that is not complete."""
    scores: tuple[float, ...]
    """By seed, each at the epoch that it keeps."""
    runs: tuple[str, ...]
    """Ids of its runs, in the order of the seeds."""
    cost: Cost
    """Of one training, by the epochs of all seeds."""
    failure: str
    """Why it is out; empty where every seed is complete."""


@dataclass(frozen=True, slots=True)
class Finalists:
    """What the finalists of a study found."""

    name: str
    metric: str
    direction: str
    note: str
    num_images: int
    entrants: tuple[Finalist, ...]
    """Those of whom every seed is complete, in the order of the decision."""
    dropped: tuple[Finalist, ...]
    """Those that failed."""
    decision: Decision
    winner: Finalist
    baseline: int | None
    """Number of the trial that is the standard recipe; None where there is none."""
    trust: Trust

    def interval_of(self, finalist: Finalist) -> Interval:
        """Return the interval of an entrant's mean."""
        return self.decision.intervals[self.entrants.index(finalist)]

    @property
    def reason(self) -> str:
        """Why the winner is it, in a sentence."""
        return explain_winner(self)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        rows = [
            {
                "name": it.name,
                "trial": it.trial,
                "settings": it.settings,
                "rescaled": list(it.rescaled),
                "subset_score": it.subset_score,
                "scores": list(it.scores),
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "cost_s": it.cost.typical,
                "runs": list(it.runs),
            }
            for it, interval in zip(self.entrants, self.decision.intervals, strict=True)
        ]
        return {
            "name": self.name,
            "metric": self.metric,
            "direction": self.direction,
            "note": self.note,
            "num_images": self.num_images,
            "level": LEVEL,
            "finalists": rows,
            "dropped": [{"name": it.name, "trial": it.trial, "failure": it.failure} for it in self.dropped],
            "winner": self.winner.name,
            "tied": [self.entrants[place].name for place in self.decision.tied],
            "reason": self.reason,
            "trust": self.trust.to_json(),
        }


def read_last_finalists(store: Path, name: str) -> Finalists:
    """Read the finalists of a study that were decided last. Raises StoreError, StudyError: there are none."""
    folder = find_store(store, name)
    study, config, _ = load_stored_study(open_storage(folder), name)
    restore_runs(MlflowStore(folder), name)
    found = find_decided(folder, study, config)
    if found is None:
        raise StudyError(
            f"study {name!r} has no finalists that are all trained, so nothing says whether its subset ranks as more "
            f"data does. Train some with: cityopt promote --study {name} --finalists 5 --seeds 2"
        )
    return found


def find_decided(store: Path, study: optuna.Study, config: StudyConfig) -> Finalists | None:
    """Return the finalists of a study that were decided last, None where there are none."""
    entries = [entry for entry in study.user_attrs.get(FINALISTS, []) if "winner" in entry]
    return read_finalists(store, study, config, entries[-1]) if entries else None


def read_finalists(store: Path, study: optuna.Study, config: StudyConfig, entry: Mapping[str, Any]) -> Finalists | None:
    """Read finalists whose trainings have all ended, None where each of them failed.

    Raises StoreError: runs of the winner are gone.
    """
    metric, direction = config.search.metric, config.search.direction
    trials = {trial.number: trial for trial in describe_trials(study, live=False)}
    own = {number: trial.value for number, trial in trials.items() if trial.state == "complete"}
    finalists = [_read_finalist(store, candidate, own, metric, direction) for candidate in entry["candidates"]]
    entrants = tuple(it for it in finalists if not it.failure)
    if not entrants:
        return None
    decision = decide([it.scores for it in entrants], [it.cost for it in entrants], direction)
    name = entry.get("winner", entrants[decision.winner].name)
    winner = next((it for it in entrants if it.name == name), None)
    if winner is None:
        raise StoreError(
            f"{entry['name']} was won by {name}, whose runs must be complete in {store / 'runs'}, but are not. "
            f"Restore their folders, or train them again with: cityopt promote --study {study.study_name}"
        )
    recipe = find_recipe(list(trials.values()), config)
    halves = {trial.number: read_half_score(trial, direction) for trial in study.get_trials(deepcopy=False)}
    points = [
        Point(it.trial, it.subset_score, halves[it.trial], it.scores)
        for it in entrants
        if it.subset_score is not None and not it.rescaled
    ]
    return Finalists(
        name=entry["name"],
        metric=metric,
        direction=direction,
        note=entry["note"],
        num_images=entry["num_images"],
        entrants=entrants,
        dropped=tuple(it for it in finalists if it.failure),
        decision=decision,
        winner=winner,
        baseline=recipe.number if recipe else None,
        trust=judge_ranking(points, decision, direction, grown=entry["num_images"] > entry["num_subset"]),
    )


def explain_winner(found: Finalists) -> str:
    """Return why the winner is it, and what is told apart from it."""
    winner, decision = found.winner, found.decision
    place, leader = found.entrants.index(winner), found.entrants[decision.leader]
    it = decision.intervals[place]
    recipe = ", the standard recipe," if winner.trial == found.baseline and not winner.rescaled else ""
    score = f"{found.metric} {it.mean:.4f}"
    if it.low is None or it.high is None:
        return f"{winner.name}{recipe} wins with {score}, of one seed: no interval says what chance did."
    bound = f"{score}, {LEVEL:.0%} interval {it.low:.4f} to {it.high:.4f} of {it.num_seeds} seeds"
    if place != decision.leader:
        share = winner.cost.typical / leader.cost.typical
        return f"{winner.name}{recipe} wins: it ties with {leader.name} in {share:.0%} of its device time ({bound})."
    ties = [found.entrants[tied].name for tied in decision.tied]
    end = (
        f"; the seeds do not tell it from {', '.join(ties)}, none of which costs {1 - CHEAPER:.0%} less" if ties else ""
    )
    return f"{winner.name}{recipe} wins by the best bound of its mean: {bound}{end}."


def name_metrics(found: Finalists) -> dict[str, float]:
    """Return the numbers of the parent run; the objective's protocol is in `finalists.json`, beside every score."""
    trust, numbers = found.trust, dict[str, float]()
    if trust.ranks is not None:
        numbers |= {
            "finalists/spearman": trust.ranks.spearman.value,
            "finalists/kendall": trust.ranks.kendall.value,
            "finalists/rank_p": trust.ranks.p_value,
        }
    known = {"finalists/seed_noise": trust.noise, "finalists/spread": trust.spread}
    return numbers | {name: value for name, value in known.items() if value is not None}


def describe_finalists(found: Finalists) -> dict[str, str]:
    """Return the tags of the parent run."""
    return {
        "cityopt.finalists": found.name,
        "cityopt.finalists_winner": found.winner.name,
        "cityopt.finalists_reason": found.reason,
        "cityopt.trust": found.trust.verdict,
        "cityopt.trust_sentence": found.trust.sentence,
    }


def _read_finalist(
    store: Path, candidate: Mapping[str, Any], own: Mapping[int, float | None], metric: str, direction: str
) -> Finalist:
    runs = tuple(str(place["run_id"]) for place in candidate["runs"])
    scores, epochs, failures = list[float](), list[float](), list[str]()
    for run_id in runs:
        folder = run_folder(store, run_id)
        status, records = read_status(folder), read_records(folder)[0]
        if status is None or status.outcome != "complete":
            failures.append(f"{status.reason}: {status.message}" if status else "unfinished")
            continue
        scores.append(pick_epoch(records, metric, direction)[1][metric])
        epochs += [measure_epoch(record.metrics) for record in records if "system/epoch_s" in record.metrics]
    return Finalist(
        name=candidate["name"],
        trial=candidate["trial"],
        settings=candidate["settings"],
        rescaled=tuple(candidate["rescaled"]),
        subset_score=own.get(candidate["trial"]),
        scores=tuple(scores),
        runs=runs,
        cost=_measure_cost(epochs, len(runs)),
        failure=failures[0] if failures else "",
    )


def measure_epoch(metrics: Mapping[str, float]) -> float:
    """Return the seconds for which an epoch kept its device busy: on a CPU, beside other work, the clock says more."""
    share = 1.0 if "system/gpu_memory_gib" in metrics else metrics.get("system/cpu_share", 1.0)
    return metrics["system/epoch_s"] * share


def _measure_cost(epochs_s: Sequence[float], num_runs: int) -> Cost:
    """Return the cost of a training, given the seconds of the epochs of all of them."""
    if not epochs_s:
        return Cost(0.0, 0.0)
    count = len(epochs_s) / num_runs
    return Cost(count * min(epochs_s), count * statistics.median(epochs_s))
