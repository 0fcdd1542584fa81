"""Pick images of a dataset by a rule: a city-disjoint holdout, a nested subset, a fold's sides, or all.

Stands between the facts of data/cityscapes.py and everything that trains or validates. The choice depends on names,
cities, class counts and the seed alone: not on the order of files, the machine or a library's random numbers.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from cityopt.data.cityscapes import Frame, FrameFacts
from cityopt.errors import DataError
from cityopt.image_set import ImageSet

Named = TypeVar("Named", FrameFacts, Frame)
_LOG = logging.getLogger("cityopt")
_DRAWS = 200
"""Random draws of cities among which the best holdout is taken."""


def pick_images(facts: Sequence[FrameFacts], image_set: ImageSet) -> list[str]:
    """Return the names of the images that a rule picks, sorted.

    `facts` are those of the whole split. `holdout` is whole cities, drawn from the seed until they hold about
    `holdout_fraction` of the images, so that every class is in both parts where the data allows it; a dataset of one
    city gives the last frames of its sequence instead, and a warning. `subset` is the rest. With `num_images` n, the
    choice for n is part of the choice for n + 1; every class is in it if n images can show them all, and cities share
    it in proportion. Of a holdout, `num_images` is the most it may have. `fold` is the frames of the rule's spans,
    `rest` all others. Halves are those of `pick_half`.

    Raises DataError: no images, a single one to divide, spans that leave a side empty, or fewer than `num_images`.
    """
    chosen = [fact for fact in facts if fact.split == image_set.split]
    if not chosen:
        raise DataError(
            f"split {image_set.split} must have images to pick from, but has none. Run `cityopt data check`."
        )
    if image_set.part in ("fold", "rest"):
        chosen = _pick_side(chosen, image_set)
    elif image_set.part in ("first_half", "second_half"):
        chosen = pick_half(chosen, image_set)
    elif image_set.part != "all":
        holdout = _pick_holdout(chosen, image_set.holdout_fraction, image_set.seed)
        chosen = [fact for fact in chosen if (fact.name in holdout) == (image_set.part == "holdout")]
    count = image_set.num_images
    if count is not None and count > len(chosen) and image_set.part != "holdout":
        raise DataError(
            f"`data.num_images` must be at most {len(chosen)}, the images of {image_set.split} outside the holdout, "
            f"but got {count}. Use null to take all."
            if image_set.part == "subset"
            else f"split {image_set.split} must have {count} images, but has {len(chosen)}. Ask for fewer, or for all."
        )
    return sorted(fact.name for fact in _order_images(chosen, image_set.seed)[:count])


def hash_names(names: Iterable[str]) -> str:
    """Return 16 hex digits that tell one set of images from another, whatever its order."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(set(names))).encode()).hexdigest()[:16]


def _pick_side(facts: Sequence[FrameFacts], image_set: ImageSet) -> list[FrameFacts]:
    """Return one side of a fold."""
    held = {fact.name for fact in facts if any(span.holds(fact.city, fact.name) for span in image_set.spans)}
    chosen = [fact for fact in facts if (fact.name in held) == (image_set.part == "fold")]
    if not chosen:
        spans = ", ".join(map(str, image_set.spans)) or "none"
        raise DataError(
            f"a fold must hold frames of {image_set.split} and leave some, but the spans {spans} hold {len(held)} of "
            f"{len(facts)}. Divide the split again with `cityopt crossval`."
        )
    return chosen


