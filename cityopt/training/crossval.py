"""Cross-validation's folds: a split's frames divided by city, or by contiguous blocks of each city's frames.

Pure, from facts about the frames to spans: search/crossvalidation.py trains what comes out. Frames of one city resemble
each other, so a city is on one side of a fold alone. Blocks divide each city among the folds, for datasets of fewer
cities than folds; neighbours on either side of a cut then make scores look better than on unseen cities.

scikit-learn's StratifiedGroupKFold balances one class per sample, but a frame shows many. So here divisions are drawn
and improved by random moves and swaps, and the best is taken. What counts, in this order: no fold is empty; few classes
are missing on a side of a fold; folds have equal numbers of frames.
"""

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cityopt.config import Task
from cityopt.data.cityscapes import FrameFacts
from cityopt.errors import ConfigError, DataError
from cityopt.image_set import Span
from cityopt.labels import EVALUATED_LABELS, THING_LABELS
from cityopt.runtime import derive_seed

BLOCKS_REMARK = "neighbouring frames resemble each other, so scores are higher than on unseen cities"
_NUM_DRAWS = 8
_NUM_PROPOSALS = 1500


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold; all frames outside its spans are its training side."""

    number: int
    """From 1."""
    spans: tuple[Span, ...]
    """Frames to validate on."""
    num_train: int
    num_validation: int
    absent_validation: tuple[str, ...]
    """Classes that the split shows and the fold's validation side does not."""
    absent_train: tuple[str, ...]
    """Classes that the split shows and the fold's training side does not."""


@dataclass(frozen=True, slots=True)
class Division:
    """A split's frames in folds: each frame validates in exactly one of them."""

    folds: tuple[Fold, ...]
    blocks: bool
    absent: tuple[str, ...]
    """Classes that no frame of the split shows."""

    def describe_gaps(self) -> list[str]:
        """Return a line for each side of a fold that lacks classes, and for classes that are nowhere."""
        lines = [f"no training image shows {', '.join(self.absent)}"] if self.absent else []
        for fold in self.folds:
            sides = {"validation": fold.absent_validation, "training": fold.absent_train}
            lines += [
                f"fold {fold.number}: its {side} images show no {', '.join(classes)}"
                for side, classes in sides.items()
                if classes
            ]
        return lines


@dataclass(frozen=True, slots=True)
class _Group:
    """Frames that stay together: a city, or a block of one."""

    span: Span
    size: int
    classes: int
    """A bit for each class that they show."""


def divide_frames(facts: Sequence[FrameFacts], *, folds: int, seed: int, task: Task, blocks: bool = False) -> Division:
    """Divide the frames of a split, given in any order, into folds by city or, with `blocks`, within each city.

    A class counts as shown where there is a single instance of it, for models of pixels one pixel of it.

    Raises ConfigError: fewer than 2 folds. Raises DataError: fewer cities than folds, or frames with `blocks`.
    """
    if folds < 2:
        raise ConfigError(f"`--folds` must be at least 2, but got {folds}.")
    names = [label.name for label in (THING_LABELS if task == "instance" else EVALUATED_LABELS)]
    families = _group_frames(facts, task, folds if blocks else 1)
    _check_enough(families, folds, len(facts), blocks=blocks)
    groups = [group for family in families for group in family]
    draws = [_draw(families, folds, random.Random(derive_seed(seed, "folds", number))) for number in range(_NUM_DRAWS)]
    best = min(draws, key=lambda draw: _judge(groups, draw, folds))
    return _describe(groups, best, folds, names, blocks=blocks)


