"""Folds of a split: what must hold for any dataset, and how good they are beside scikit-learn's and the best."""

import itertools
from collections import Counter

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from cityopt.data.cityscapes import FrameFacts
from cityopt.data.subset import pick_images
from cityopt.errors import ConfigError, DataError
from cityopt.image_set import ImageSet
from cityopt.labels import EVALUATED_LABELS, THING_NAMES
from cityopt.training.crossval import Division, divide_frames

SIZES = (174, 96, 316, 154, 85, 221, 109, 248, 196, 119, 99, 94, 365, 196, 144, 95, 142, 122)  # Cityscapes' train
CITIES = {f"city{number:02d}": size for number, size in enumerate(SIZES)}
FREQUENCIES = (0.8, 0.35, 0.95, 0.12, 0.09, 0.05, 0.17, 0.55)


def make_fact(city, number, shown=(), train_ids=()):
    counts = tuple(int(index in shown) for index in range(1, 9))
    return FrameFacts(f"{city}_{number:06d}_000019", "train", city, (24, 48), counts, 0, 1, "0", tuple(train_ids))


def make_facts(seed, cities, rarity=1.0):
    """Draw frames whose cities differ in what they show."""
    rng = np.random.default_rng(seed)
    facts = []
    for city, size in cities.items():
        chances = np.array(FREQUENCIES) * rarity * rng.uniform(0, 1.5, 8)
        facts += [make_fact(city, number, np.flatnonzero(rng.random(8) < chances) + 1) for number in range(size)]
    return facts


def draw_cities(seed, low=3, high=12):
    rng = np.random.default_rng([seed, 99])
    return {f"c{number}": int(rng.integers(1, 40)) for number in range(rng.integers(low, high))}


def divide(facts, folds=5, **options):
    return divide_frames(facts, **{"seed": 0, "task": "instance", **options}, folds=folds)


def sides_of(facts, division: Division):
    """Return the names of each fold's validation and training images, as a worker picks them."""
    return [
        tuple(set(pick_images(facts, ImageSet(part=part, spans=fold.spans))) for part in ("fold", "rest"))
        for fold in division.folds
    ]


def classes_of(facts, names):
    return {index for fact in facts if fact.name in names for index, count in enumerate(fact.class_counts) if count}


def count_missing(facts, sides):
    """Count slowly what `divide_frames` counts in bits: classes of the split that a side of a fold lacks."""
    everything = classes_of(facts, {fact.name for fact in facts})
    return sum(len(everything - classes_of(facts, side)) for pair in sides for side in pair)


@pytest.mark.parametrize("seed", range(12))
def test_every_image_validates_once_and_no_city_is_on_both_sides(seed):
    cities = draw_cities(seed, low=5)
    facts = make_facts(seed, cities, rarity=0.5)
    division = divide(facts, folds=int(np.random.default_rng(seed).integers(2, 6)), seed=seed)
    sides = sides_of(facts, division)
    assert Counter(name for held, _ in sides for name in held) == Counter(fact.name for fact in facts)
    for fold, (held, rest) in zip(division.folds, sides, strict=True):
        assert held and rest and held | rest == {fact.name for fact in facts}
        assert {name.split("_")[0] for name in held}.isdisjoint(name.split("_")[0] for name in rest)
        assert (fold.num_validation, fold.num_train) == (len(held), len(rest))


@pytest.mark.parametrize("seed", range(12))
def test_absent_classes_are_those_that_a_side_does_not_show(seed):
    facts = make_facts(seed, draw_cities(seed), rarity=0.03)
    division = divide(facts, folds=3, seed=seed)
    everything = classes_of(facts, {fact.name for fact in facts})
    assert division.absent == tuple(name for index, name in enumerate(THING_NAMES) if index not in everything)
    for fold, (held, rest) in zip(division.folds, sides_of(facts, division), strict=True):
        for absent, side in ((fold.absent_validation, held), (fold.absent_train, rest)):
            missing = everything - classes_of(facts, side)
            assert absent == tuple(name for index, name in enumerate(THING_NAMES) if index in missing)


def find_best(facts, folds):
    """Try every division by city: the fewest missing classes, then the least sum of squared sizes."""
    cities = sorted({fact.city for fact in facts})
    sizes = Counter(fact.city for fact in facts)
    shown = {
        city: classes_of([fact for fact in facts if fact.city == city], {f.name for f in facts}) for city in cities
    }
    everything = set().union(*shown.values())
    best = None
    for choice in itertools.product(range(folds), repeat=len(cities)):
        if len(set(choice)) < folds:
            continue
        parts = [[city for city, its in zip(cities, choice, strict=True) if its == fold] for fold in range(folds)]
        seen = [set().union(*(shown[city] for city in part)) for part in parts]
        missing = sum(len(everything - classes) for classes in seen)
        for fold in range(folds):
            missing += len(everything - set().union(*(classes for other, classes in enumerate(seen) if other != fold)))
        score = missing, sum(sum(sizes[city] for city in part) ** 2 for part in parts)
        best = score if best is None else min(best, score)
    return best


@pytest.mark.parametrize("seed", range(6))
def test_division_is_the_best_there_is_when_all_can_be_tried(seed):
    facts = make_facts(seed, draw_cities(seed, low=6, high=8), rarity=0.1)
    for folds in (2, 3):
        sides = sides_of(facts, divide(facts, folds=folds, seed=seed))
        assert (count_missing(facts, sides), sum(len(held) ** 2 for held, _ in sides)) == find_best(facts, folds)