def pick_half(frames: Sequence[Named], image_set: ImageSet) -> list[Named]:
    """Return one half of a split's frames, in their order; both together are the split.

    By `count`, the first half ends with the middle of the names. By `city`, the largest city comes first and each
    other one, by size, goes to the smaller half; the first half is the one that has the first city by name.

    Raises DataError: the other half would be empty.
    """
    if image_set.halves == "count":
        first = set(sorted(frame.name for frame in frames)[: (len(frames) + 1) // 2])
    else:
        cities = _halve_cities(Counter(frame.city for frame in frames))
        first = {frame.name for frame in frames if frame.city in cities}
    if len(first) == len(frames):
        what = "one image" if len(frames) == 1 else "one city"
        raise DataError(
            f"{image_set.split} must have two cities or images to be halved by {image_set.halves}, but has {what}. "
            "Use `--set data.val_halves=count`, or none."
        )
    return [frame for frame in frames if (frame.name in first) == (image_set.part == "first_half")]


def _halve_cities(sizes: Mapping[str, int]) -> set[str]:
    """Return the cities of the first half."""
    halves: tuple[set[str], set[str]] = (set(), set())
    totals = [0, 0]
    for city in sorted(sizes, key=lambda city: (-sizes[city], city)):
        side = int(totals[1] < totals[0])
        halves[side].add(city)
        totals[side] += sizes[city]
    return halves[min(sizes) in halves[1]]


def _pick_holdout(facts: Sequence[FrameFacts], fraction: float, seed: int) -> set[str]:
    """Return the names of the images to hold out; at least one image stays on either side."""
    if len(facts) < 2:
        raise DataError(f"a holdout needs at least 2 images, but the dataset has {len(facts)}. Add images.")
    target = fraction * len(facts)
    sizes: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    for fact in facts:
        sizes[fact.city] += 1
        shown[fact.city] |= _class_bits(fact)
    if len(sizes) == 1:
        count = min(max(1, round(target)), len(facts) - 1)
        _LOG.warning(
            "all images are of one city: its last %d frames are the holdout, which may resemble the rest", count
        )
        return {fact.name for fact in sorted(facts, key=lambda fact: fact.name)[-count:]}
    draws = [_draw_cities(sizes, target, f"{seed}/{number}") for number in range(_DRAWS)]
    held = min(draws, key=lambda draw: _judge_draw(sizes, shown, draw, target))
    names = {fact.name for fact in facts if fact.city in held}
    if not 0.5 <= len(names) / target <= 2:
        _LOG.warning("whole cities make a holdout of %d images where %.0f were wanted", len(names), target)
    return names


def _draw_cities(sizes: Mapping[str, int], target: float, salt: str) -> set[str]:
    """Take cities in random order as long as each brings the number of images nearer to the target."""
    held: set[str] = set()
    total = 0
    for city in sorted(sizes, key=lambda city: _rank(salt, city)):
        grown = total + sizes[city]
        if abs(grown - target) < abs(total - target) and len(held) < len(sizes) - 1:
            held.add(city)
            total = grown
    return held or {min(sizes, key=lambda city: (sizes[city], _rank(salt, city)))}


def _judge_draw(sizes: Mapping[str, int], shown: Mapping[str, int], held: set[str], target: float) -> tuple[int, float]:
    """Return what a good holdout has little of: classes missing on a side, and distance from the target in tenths."""
    sides = [0, 0]
    for city, bits in shown.items():
        sides[city in held] |= bits
    missing = sum((sides[0] | sides[1]).bit_count() - side.bit_count() for side in sides)
    return missing, round(abs(sum(sizes[city] for city in held) - target) / target, 1)


def _order_images(facts: Sequence[FrameFacts], seed: int) -> list[FrameFacts]:
    """Order images so that every beginning is a good choice: first the fewest that show all classes, then by share.

    Inside a city the order is random; the i-th of a city's m images goes to (i + 1/2) / m of the whole.
    """
    ranked = sorted(facts, key=lambda fact: _rank(str(seed), fact.name))
    first = _cover_classes(ranked)
    rest = [fact for fact in ranked if fact not in first]
    by_city: dict[str, list[str]] = defaultdict(list)
    for fact in (*first, *rest):
        by_city[fact.city].append(fact.name)
    places = {name: (index + 0.5) / len(names) for names in by_city.values() for index, name in enumerate(names)}
    return [*first, *sorted(rest, key=lambda fact: places[fact.name])]


def _cover_classes(facts: Sequence[FrameFacts]) -> list[FrameFacts]:
    """Return as few images as possible that together show every class that any shows, the richest first.

    Goes breadth first through the sets of classes that k images can show; there are at most 256.
    """
    examples: dict[int, FrameFacts] = {}
    for fact in facts:
        examples.setdefault(_class_bits(fact), fact)
    wanted = 0
    for bits in examples:
        wanted |= bits
    reached: dict[int, list[FrameFacts]] = {0: []}
    while wanted not in reached:
        for shown, chosen in list(reached.items()):
            for bits, fact in examples.items():
                reached.setdefault(shown | bits, [*chosen, fact])
    return sorted(reached[wanted], key=lambda fact: -_class_bits(fact).bit_count())


def _class_bits(fact: FrameFacts) -> int:
    return sum(1 << number for number in fact.list_classes("instance"))


def _rank(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}/{name}".encode()).digest()
