"""Which trial is next: one that waits to go on, one that nobody works on any more, or a new one."""

import time
from collections.abc import Set
from contextlib import suppress

import optuna

from cityopt.search.executors.base import Executor
from cityopt.search.ownership import LeaseLostError, Ownership
from cityopt.search.reconciliation import adopt
from cityopt.search.scorekeeping import Scorekeeper


class Agenda:
    """A coordinator's choice of what to try. Its methods raise what the studies' database raises.

    `in_hand` are the numbers of the trials that the coordinator is at, those that end just now among them.
    """

    def __init__(self, keeper: Scorekeeper, executor: Executor, ownership: Ownership) -> None:
        self._keeper, self._executor, self._ownership = keeper, executor, ownership
        self.waiting: list[optuna.Trial] = []
        """Trials of this coordinator that wait for a slot, to go on."""
        self.elsewhere: list[int] = []
        """Trials in other coordinators' hands, when last looked."""
        self._orphan: int | None = None
        """A trial that is owned, and not yet taken up."""
        self._new: optuna.Trial | None = None
        """A trial that was asked for and is owned; kept, in case the database goes away before it is given out."""
        self._next_look = 0.0
        self._has_looked = False
        """Whether it was known, at the last look, whose leases may be believed."""
        self._has_objected = False

    @property
    def is_due(self) -> bool:
        """Whether to look for a trial: where there was none a moment ago, there is none now."""
        return bool(self.waiting) or time.monotonic() >= self._next_look

    def look_soon(self) -> None:
        """Look as soon as there is a slot."""
        self._next_look = 0.0

    def count_begun(self, in_hand: Set[int]) -> int:
        """Return how many of the study's trials have begun; one that is tried again counts once."""
        return self._keeper.standing.num_ended + len(in_hand) + len(self.waiting) + len(self.elsewhere)

    def has_more(self, in_hand: Set[int]) -> bool:
        """Say whether a slot would find a trial, as far as is known."""
        has_new = self.count_begun(in_hand) < self._keeper.standing.trials
        return bool(self.waiting) or (has_new and not self._is_objected(in_hand))

    def survey(self, in_hand: Set[int]) -> None:
        """Take in what other coordinators do."""
        own = in_hand | {trial.number for trial in self.waiting}
        self.elsewhere = self._ownership.look_around(lambda: self._keeper.survey(own))

    def find_next(self, in_hand: Set[int]) -> tuple[optuna.Trial, bool] | None:
        """Return the next trial, which is owned now, and whether it goes on; None where there is none."""
        while not self.waiting:
            if self._orphan is not None:
                self._adopt(self._orphan)
                continue
            if self._new is None:
                with self._ownership.deciding():
                    self._has_looked = not self._ownership.is_new
                    self.survey(in_hand)
                    self._orphan = self._ownership.claim_orphan(self.elsewhere)
                    self._new = self._ask(in_hand) if self._orphan is None else None
            if self._new is not None:
                new, self._new = self._new, None
                return new, False
            if self._orphan is None:
                self._next_look = time.monotonic() + self._ownership.look_interval_s
                return None
        return self.waiting.pop(0), True

    def watches_others(self) -> bool:
        """Say whether to stay for trials in other hands, to take over what is lost."""
        if not self.elsewhere or not self._has_looked:
            return bool(self.elsewhere)
        return not self._keeper.budget.find_objection() and self._ownership.must_watch()

    def drop(self, number: int) -> None:
        """Forget a trial that is another coordinator's."""
        self.waiting = [trial for trial in self.waiting if trial.number != number]
        self._orphan = None if self._orphan == number else self._orphan
        self._new = None if self._new is not None and self._new.number == number else self._new

    def _adopt(self, number: int) -> None:
        """Let a trial that is owned wait for its slot, unless it has ended, or is another coordinator's after all."""
        with suppress(LeaseLostError):
            self.waiting += adopt(number, self._keeper, self._executor, self._ownership)
        self._orphan = None

    def _ask(self, in_hand: Set[int]) -> optuna.Trial | None:
        if self.count_begun(in_hand) >= self._keeper.standing.trials:
            return None
        if self._is_objected(in_hand):
            return None
        trial = self._keeper.study.ask()
        try:
            self._ownership.claim_new(trial.number)
        except LeaseLostError:  # this process was suspended in between, and others did not wait
            return None
        return trial

    def _is_objected(self, in_hand: Set[int]) -> bool:
        """Say whether the budget lets no trial begin, and tell why, once, when that ends the sweep."""
        objection = self._keeper.budget.find_objection()
        if objection and not in_hand and not self._has_objected:
            self._has_objected = True
            self._keeper.observer.say(f"No more trials: {objection}.")
        return bool(objection)
