"""A sweep in a terminal: plain lines without one, bars with one, and the same news in both."""

import io
import re

import pytest
from rich.console import Console

from cityopt.report.terminal import LiveObserver, PlainObserver, open_observer, watch_leaderboard
from cityopt.search.observer import Observer, Standing
from cityopt.search.status import StudyStatus, TrialStatus

PROGRESS = {
    "phase": "train",
    "epoch": 2,
    "epochs": 4,
    "step": 1,
    "steps": 2,
    "loss": 1.5,
    "images_per_s": 12.25,
    "best": 0.25,
}


def watch(observer: PlainObserver) -> Standing:
    """Show a little sweep to an observer."""
    standing = Standing("small", "val/ap", 3)
    with observer:
        observer.say("store /store")
        for done in (0, 1, 2):
            observer.show_preparation("decoding 2 images", done, 2)
        observer.begin_study(standing)
        observer.begin_run("trial-0000", {"training.learning_rate": 0.01}, resumed=False)
        observer.show_progress("trial-0000", {**PROGRESS, "phase": "cache"})
        observer.show_progress("trial-0000", PROGRESS)
        observer.show_progress("trial-0000", {**PROGRESS, "phase": "validate", "loss": None, "images_per_s": None})
        observer.show_epoch("trial-0000", 2, 4, {"train/loss/total": 1.5, "val/ap": 0.25})
        standing.counts["complete"] = 1
        standing.best_value = 0.25
        observer.end_run("trial-0000", "complete", 0.25, "", is_best=True)
        observer.begin_run("trial-0001", {}, resumed=True)
        standing.counts["failed"] = 1
        observer.end_run("trial-0001", "failed", None, "nan", is_best=False)
    return standing


def test_lines_are_plain_when_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=120)
    observer = open_observer(console)
    assert type(observer) is PlainObserver
    watch(observer)
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "store /store" and lines[1].startswith("decoding 2 images: 2 done in ")
    assert lines[2:] == [
        "trial-0000 begins: learning_rate=0.01",
        "  trial-0000 epoch 2/4: loss 1.5000, val/ap 0.2500",
        "trial-0000 complete: 0.2500 best so far",
        "trial-0001 goes on: defaults",
        "trial-0001 failed (nan): –",
    ]


def test_bars_show_study_and_trial_when_there_is_a_terminal():
    console = Console(file=io.StringIO(), width=160, force_terminal=True, color_system=None)
    observer = open_observer(console)
    assert isinstance(observer, LiveObserver)
    watch(observer)
    bars = Console(file=io.StringIO(), width=200)
    bars.print(observer._progress.get_renderable())
    shown = bars.file.getvalue()
    news = console.file.getvalue()
    assert "trial-0000 begins: learning_rate=0.01" in news and "failed (nan)" in news
    assert not any("trial-0" in line for line in shown.splitlines()), "bars of ended trials go away"
    assert "1 complete, 0 pruned, 1 failed" in shown and "best 0.2500" in shown and "ETA" in shown


@pytest.mark.parametrize(
    ("phase", "words"),
    [("cache", ["reading images"]), ("train", ["epoch 2/4", "loss 1.5000", "12.2 images/s", "best 0.2500"])],
)
def test_bar_of_a_trial_tells_where_it_is(phase, words):
    observer = LiveObserver(Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None))
    observer.show_progress("trial-0000", {**PROGRESS, "phase": phase})
    (task,) = observer._progress.tasks
    assert all(word in task.fields["note"] for word in words)
    assert task.completed == pytest.approx(((2 - 1) + 1 / 2) / 4) and task.total == 1


def test_progress_moves_on_when_counts_are_zero():
    observer = LiveObserver(Console(file=io.StringIO(), force_terminal=True))
    observer.show_progress("trial-0000", {**PROGRESS, "epochs": 0, "steps": 0, "epoch": 0, "step": 0})
    assert observer._progress.tasks[0].completed == 0