@pytest.mark.parametrize("folds", [2, 5, 9])
def test_folds_are_as_equal_as_scikit_learns_when_every_city_shows_every_class(folds):
    facts = [make_fact(city, number, range(1, 9)) for city, size in CITIES.items() for number in range(size)]
    sizes = [fold.num_validation for fold in divide(facts, folds=folds).folds]
    groups = [fact.city for fact in facts]
    peers = [len(held) for _, held in GroupKFold(folds).split(facts, groups=groups)]
    assert sum(sizes) == len(facts) and max(sizes) - min(sizes) <= max(peers) - min(peers)


@pytest.mark.filterwarnings("ignore:The least populated class in y")
@pytest.mark.parametrize("seed", range(4))
def test_rare_classes_are_in_more_folds_than_with_scikit_learn(seed):
    facts = make_facts(seed, CITIES, rarity=0.02)
    sides = sides_of(facts, divide(facts, seed=seed))
    rarest = [min(np.flatnonzero(fact.class_counts), key=FREQUENCIES.__getitem__, default=-1) for fact in facts]
    names = np.array([fact.name for fact in facts])
    peers = StratifiedGroupKFold(5).split(facts, rarest, [fact.city for fact in facts])
    peer_sides = [(set(names[held]), set(names[rest])) for rest, held in peers]
    assert count_missing(facts, sides) <= count_missing(facts, peer_sides)
    sizes = [fold.num_validation for fold in divide(facts, seed=seed).folds]
    assert max(sizes) / min(sizes) < 1.25


def test_division_depends_on_seed_and_not_on_the_order_of_files():
    facts = make_facts(3, CITIES)
    mixed = [facts[index] for index in np.random.default_rng(0).permutation(len(facts))]
    assert divide(facts, seed=4) == divide(mixed, seed=4)
    assert len({divide(facts, seed=seed) for seed in range(5)}) == 5


def test_blocks_are_contiguous_and_every_city_is_in_every_fold():
    cities = {"ulm": 34, "jena": 55, "bonn": 111}
    facts = make_facts(0, cities)
    division = divide(facts, blocks=True)
    sides = sides_of(facts, division)
    assert Counter(name for held, _ in sides for name in held) == Counter(fact.name for fact in facts)
    assert [fold.num_validation for fold in division.folds] == [40] * 5
    for held, _ in sides:
        for city, size in cities.items():
            numbers = sorted(int(name.split("_")[1]) for name in held if name.startswith(city))
            assert numbers == list(range(numbers[0], numbers[-1] + 1)) and abs(len(numbers) - size / 5) < 1


def test_blocks_of_single_frames_fill_all_folds_when_cities_are_small():
    facts = make_facts(0, {"ulm": 2, "jena": 3, "bonn": 1})
    assert [fold.num_validation for fold in divide(facts, folds=6, blocks=True).folds] == [1] * 6


def test_class_in_one_city_alone_is_named_where_it_is_missing():
    facts = [make_fact(city, number, (3,)) for city in "abc" for number in range(4)] + [make_fact("b", 9, (3, 6))]
    division = divide(facts, folds=3)
    assert [fold.absent_validation for fold in division.folds] == [("train",), (), ("train",)]
    assert [fold.absent_train for fold in division.folds] == [(), ("train",), ()]
    assert division.describe_gaps() == [
        "no training image shows person, rider, truck, bus, motorcycle, bicycle",
        "fold 1: its validation images show no train",
        "fold 2: its training images show no train",
        "fold 3: its validation images show no train",
    ]


def test_pixels_count_when_the_model_is_semantic_and_instances_when_it_is_not():
    facts = [make_fact(city, 0, (3,), (0, 16)) for city in "abcd"]
    facts += [make_fact(city, 1, (), (0, 10)) for city in "ac"]
    semantic = divide(facts, folds=2, task="semantic")
    names = [label.name for label in EVALUATED_LABELS]
    assert set(names) - set(semantic.absent) == {"road", "train", "sky"}
    assert not any(fold.absent_validation for fold in semantic.folds)  # the two with sky are apart
    assert set(THING_NAMES) - set(divide(facts, folds=2).absent) == {"car"}


def test_fewer_cities_than_folds_are_refused_with_what_can_be_done():
    facts = make_facts(0, {"ulm": 9, "jena": 9, "bonn": 9})
    with pytest.raises(DataError, match=r"`--folds 5` needs as many cities.*train has 3 \(bonn, jena, ulm\)") as error:
        divide(facts)
    assert "Use --folds 3, or --blocks" in str(error.value) and "resemble each other" in str(error.value)
    with pytest.raises(DataError, match=r"has 1 \(ulm\)\. Use --blocks") as error:
        divide(make_facts(0, {"ulm": 9}), folds=2)
    with pytest.raises(DataError, match="`--folds 28 --blocks` needs as many training images, but there are 27"):
        divide(facts, folds=28, blocks=True)


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_fewer_than_two_folds_are_refused(folds):
    with pytest.raises(ConfigError, match=rf"`--folds` must be at least 2, but got {folds}"):
        divide(make_facts(0, {"ulm": 9, "jena": 3}), folds=folds)