def _group_frames(facts: Sequence[FrameFacts], task: Task, num_blocks: int) -> list[list[_Group]]:
    """Return the blocks of each city, by ascending name; a city of few frames has fewer blocks."""
    by_city: dict[str, list[FrameFacts]] = defaultdict(list)
    for fact in sorted(facts, key=lambda fact: fact.name):
        by_city[fact.city].append(fact)
    families = []
    for city, frames in sorted(by_city.items()):
        count = min(num_blocks, len(frames))
        cuts = [len(frames) * index // count for index in range(count + 1)]
        parts = [frames[start:end] for start, end in itertools.pairwise(cuts)]
        families.append([_make_group(city, part, task, whole=num_blocks == 1) for part in parts])
    return families


def _make_group(city: str, frames: Sequence[FrameFacts], task: Task, *, whole: bool) -> _Group:
    span = Span(city=city) if whole else Span(city=city, first=frames[0].name, last=frames[-1].name)
    classes = 0
    for fact in frames:
        classes |= _class_bits(fact, task)
    return _Group(span, len(frames), classes)


def _class_bits(fact: FrameFacts, task: Task) -> int:
    return sum(1 << number for number in fact.list_classes(task))


def _check_enough(families: Sequence[Sequence[_Group]], folds: int, num_frames: int, *, blocks: bool) -> None:
    most = num_frames if blocks else len(families)
    if folds <= most:
        return
    if blocks:
        raise DataError(f"`--folds {folds} --blocks` needs as many training images, but there are {most}.")
    cities = ", ".join(family[0].span.city for family in families[:8]) + (", …" if len(families) > 8 else "")
    fewer = f"Use --folds {most}, or" if most > 1 else "Use"
    raise DataError(
        f"`--folds {folds}` needs as many cities, since folds are grouped by city, but train has {most} ({cities}). "
        f"{fewer} --blocks: contiguous blocks of each city's frames; {BLOCKS_REMARK}."
    )


def _draw(families: Sequence[Sequence[_Group]], folds: int, rng: random.Random) -> list[int]:
    """Return a fold, from 0, for each group: drawn at random, then improved until all proposals are made.

    A family's groups are never two in a fold.
    """
    groups = [group for family in families for group in family]
    family_of = [number for number, family in enumerate(families) for _ in family]
    assigned = _begin(families, folds, rng)
    best = _judge(groups, assigned, folds)
    for _ in range(_NUM_PROPOSALS):
        group, fold = rng.randrange(len(groups)), rng.randrange(folds)
        others = [other for other, its in enumerate(assigned) if its == fold]
        kin = [other for other in others if family_of[other] == family_of[group]]
        partner = kin[0] if kin else None
        if len(families) == len(groups) and others and rng.random() < 0.5:
            partner = rng.choice(others)
        proposed = list(assigned)
        if partner is not None:
            proposed[partner] = assigned[group]
        proposed[group] = fold
        score = _judge(groups, proposed, folds)
        if score <= best:  # a step that changes nothing leads away from where none improves
            assigned, best = proposed, score
    return assigned


def _begin(families: Sequence[Sequence[_Group]], folds: int, rng: random.Random) -> list[int]:
    """Return folds for all groups: family after family, in random order, to those that have the fewest frames."""
    sizes = [0] * folds
    found: dict[int, list[int]] = {}
    for number in rng.sample(range(len(families)), len(families)):
        ranked = sorted(rng.sample(range(folds), folds), key=sizes.__getitem__)
        found[number] = rng.sample(ranked[: len(families[number])], len(families[number]))
        for group, fold in zip(families[number], found[number], strict=True):
            sizes[fold] += group.size
    return [fold for number in range(len(families)) for fold in found[number]]


def _judge(groups: Sequence[_Group], assigned: Sequence[int], folds: int) -> tuple[int, int, int]:
    """Return what a good division has little of: empty folds, classes missing on sides, the sum of squared sizes."""
    sizes, shown = [0] * folds, [0] * folds
    for group, fold in zip(groups, assigned, strict=True):
        sizes[fold] += group.size
        shown[fold] |= group.classes
    once = twice = 0
    for classes in shown:
        twice |= once & classes
        once |= classes
    missing = sum((once & ~classes).bit_count() for classes in shown)  # on validation sides
    missing += (once & ~twice).bit_count()  # on training sides: what one fold alone shows, the others lack
    return sizes.count(0), missing, sum(size * size for size in sizes)


def _describe(
    groups: Sequence[_Group], assigned: Sequence[int], folds: int, names: Sequence[str], *, blocks: bool
) -> Division:
    """Put a division into words; its folds are numbered by their first span."""
    sides = [[group for group, its in zip(groups, assigned, strict=True) if its == fold] for fold in range(folds)]
    sides.sort(key=lambda side: (side[0].span.city, side[0].span.first or ""))
    shown = [_unite(side) for side in sides]
    everything, num_frames = _unite(groups), sum(group.size for group in groups)

    def list_absent(present: int, wanted: int) -> tuple[str, ...]:
        return tuple(name for bit, name in enumerate(names) if wanted & ~present & 1 << bit)

    found = []
    for number, side in enumerate(sides, start=1):
        size = sum(group.size for group in side)
        rest = _unite([group for other in sides if other is not side for group in other])
        spans = tuple(group.span for group in side)
        absent = list_absent(shown[number - 1], everything), list_absent(rest, everything)
        found.append(Fold(number, spans, num_frames - size, size, *absent))
    return Division(tuple(found), blocks, list_absent(everything, (1 << len(names)) - 1))


def _unite(groups: Sequence[_Group]) -> int:
    classes = 0
    for group in groups:
        classes |= group.classes
    return classes