def test_every_event_is_harmless_when_nobody_watches():
    watch_all = Observer()
    watch_all.say("news")
    watch_all.show_preparation("x", 1, 2)
    watch_all.begin_study(Standing("small", "val/ap", 3))
    watch_all.begin_run("trial", {}, resumed=False)
    watch_all.show_progress("trial", PROGRESS)
    watch_all.show_epoch("trial", 1, 2, {})
    watch_all.end_run("trial", "pruned", None, "", is_best=False)
    assert Standing("small", "val/ap", 3).num_ended == 0


def test_plain_lines_say_how_far_a_long_preparation_is(monkeypatch):
    console, clock = Console(file=io.StringIO(), width=200), iter([0.0, 4.0, 11.0, 12.0, 25.0, 26.0])
    monkeypatch.setattr("cityopt.report.terminal.time.monotonic", lambda: next(clock))
    observer = PlainObserver(console)
    for done in (1, 2, 3, 4, 5, 6):
        observer.show_preparation("making scenes", done, 6)
    lines = ["making scenes: 3 of 6", "making scenes: 5 of 6", "making scenes: 6 done in 26.0 s"]
    assert console.file.getvalue().splitlines() == lines


@pytest.mark.parametrize("is_terminal", [True, False])
def test_cursor_comes_back_when_the_process_leaves_at_once(tmp_path, is_terminal):
    path = tmp_path / "terminal"
    with path.open("w") as file, open_observer(Console(file=file, force_terminal=is_terminal)) as observer:
        observer.show_preparation("decoding", 1, 3)
        file.flush()
        observer.leave("Left at once.")
        written = path.read_text()  # as the process would leave it
    assert "Left at once.\n" in written
    assert written.rfind("\x1b[?25h") >= written.rfind("\x1b[?25l")


def test_last_line_is_dropped_when_there_is_nowhere_to_write_it():
    observer = open_observer(Console(file=io.StringIO()))
    observer.leave("Left at once.")


@pytest.mark.parametrize("kind", [PlainObserver, LiveObserver])
def test_square_brackets_are_printed_as_they_are(kind):
    """Rich would take them for styles, and a closing one for a mistake."""
    console = Console(file=io.StringIO(), width=200)
    with kind(console) as observer:
        observer.say("store /data/[bold]/x[/y]")
        observer.show_preparation("reading [v1]", 1, 1)
        observer.begin_run("trial-0000", {"model.weights": "/data/[red]/a.pt"}, resumed=False)
        observer.end_run("trial-0000", "failed", None, "nan", is_best=False)
    text = console.file.getvalue()
    assert all(part in text for part in ("store /data/[bold]/x[/y]", "reading [v1]", "/data/[red]/a.pt"))


def play_statuses(*numbers):
    """Return what reads a study with so many trials, one after the other, until somebody presses Ctrl-C."""
    trials = [TrialStatus(number, "complete", None, 0.1, {}, None, 1.0) for number in range(99)]
    statuses = iter([StudyStatus("small", "val/ap", "maximize", trials[0], trials[:number]) for number in numbers])

    def read():
        if (status := next(statuses, None)) is None:
            raise KeyboardInterrupt
        return status

    return read


def test_watch_prints_each_change_once_when_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=100)
    watch_leaderboard(console, play_statuses(1, 1, 2, 2), interval_s=0)
    text = console.file.getvalue()
    assert (text.count("small: 1 complete"), text.count("small: 2 complete")) == (1, 1)


def test_watch_shows_as_much_as_fits_when_there_is_a_terminal():
    console = Console(file=io.StringIO(), width=100, height=20, force_terminal=True)
    watch_leaderboard(console, play_statuses(3, 60), interval_s=0)
    text = console.file.getvalue()
    assert "\x1b[?1049h" in text and "\x1b[?1049l" in text  # a screen of its own, given back at the end
    last = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text.rpartition("small: 60 complete")[2])
    assert "and 48 more" in last and last.count("\n") < 20
