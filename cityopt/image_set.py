"""Rules that pick images of a dataset: the part of a run's config that says what it trains and validates on.

data/subset.py turns a rule into names. The folds of a cross-validation are lists of spans: which frames a fold holds
out can be read in its config, and does not depend on how it was found (training/crossval.py).
"""

from typing import Annotated, Literal

from pydantic import Field

from cityopt.settings import Section

Labels = Literal["fine", "coarse"]
"""gtFine: outlines of every object, for train and val. gtCoarse: large regions and much void, also for train_extra."""


class Span(Section):
    """A city's frames, or those from one name to another, both included."""

    city: str
    first: str | None = None
    """Name of a block's first frame; null begins with the city."""
    last: str | None = None

    def holds(self, city: str, name: str) -> bool:
        """Say whether a frame, given its city and name, is one of them."""
        after, before = self.first is None or self.first <= name, self.last is None or name <= self.last
        return city == self.city and after and before

    def __str__(self) -> str:
        if self.first is None and self.last is None:
            return self.city
        return f"{self.first or self.city} … {self.last or self.city}"


class ImageSet(Section):
    """A rule that picks images of a dataset, the same ones wherever it is applied."""

    split: Literal["train", "train_extra", "val"] = "train"
    labels: Labels = "fine"
    part: Literal["all", "subset", "holdout", "fold", "rest"] = "all"
    """`holdout`: whole cities kept from trials; `subset`: `num_images` of the others, nested for growing counts.
    `fold`: the frames of `spans`; `rest`: all but those."""
    spans: tuple[Span, ...] = ()
    num_images: Annotated[int, Field(strict=True, ge=1)] | None = None
    seed: int = 0
    holdout_fraction: float = 0.15
