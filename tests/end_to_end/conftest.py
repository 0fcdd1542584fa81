"""Stories that several tests look at from different sides, each told once, two at a time."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    STUDY,
    Answer,
    find_worker,
    interrupt,
    kill,
    kill_worker,
    read_curves,
    read_runs,
    read_trials,
    run_until,
    sweep,
    wait_for_death,
)

SWEEP = ("sweep", "--study", STUDY, "--device", "cpu", "--store")


@dataclass
class Story:
    """A study in its store: what the commands said, and what was there when one was cut off."""

    store: Path
    answers: list[Answer] = field(default_factory=list)
    cut_trials: list[Any] = field(default_factory=list)
    cut_runs: dict[str, Any] = field(default_factory=dict)
    cut_curves: dict[str, Any] = field(default_factory=dict)

    def look(self) -> None:
        """Remember what a cut left behind."""
        self.cut_trials, self.cut_runs = read_trials(self.store), read_runs(self.store)
        self.cut_curves = {name: read_curves(self.store, name) for name in self.cut_runs}


def _calm(story: Story) -> None:
    story.answers = [sweep(story.store)]


def _stopped(story: Story) -> None:
    story.answers = [sweep(story.store, "--trials", 3)]
    story.look()
    story.answers.append(sweep(story.store))


def _interrupted(story: Story) -> None:
    story.answers = [run_until("trial-0003 epoch 1/4", interrupt, *SWEEP, story.store)]
    story.look()
    story.answers.append(sweep(story.store))


def _coordinator_killed(story: Story) -> None:
    def kill_both(process: Any) -> None:
        worker = find_worker(story.store)
        kill(process)
        wait_for_death(worker)

    story.answers = [run_until("trial-0003 epoch 1/4", kill_both, *SWEEP, story.store)]
    story.look()
    story.answers.append(sweep(story.store))


def _worker_killed(story: Story) -> None:
    story.answers = [
        run_until("trial-0003 epoch 1/4", lambda _: kill_worker(story.store) and None, *SWEEP, story.store)
    ]


TELLERS: dict[str, Callable[[Story], None]] = {
    "calm": _calm,
    "coordinator_killed": _coordinator_killed,
    "worker_killed": _worker_killed,
    "interrupted": _interrupted,
    "stopped": _stopped,
}


@pytest.fixture(scope="session")
def stories(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Story]]:
    """Return a function that gives a story by its name, waiting for it if need be."""
    folder = tmp_path_factory.mktemp("stories")

    def tell(name: str) -> Story:
        story = Story(Path(shutil.copytree(template_store, folder / name)))
        TELLERS[name](story)
        return story

    with ThreadPoolExecutor(2) as pool:
        told: dict[str, Future[Story]] = {name: pool.submit(tell, name) for name in TELLERS}
        yield lambda name: told[name].result()
        for future in told.values():
            future.cancel()
