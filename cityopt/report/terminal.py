"""What a sweep looks like in a terminal: live bars on a TTY, plain lines anywhere else.

One bar for the study (done, pruned, failed, best, ETA), one for each running trial (epoch, loss, images/s,
best), one for caches and scans. News scrolls above the bars. Everything goes to stderr or stdout as
the console was made.
"""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from cityopt.dimension import Scalar
from cityopt.report.tables import STATE_STYLES, format_seconds, format_settings, format_value, print_leaderboard
from cityopt.search.observer import Observer, Standing, TrialState

if TYPE_CHECKING:
    from cityopt.search.status import StudyStatus, TrialStatus

_SILENCE_S = 10.0
"""Where no bar moves, a preparation that takes longer says how far it is."""


def open_observer(console: Console) -> "PlainObserver":
    """Return live bars when the console is a terminal, plain lines otherwise."""
    return LiveObserver(console) if console.is_terminal else PlainObserver(console)


def watch_leaderboard(console: Console, read: Callable[[], "StudyStatus"], *, interval_s: float = 2.0) -> None:
    """Show a study's leaderboard anew every few seconds, as much of it as fits, until Ctrl-C.

    Without a terminal it is printed each time that a trial has changed.
    """
    before: list[TrialStatus] | None = None
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            status = read()
            if console.is_terminal:
                live.update(_draw_leaderboard(console, status), refresh=True)
            elif status.trials != before:
                print_leaderboard(console, status)
            before = status.trials
            time.sleep(interval_s)


def _draw_leaderboard(console: Console, status: "StudyStatus") -> Text:
    page = io.StringIO()
    drawn = Console(file=page, width=console.width, force_terminal=True, color_system="standard")
    print_leaderboard(drawn, status, limit=max(console.height - 8, 3))
    return Text.from_ansi("\n".join(page.getvalue().splitlines()[: console.height - 1]))


@contextmanager
def wait_for_ui(console: Console) -> Iterator[Callable[[str], None]]:
    """Show that MLflow is on its way; what comes back is told its address and shows that."""
    with console.status("waiting for MLflow …") as waiting:

        def show(address: str) -> None:
            waiting.stop()
            console.print(f"MLflow answers at {address}   (Ctrl-C ends it)", highlight=False, soft_wrap=True)

        yield show


class PlainObserver(Observer):
    """One line per event: for logs, pipes and CI."""

    _last_words = ""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._standing: Standing | None = None
        self._prepared: dict[str, float] = {}
        """When each preparation began, in seconds."""
        self._told: dict[str, float] = {}
        """When the last word of it was said."""

    def __enter__(self) -> "PlainObserver":
        """Begin to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""

    def say(self, text: str) -> None:
        """Print a line of news, as it is."""
        self._print(escape(text))

    def leave(self, text: str) -> None:
        """Write a last line past all buffers and locks, which the code that was cut off may hold."""
        with suppress(OSError, ValueError):  # a file that is closed, or none of the system's
            os.write(self.console.file.fileno(), f"{self._last_words}{text}\n".encode())

    def _print(self, markup: str) -> None:
        self.console.print(markup, highlight=False, soft_wrap=True)

    def begin_study(self, standing: Standing) -> None:
        """Keep the score board."""
        self._standing, self.metric = standing, standing.metric

    def show_preparation(self, what: str, done: int, total: int) -> None:
        """Print the end of a preparation, and now and then how far it is."""
        now = time.monotonic()
        began = self._prepared.setdefault(what, now)
        told = self._told.setdefault(what, began)
        if done == total:
            self.say(f"{what}: {total} done in {now - began:.1f} s")
            del self._prepared[what], self._told[what]
        elif now - told >= _SILENCE_S:
            self.say(f"{what}: {done} of {total}")
            self._told[what] = now

    def begin_run(self, name: str, settings: Mapping[str, Scalar], *, resumed: bool) -> None:
        """Print what a run tries."""
        begins = "goes on" if resumed else "begins"
        self._print(f"[bold]{escape(name)}[/bold] {begins}: {escape(format_settings(settings))}")

    def show_epoch(self, name: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Print an epoch's loss and objective."""
        self.say(f"  {name} epoch {epoch}/{epochs}: {self._describe_epoch(metrics)}")

    def end_run(self, name: str, state: TrialState, value: float | None, reason: str, *, is_best: bool) -> None:
        """Print how a run ended and the best so far."""
        mark = " [bold green]best so far[/bold green]" if is_best else ""
        why = f" ({reason})" if reason else ""
        self._print(f"{escape(name)} [{STATE_STYLES[state]}]{state}[/]{why}: {format_value(value)}{mark}")

    def _describe_epoch(self, metrics: Mapping[str, float]) -> str:
        loss, value = metrics.get("train/loss/total"), metrics.get(self.metric)
        return f"loss {format_value(loss)}, {self.metric} {format_value(value)}"


