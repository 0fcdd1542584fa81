"""Samplers must propose by (seed, number, history) alone: after a kill, a new process, another order of life."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from small_studies import CONDITIONAL, FLAT, MOMENTUM, OPTIMIZER, RATE, make_config, open_plain, play, score

from cityopt.search.sampling import build_sampler
from cityopt.search.space import sample_settings

SAMPLERS = ("tpe", "random", "cmaes", "gp")
SPACES = {"flat": FLAT, "conditional": CONDITIONAL}


def config_of(sampler, space, *, seed=0, startup=4):
    return make_config(space=SPACES[space], sampler={"name": sampler, "startup_trials": startup}, seed=seed)


def live_roughly(study, config, count):
    """Run trials that end in every way that a coordinator knows; return all settings."""
    played = []
    for _ in range(count):
        trial = study.ask()
        settings = sample_settings(trial, config.search.space)
        played.append(settings)
        trial.report(score(settings), 1)
        match trial.number % 5:
            case 1:
                study.tell(trial, state=TrialState.PRUNED)
            case 2:
                trial.set_constraint("nan", 1.0)
                study.tell(trial, state=TrialState.PRUNED)
            case 3:
                study.tell(trial, state=TrialState.FAIL)
            case _:
                study.tell(trial, score(settings))
    return played


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_settings_repeat_when_a_study_is_reopened_before_each_trial(sampler, space, tmp_path):
    config = config_of(sampler, space)
    at_once = live_roughly(open_plain(tmp_path / "a.db", config), config, 10)
    piecewise = [live_roughly(open_plain(tmp_path / "b.db", config), config, 1)[0] for _ in range(10)]
    assert at_once == piecewise
    assert len({json.dumps(settings) for settings in at_once}) > 5
    other = live_roughly(open_plain(tmp_path / "c.db", config_of(sampler, space, seed=1)), config, 2)
    assert other[0] != at_once[0] and other[1] != at_once[1]


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("sampler", "startup"), [*((sampler, 3) for sampler in SAMPLERS), ("tpe", 30)])
def test_settings_repeat_when_a_trial_is_killed_between_two_suggestions(sampler, space, startup, tmp_path):
    config = config_of(sampler, space, startup=startup)
    study = open_plain(tmp_path / "study.db", config)
    live_roughly(study, config, 9)
    trial = study.ask()
    keys = list(SPACES[space])[::-1] if space == "conditional" else list(SPACES[space])  # parents first
    copies = []
    for count in range(len(keys) + 1):
        sample_settings(trial, {key: config.search.space[key] for key in keys[:count]})
        copies.append(shutil.copyfile(tmp_path / "study.db", tmp_path / f"killed-{count}.db"))
    undisturbed = sample_settings(trial, config.search.space)
    for copy in copies:
        again = open_plain(copy, config)
        (left,) = again.get_trials(states=[TrialState.RUNNING])
        adopted = optuna.trial.Trial(again, left._trial_id)
        assert sample_settings(adopted, config.search.space) == undisturbed
        assert adopted.number == 9


_ANOTHER_PROCESS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from small_studies import open_plain, play
from test_sampling import config_of
for sampler in json.loads(sys.argv[2]):
    config = config_of(sampler, "conditional")
    print(json.dumps(play(open_plain(Path(f"{sampler}.db"), config), config, 3)))
"""


def test_settings_repeat_when_another_process_goes_on(tmp_path):
    expected = []
    for sampler in SAMPLERS:
        config = config_of(sampler, "conditional")
        play(open_plain(tmp_path / f"{sampler}.db", config), config, 9)
        shutil.copyfile(tmp_path / f"{sampler}.db", tmp_path / "here.db")
        expected.append(play(open_plain(tmp_path / "here.db", config), config, 3))
    command = [sys.executable, "-c", _ANOTHER_PROCESS, str(Path(__file__).parent), json.dumps(SAMPLERS)]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert [json.loads(line) for line in answer.stdout.splitlines()] == expected


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 12), ("cmaes", 16), ("gp", 7)])
def test_history_counts_only_when_startup_is_over(sampler, trials):
    def ask_after(sign):
        config = config_of(sampler, "flat", startup=5)
        study = optuna.create_study(
            direction="maximize", sampler=build_sampler(config.search.sampler, config.search.space, 0)
        )
        asked = []
        for _ in range(trials):
            trial = study.ask()
            asked.append(sample_settings(trial, config.search.space))
            study.tell(trial, sign * score(asked[-1]))
        return asked

    up, down = ask_after(1), ask_after(-1)
    assert up[:5] == down[:5] and up[-1] != down[-1]


def test_dependent_settings_are_modelled_together_when_tpe_groups_them():
    """The best momentum must be found among the trials of the optimiser that has one."""
    config = config_of("tpe", "conditional", startup=10)
    study = optuna.create_study(
        direction="maximize", sampler=build_sampler(config.search.sampler, config.search.space, 0)
    )
    played = play(study, config, 60)
    for settings in played:
        assert (MOMENTUM in settings) == (settings[OPTIMIZER] == "sgd")
    early, late = ([s[MOMENTUM] for s in part if MOMENTUM in s] for part in (played[:10], played[-20:]))
    assert sum(late) / len(late) > sum(early) / len(early)
    assert sum(s[OPTIMIZER] == "sgd" for s in played[-20:]) >= 15  # only sgd has the bonus of a momentum


@pytest.mark.parametrize("reason", ["nan", "oom"])
def test_tpe_leaves_a_region_when_its_trials_end_with_a_violated_constraint(reason):
    def share_of_failures(tell):
        config = make_config(space={RATE: FLAT[RATE]}, sampler={"name": "tpe", "startup_trials": 10})
        failed = 0
        for seed in range(3):
            study = optuna.create_study(
                direction="maximize", sampler=build_sampler(config.search.sampler, config.search.space, seed)
            )
            for number in range(50):
                trial = study.ask()
                rate = sample_settings(trial, config.search.space)[RATE]
                if rate > 1e-3:  # half of the logarithmic range diverges
                    failed += number >= 20
                    tell(study, trial)
                else:
                    study.tell(trial, math.log10(rate))  # the better the nearer to the edge
        return failed / 90

    def tell_violated(study, trial):
        trial.set_constraint(reason, 1.0)
        study.tell(trial, state=TrialState.PRUNED)

    told = share_of_failures(tell_violated)
    untold = share_of_failures(lambda study, trial: study.tell(trial, state=TrialState.FAIL))
    assert told < 0.55 and untold > 0.8, (told, untold)


def test_tpe_sees_running_trials_when_several_workers_ask():
    """Of the same number and history, a proposal beside a trial at work must not be the one without it."""

    def ask_second(end_first):
        config = make_config(space={RATE: FLAT[RATE]}, sampler={"name": "tpe", "startup_trials": 5})
        study = optuna.create_study(
            direction="maximize", sampler=build_sampler(config.search.sampler, config.search.space, 0)
        )
        play(study, config, 12)
        first = study.ask()
        rates = [sample_settings(first, config.search.space)[RATE]]
        end_first(study, first)
        second = study.ask()
        return [*rates, sample_settings(second, config.search.space)[RATE]]

    beside = ask_second(lambda study, first: None)
    without = ask_second(lambda study, first: study.tell(first, state=TrialState.FAIL))
    assert beside[0] == without[0] and beside[1] not in (beside[0], without[1])
