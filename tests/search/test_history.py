"""Which trials a sampler sees of a long study: judged by a slow choice from scratch, and by what TPE does with them."""

import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from cityopt.dimension import Dimension
from cityopt.search.history import History
from cityopt.search.sampling import build_sampler
from cityopt.search_config import SamplerConfig

STATES = [TrialState.COMPLETE] * 4 + [TrialState.PRUNED] * 2 + [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
RANGE = FloatDistribution(0.0, 1.0)


def invent(number: int, state: TrialState, value: float, *, is_bad: bool) -> FrozenTrial:
    values = [value] if state == TrialState.COMPLETE else None
    trial = create_trial(
        state=state, values=values, params={"x": value}, distributions={"x": RANGE}, constraints={"oom": float(is_bad)}
    )
    trial.number = number
    return trial


def invent_trials(count: int, seed: int, states: list[TrialState] = STATES) -> list[FrozenTrial]:
    dice = random.Random(seed)
    kinds = [dice.choice(states) for _ in range(count)]
    bad = [state == TrialState.PRUNED and dice.random() < 0.5 for state in kinds]
    return [invent(n, kinds[n], round(dice.random(), 1), is_bad=bad[n]) for n in range(count)]


def choose_slowly(trials: list[FrozenTrial], size: int, maximize: bool) -> list[int]:
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    complete.sort(key=lambda t: (-t.value if maximize else t.value, t.number))
    bad = [t.number for t in trials if t.constraints["oom"] > 0]
    running = [t.number for t in trials if t.state == TrialState.RUNNING]
    chosen = {t.number for t in complete[: size // 10]} | set(bad[-(size // 10) :])
    chosen |= {n for n in running if n >= next(t.number for t in trials if not t.state.is_finished())}
    rest = [t.number for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED) and t.number not in chosen]
    return sorted(chosen | set(rest[len(rest) - max(size - len(chosen), 0) :]))


@pytest.mark.parametrize("maximize", [True, False])
def test_choice_is_that_from_scratch_however_often_was_asked_before(maximize: bool) -> None:
    """Trials end in any order, so that the past grows by leaps."""
    dice, trials = random.Random(1), invent_trials(60, 0)
    asked_often = History(20)
    for _ in range(40):
        open_ones = [t.number for t in trials if not t.state.is_finished()]
        for number in dice.sample(open_ones, min(3, len(open_ones))):
            trials[number] = invent(number, TrialState.COMPLETE, round(dice.random(), 1), is_bad=False)
        trials += [invent(len(trials) + n, TrialState.RUNNING, 0.5, is_bad=False) for n in range(2)]
        found = [t.number for t in asked_often.choose(trials, maximize=maximize)]
        assert found == choose_slowly(trials, 20, maximize)
        assert found == [t.number for t in History(20).choose(trials, maximize=maximize)]


def test_best_worst_and_latest_are_seen_when_there_are_very_many() -> None:
    trials = [invent(n, TrialState.COMPLETE, 0.5, is_bad=False) for n in range(300)]
    trials[5] = invent(5, TrialState.COMPLETE, 1.0, is_bad=False)
    trials[6] = invent(6, TrialState.PRUNED, 0.0, is_bad=True)
    found = {t.number for t in History(100).choose(trials, maximize=True)}
    assert len(found) == 100 and {5, 6} <= found and set(range(220, 300)) <= found


def optimize(study: optuna.Study, count: int) -> list[float]:
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(trial.suggest_float("x", 0.0, 1.0))
        study.tell(trial, (found[-1] - 0.3) ** 2)
    return found


def make_study(size: int, trials: list[FrozenTrial]) -> optuna.Study:
    space = {"x": Dimension(type="float", low=0.0, high=1.0)}
    study = optuna.create_study(sampler=build_sampler(SamplerConfig(history=size), space, 0))
    study.add_trials(trials)
    return study


def test_long_study_proposes_near_its_best_though_that_is_long_ago() -> None:
    best = [invent(n, TrialState.COMPLETE, 0.0, is_bad=False) for n in range(20)]
    for trial in best:
        trial.params = {"x": 0.3 + trial.number / 1000}
    dice = random.Random(0)
    rest = [invent(20 + n, TrialState.COMPLETE, dice.uniform(0.5, 1.0), is_bad=False) for n in range(500)]
    proposed = optimize(make_study(200, best + rest), 10)
    assert sum(abs(x - 0.3) < 0.1 for x in proposed) >= 8, proposed


def test_tpe_gets_no_more_trials_than_it_is_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = TPESampler._build_parzen_estimator

    def count(self: TPESampler, study: optuna.Study, space: object, trials: list[FrozenTrial], **rest: bool) -> object:
        seen.append(len(trials))
        return real(self, study, space, trials, **rest)

    monkeypatch.setattr(TPESampler, "_build_parzen_estimator", count)
    trials = invent_trials(400, 5, [TrialState.COMPLETE])
    optimize(make_study(100, trials), 1)
    assert sum(seen) == 99  # the trial itself is one of the hundred
    seen.clear()
    optimize(make_study(1000, trials), 1)
    assert sum(seen) == 400
