"""A trial that a coordinator owns is given out once, whatever goes wrong between the claim and the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import optuna
import pytest

from cityopt.search import agenda as module
from cityopt.search.agenda import Agenda
from cityopt.search.observer import Observer
from cityopt.search.ownership import LeaseLostError, SoleOwner


class Owner(SoleOwner):
    """One of several coordinators, to whom one thing happens."""

    def __init__(self, *, goes_away: bool = False, is_late: bool = False, orphan: int | None = None) -> None:
        self.goes_away, self.is_late, self.orphan = goes_away, is_late, orphan
        self.running: list[int] = []

    def look_around(self, survey: object) -> list[int]:
        return self.running

    @contextmanager
    def deciding(self, longest_s: float | None = None) -> Iterator[None]:
        yield
        if self.goes_away:
            self.goes_away = False
            raise ConnectionError

    def claim_new(self, number: int) -> None:
        if self.is_late:
            raise LeaseLostError(number)

    def claim_orphan(self, running: object) -> int | None:
        found, self.orphan = self.orphan, None
        return found


def make_agenda(owner: Owner, trials: int = 1) -> Agenda:
    study = optuna.create_study()
    standing = SimpleNamespace(num_ended=0, trials=trials)
    budget = SimpleNamespace(find_objection=lambda: "")
    keeper = SimpleNamespace(study=study, standing=standing, budget=budget, observer=Observer())
    return Agenda(keeper, SimpleNamespace(), owner)


def test_trial_is_given_out_when_the_database_went_away_after_it_was_asked_for():
    agenda = make_agenda(Owner(goes_away=True))
    with pytest.raises(ConnectionError):
        agenda.find_next(set())
    found = agenda.find_next(set())
    assert found is not None and (found[0].number, found[1]) == (0, False)
    assert agenda.find_next({0}) is None


def test_trial_is_left_to_others_when_they_took_it_between_ask_and_claim():
    assert make_agenda(Owner(is_late=True)).find_next(set()) is None


def test_other_trials_are_found_when_an_orphan_is_taken_before_it_is_adopted(monkeypatch: pytest.MonkeyPatch):
    def adopt(number: int, *_: object) -> list[optuna.Trial]:
        raise LeaseLostError(number)

    monkeypatch.setattr(module, "adopt", adopt)
    found = make_agenda(Owner(orphan=7)).find_next(set())
    assert found is not None and found[0].number == 0


def test_trial_is_forgotten_when_it_is_lost_before_it_is_given_out():
    agenda = make_agenda(Owner(goes_away=True), trials=2)
    with pytest.raises(ConnectionError):
        agenda.find_next(set())
    agenda.drop(0)
    found = agenda.find_next(set())
    assert found is not None and found[0].number == 1


def test_newcomer_stays_until_it_can_tell_whose_trials_are_lost_whatever_the_budget_says():
    owner = Owner()
    agenda = make_agenda(owner, trials=2)
    agenda._keeper.budget.find_objection = lambda: "nothing is left"
    said = list[str]()
    agenda._keeper.observer.say = said.append
    owner.running, owner.is_new = [0], True
    assert agenda.find_next(set()) is None and agenda.watches_others()
    owner.is_new = False
    assert agenda.watches_others()  # the last look was a newcomer's
    assert agenda.find_next(set()) is None and not agenda.watches_others()
    assert said == ["No more trials: nothing is left."]
    owner.running, owner.is_new = [], True
    assert agenda.find_next(set()) is None and not agenda.watches_others()
