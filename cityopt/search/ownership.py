"""Who may work on which trials of a study: the seam between one coordinator and several.

On SQLite the study's lock makes one coordinator the owner of everything (`SoleOwner`), at no cost. On PostgreSQL
several share a study, and each owns what it has leases for (`leased_owner.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext


class LeaseLostError(Exception):
    """A trial belongs to another coordinator by now: nothing more may be written about it here."""

    def __init__(self, number: int) -> None:
        super().__init__(f"trial {number} is another coordinator's")
        self.number = number


class Ownership(ABC):
    """What this coordinator owns of a study. As a block: what it still owns at the end is free for others at once."""

    look_interval_s: float
    """Seconds between two looks for work where there was none."""

    @property
    @abstractmethod
    def is_new(self) -> bool:
        """Whether it may soon find that trials at work elsewhere are in nobody's hands."""

    @abstractmethod
    def deciding(self, longest_s: float | None = None) -> AbstractContextManager[None]:
        """Keep other coordinators from deciding who tries what until the block ends.

        One that is suspended in it keeps them off for `longest_s` seconds at most (a minute).
        """

    @abstractmethod
    def inherit(self, running: Sequence[int]) -> list[int]:
        """Return which trials of earlier coordinators, RUNNING at the start, are all taken up at once."""

    @abstractmethod
    def look_around(self, survey: Callable[[], list[int]]) -> list[int]:
        """Return what a survey finds at work in other hands, where there may be others."""

    @abstractmethod
    def claim_new(self, number: int) -> None:
        """Own a trial that was just asked for, while `deciding`."""

    @abstractmethod
    def claim_orphan(self, running: Sequence[int]) -> int | None:
        """Own one of these trials, at work elsewhere, whose coordinator is gone; None where all are in good hands.

        While `deciding`.
        """

    @abstractmethod
    def release(self, number: int) -> None:
        """Own a trial no longer: it has ended."""

    @abstractmethod
    def writing(self, number: int) -> AbstractContextManager[None]:
        """Let what the block writes into the studies' database be written only while the trial is this coordinator's.

        Raises LeaseLostError, and the block's last write is undone: it is not any more.
        """

    @abstractmethod
    def take_lost(self) -> set[int]:
        """Return the trials that were found to be another coordinator's since this was asked last."""

    @abstractmethod
    def holds_parent(self) -> bool:
        """Say whether this coordinator writes the study's own run. It takes that up where nobody does."""

    @abstractmethod
    def must_watch(self) -> bool:
        """Say whether to stay for trials in other hands, to take over what is lost: one coordinator does."""

    @abstractmethod
    def leave(self) -> bool:
        """Be there no longer. Says whether this coordinator was the last, who ends the study's own run."""

    @abstractmethod
    def hand_over(self, prepare: Callable[[], None]) -> None:
        """Let others have this coordinator's trials at once, where there may be others: then `prepare` comes first."""

    @abstractmethod
    def is_alone(self) -> bool:
        """Say whether no other coordinator is at work on the study."""

    @abstractmethod
    def is_last(self) -> bool:
        """Say whether this coordinator leaves last where several may have been: what the others left is its to end."""

    def __enter__(self) -> "Ownership":
        """Begin to own."""
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Let others have the rest."""


class SoleOwner(Ownership):
    """Owns all: the study's lock says so."""

    look_interval_s = 0.0
    is_new = False

    def deciding(self, longest_s: float | None = None) -> AbstractContextManager[None]:
        """Decide freely."""
        return nullcontext()

    def inherit(self, running: Sequence[int]) -> list[int]:
        """Return all of them."""
        return list(running)

    def look_around(self, survey: Callable[[], list[int]]) -> list[int]:
        """Find nothing, without looking."""
        return []

    def claim_new(self, number: int) -> None:
        """Own it anyway."""

    def claim_orphan(self, running: Sequence[int]) -> int | None:
        """Find none: nobody else works on the study."""
        return None

    def release(self, number: int) -> None:
        """Have nothing to release."""

    def writing(self, number: int) -> AbstractContextManager[None]:
        """Write freely."""
        return nullcontext()

    def take_lost(self) -> set[int]:
        """Never lose one."""
        return set()

    def holds_parent(self) -> bool:
        """Write it."""
        return True

    def must_watch(self) -> bool:
        """Have nobody to watch."""
        return False

    def leave(self) -> bool:
        """Be the last."""
        return True

    def hand_over(self, prepare: Callable[[], None]) -> None:
        """Keep them for the next start."""

    def is_alone(self) -> bool:
        """Be alone."""
        return True

    def is_last(self) -> bool:
        """Have never been one of several: the start has ended what was left."""
        return False

    def __exit__(self, *_: object) -> None:
        """Have nothing to give away."""