class LiveObserver(PlainObserver):
    """Bars that move."""

    _last_words = "\r\n\x1b[?25h"  # beyond the bars, with the cursor that they hide

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: float | None = None
        self._ended_before = 0
        self._trials_ended = 0.0

    def __enter__(self) -> "LiveObserver":
        """Show the bars."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bars away."""
        self._progress.stop()

    def begin_study(self, standing: Standing) -> None:
        """Add the study's bar."""
        super().begin_study(standing)
        self._began, self._ended_before = time.monotonic(), standing.num_ended
        self._refresh_study()

    def show_preparation(self, what: str, done: int, total: int) -> None:
        """Move the bar of a preparation; take it away at its end."""
        self._show(what, done, total, f"{done}/{total}")
        if done == total:
            self._remove(what)
            super().show_preparation(what, done, total)
        else:
            self._prepared.setdefault(what, time.monotonic())

    def begin_run(self, name: str, settings: Mapping[str, Scalar], *, resumed: bool) -> None:
        """Add the run's bar."""
        super().begin_run(name, settings, resumed=resumed)
        self._show(name, 0, 1, "starting")
        self._refresh_study()

    def show_progress(self, name: str, progress: Mapping[str, Any]) -> None:
        """Move the run's bar: epochs and steps together."""
        epochs, steps = max(progress["epochs"], 1), max(progress["steps"], 1)
        share = (max(progress["epoch"], 1) - 1 + progress["step"] / steps) / epochs
        self._show(name, share, 1, _describe_progress(progress))
        self._refresh_study()

    def show_epoch(self, name: str, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Show the objective on the run's bar."""
        self._show(name, epoch / epochs, 1, f"epoch {epoch}/{epochs}  {self._describe_epoch(metrics)}")

    def end_run(self, name: str, state: TrialState, value: float | None, reason: str, *, is_best: bool) -> None:
        """Take the run's bar away."""
        self._remove(name)
        super().end_run(name, state, value, reason, is_best=is_best)
        self._refresh_study()

    def _refresh_study(self) -> None:
        standing = self._standing
        if standing is None:
            return
        counts = standing.counts
        note = (
            f"{counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed  "
            f"[bold]best {format_value(standing.best_value)}[/bold]{self._estimate_rest(standing)}"
        )
        self._show(f"[bold]{standing.study}[/bold]", standing.num_ended, standing.trials, note)

    def _estimate_rest(self, standing: Standing) -> str:
        ended = standing.num_ended - self._ended_before
        if self._began is None or ended < 1:
            return ""
        rest = (time.monotonic() - self._began) / ended * (standing.trials - standing.num_ended)
        return f"  ETA {format_seconds(rest)}"

    def _show(self, key: str, done: float, total: float, note: str) -> None:
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(key, total=total, note=note)
        self._progress.update(self._tasks[key], completed=done, total=total, note=note)

    def _remove(self, key: str) -> None:
        if key in self._tasks:
            self._progress.remove_task(self._tasks.pop(key))


def _describe_progress(progress: Mapping[str, Any]) -> str:
    if progress["phase"] == "cache":
        return "reading images"
    parts = [f"epoch {progress['epoch']}/{progress['epochs']}"]
    if progress["phase"] == "validate":
        parts.append("validating")
    else:
        parts.append(f"loss {format_value(progress['loss'])}")
        parts.append(f"{progress['images_per_s'] or 0:.1f} images/s")
    parts.append(f"best {format_value(progress['best'])}")
    return "  ".join(parts)
