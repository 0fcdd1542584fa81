"""Rules that pick images of a dataset: the part of a run's config that says what it trains and validates on.

data/subset.py turns a rule into names. The folds of a cross-validation are lists of spans: which frames a fold holds
out can be read in its config, and does not depend on how it was found (training/crossval.py).
"""

from typing import Annotated, Literal

from pydantic import Field

from cityopt.settings import Section

Labels = Literal["fine", "coarse"]
"""gtFine: outlines of every object, for train and val. gtCoarse: large regions and much void, also for train_extra."""


Halves = Literal["city", "count"]
"""How a split is halved: by whole cities, as evenly as they allow, or by the order of its names (250 / 250 of val)."""


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
    part: Literal["all", "subset", "holdout", "fold", "rest", "first_half", "second_half"] = "all"
    """`holdout`: whole cities kept from trials; `subset`: `num_images` of the others, nested for growing counts.
    `fold`: the frames of `spans`; `rest`: all but those. Halves divide the split by `halves`."""
    spans: tuple[Span, ...] = ()
    halves: Halves = "city"
    num_images: Annotated[int, Field(strict=True, ge=1)] | None = None
    seed: int = 0
    holdout_fraction: float = 0.15

    def may_share(self, other: "ImageSet") -> bool:
        """Say whether two rules may pick the same image, under whatever labels, where one of them takes all parts."""
        return self.split == other.split and "all" in (self.part, other.part)

    def describe(self) -> str:
        """Return what tells these images from others of the same dataset: `val`, `val, first half by city`."""
        if self.part not in ("first_half", "second_half"):
            return self.split
        return f"{self.split}, {self.part.replace('_', ' ')} by {self.halves}"


def choose_val(halves: Literal["none"] | Halves, *, test: bool = False) -> ImageSet:
    """Return what finished models are judged on: all of val, or one half of it where the other is kept as a test."""
    if halves == "none":
        return ImageSet(split="val")
    return ImageSet(split="val", part="second_half" if test else "first_half", halves=halves)
