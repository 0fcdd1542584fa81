"""The study's description in MLflow: its numbers, its links, and text that stays text in Markdown."""

from cityopt.search import note
from cityopt.search.note import MAX_TRIALS, NoteClock, describe_study
from cityopt.search.status import StudyStatus, TrialStatus

RATE, OPTIMIZER = "training.learning_rate", "training.optimizer"


def make_status(trials):
    complete = [trial for trial in trials if trial.state == "complete"]
    best = max(complete, key=lambda trial: trial.value, default=None)
    return StudyStatus("small", "val/coco/segm/ap", "maximize", best, trials)


def make_trial(number, value, state="complete", reason=None, **params):
    settings = {RATE: 0.00123456, **params}
    return TrialStatus(number, state, reason, value, settings, f"r{number}", 1.0)


def test_description_lists_trials_with_links_to_their_runs():
    trials = [make_trial(0, 0.2), make_trial(1, 0.3), make_trial(2, None, "failed", "nan")]
    lines = describe_study(make_status(trials), "7").splitlines()
    assert lines[0] == "**small**: 2 complete, 1 failed."
    assert "Best is trial 1 with learning\\_rate 0.00123:" in lines and "**0.3000**" in lines[3]
    assert lines[-5:] == [
        "| trial | outcome | `val/coco/segm/ap` | learning\\_rate |",
        "| :-- | :-- | --: | --: |",
        "| [1](#/experiments/7/runs/r1) | complete | 0.3000 | 0.00123 |",
        "| [0](#/experiments/7/runs/r0) | complete | 0.2000 | 0.00123 |",
        "| [2](#/experiments/7/runs/r2) | failed (nan) | – | 0.00123 |",
    ]


def test_text_of_settings_is_no_markdown():
    text = describe_study(make_status([make_trial(0, 0.1, **{OPTIMIZER: "a|b_c <img src=x>"})]), "1")
    assert "a\\|b\\_c &lt;img src=x&gt;" in text and "<img" not in text


def test_long_studies_fit_into_a_description():
    text = describe_study(make_status([make_trial(n, n / 1000) for n in range(400)]), "1")
    assert len(text) < 6000 and text.count("#/experiments/1/runs/") == MAX_TRIALS
    assert text.endswith(f"and {400 - MAX_TRIALS} more.")
    assert describe_study(make_status([]), "1").startswith("**small**: no trial yet.")


def test_description_is_due_at_once_and_then_not_for_seconds(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(note.time, "monotonic", lambda: now[0])
    clock = NoteClock()
    seen = []
    for moment in (100.0, 101.0, 104.9, 105.0, 106.0, 200.0):
        now[0] = moment
        seen.append(clock.is_due())
    assert seen == [True, False, False, True, False, True]
