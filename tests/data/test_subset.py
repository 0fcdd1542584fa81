import itertools
import logging

import numpy as np
import pytest
from tiny_tree import make_fact

from cityopt.data.cityscapes import FrameFacts
from cityopt.data.subset import hash_names, pick_images
from cityopt.errors import DataError
from cityopt.image_set import ImageSet, Span

CITY_SIZES = {  # of the real training split
    "aachen": 174,
    "bochum": 96,
    "bremen": 316,
    "cologne": 154,
    "darmstadt": 85,
    "dusseldorf": 221,
    "erfurt": 109,
    "hamburg": 248,
    "hanover": 196,
    "jena": 119,
    "krefeld": 99,
    "monchengladbach": 94,
    "strasbourg": 365,
    "stuttgart": 196,
    "tubingen": 144,
    "ulm": 95,
    "weimar": 142,
    "zurich": 122,
}
FREQUENCIES = (0.8, 0.35, 0.95, 0.12, 0.09, 0.05, 0.17, 0.55)


def make_facts(seed: int, sizes: dict[str, int], rarity: float = 1.0) -> list[FrameFacts]:
    rng = np.random.default_rng(seed)
    facts = []
    for city, count in sizes.items():
        for number in range(count):
            shown = [index for index, chance in enumerate(FREQUENCIES, start=1) if rng.random() < chance * rarity]
            facts.append(make_fact(city, number, tuple(shown)))
    return facts


def pick(facts: list[FrameFacts], part: str, count: int | None = None, seed: int = 0, share: float = 0.15) -> list[str]:
    image_set = ImageSet.model_validate(
        {"split": "train", "part": part, "num_images": count, "seed": seed, "holdout_fraction": share}
    )
    return pick_images(facts, image_set)


def classes_of(facts: list[FrameFacts], names: list[str] | None = None) -> set[int]:
    wanted = None if names is None else set(names)
    return {
        index
        for fact in facts
        if wanted is None or fact.name in wanted
        for index, n in enumerate(fact.class_counts)
        if n
    }


def city_of(name: str) -> str:
    return name.split("_")[0]


@pytest.mark.parametrize("part", ["all", "subset", "holdout"])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_pick_images_is_nested_when_the_count_grows(part: str, seed: int) -> None:
    facts = make_facts(seed, {"ulm": 9, "jena": 21, "bonn": 14, "graz": 5}, rarity=0.4)
    everything = pick(facts, part, seed=seed)
    before: set[str] = set()
    for count in range(1, len(everything) + 1):
        names = pick(facts, part, count, seed)
        assert len(names) == count == len(set(names))
        assert names == sorted(names)
        assert before < set(names)
        before = set(names)
    assert before == set(everything)


@pytest.mark.parametrize("seed", range(6))
def test_pick_images_shows_every_class_when_the_count_can(seed: int) -> None:
    facts = make_facts(seed, {"ulm": 12, "jena": 12, "bonn": 12}, rarity=0.3)
    pool = pick(facts, "subset", seed=seed)
    by_name = {fact.name: fact for fact in facts}
    wanted = classes_of(facts, pool)
    fewest = next(
        count
        for count in range(1, 9)
        for names in itertools.combinations(pool, count)
        if classes_of([by_name[name] for name in names]) == wanted
    )
    for count in range(fewest, len(pool) + 1):
        assert classes_of(facts, pick(facts, "subset", count, seed)) == wanted


def test_pick_images_shares_among_cities_when_some_are_larger() -> None:
    facts = make_facts(0, CITY_SIZES)
    pool = pick(facts, "subset")
    share = {city: sum(city_of(name) == city for name in pool) / len(pool) for city in map(city_of, pool)}
    for count in (40, 100, 372, 1000):
        names = pick(facts, "subset", count)
        for city, part in share.items():
            # rounding at both ends, and up to eight images that were chosen for their classes
            assert abs(sum(city_of(name) == city for name in names) - part * count) <= 1 + part * len(share) / 2 + 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.15, 0.3])
def test_pick_images_holds_out_whole_cities_when_there_are_several(seed: int, share: float) -> None:
    facts = make_facts(1, CITY_SIZES)
    rest, held = pick(facts, "subset", seed=seed, share=share), pick(facts, "holdout", seed=seed, share=share)
    assert {city_of(name) for name in rest}.isdisjoint(city_of(name) for name in held)
    assert sorted(rest + held) == pick(facts, "all")
    assert abs(len(held) / len(facts) / share - 1) < 0.1
    assert classes_of(facts, rest) == classes_of(facts, held) == set(range(8))


@pytest.mark.parametrize("seed", range(10))
def test_pick_images_puts_a_rare_class_on_both_sides_when_two_cities_have_it(seed: int) -> None:
    facts = [make_fact(city, number, (1, 3)) for city in ("a", "b", "c", "d", "e", "f") for number in range(10)]
    facts += [make_fact("b", 10, (6,)), make_fact("e", 10, (6,))]
    for part in ("subset", "holdout"):
        assert classes_of(facts, pick(facts, part, seed=seed)) == {0, 2, 5}


def test_pick_images_holds_out_other_cities_when_the_seed_differs() -> None:
    facts = make_facts(1, CITY_SIZES)
    assert len({tuple(sorted({city_of(name) for name in pick(facts, "holdout", seed=seed)})) for seed in range(8)}) > 4


def test_pick_images_keeps_both_sides_when_there_are_two_cities(caplog: pytest.LogCaptureFixture) -> None:
    facts = make_facts(0, {"ulm": 3, "jena": 30})
    assert {city_of(name) for name in pick(facts, "holdout")} == {"ulm"}
    assert caplog.text == ""
    facts = make_facts(0, {"ulm": 30, "jena": 30})
    with caplog.at_level(logging.WARNING, "cityopt"):
        assert len(pick(facts, "holdout")) == len(pick(facts, "subset")) == 30
    assert "30 images where 9 were wanted" in caplog.text


def test_pick_images_holds_out_the_end_of_the_sequence_when_there_is_one_city(
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = make_facts(0, {"ulm": 20})
    with caplog.at_level(logging.WARNING, "cityopt"):
        assert pick(facts, "holdout") == [f"ulm_{number:06d}_000019" for number in (17, 18, 19)]
    assert "all images are of one city" in caplog.text
    assert len(pick(facts, "subset")) == 17


def test_pick_images_ignores_the_order_of_files() -> None:
    facts = make_facts(3, {"ulm": 9, "jena": 11, "bonn": 8})
    mixed = [facts[index] for index in np.random.default_rng(0).permutation(len(facts))]
    for part, count in (("subset", None), ("subset", 5), ("holdout", 4), ("all", 13)):
        assert pick(facts, part, count) == pick(mixed, part, count)


def test_pick_images_picks_what_it_always_picked() -> None:
    # a changed choice would change the meaning of every study that was stored with these rules
    facts = [
        make_fact(city, number, tuple(index for index in range(1, 9) if number % (2 * index) == 0))
        for city, size in CITY_SIZES.items()
        for number in range(size)
    ]
    assert hash_names(pick(facts, "subset", 372)) == "6eca8927b2c9e805"
    assert sorted({city_of(name) for name in pick(facts, "holdout")}) == ["hamburg", "hanover"]


def test_pick_images_looks_at_its_own_split_when_facts_hold_two() -> None:
    facts = [make_fact("ulm", 0), make_fact("bonn", 1, split="val"), make_fact("bonn", 2, split="val")]
    assert pick_images(facts, ImageSet(split="val")) == ["bonn_000001_000019", "bonn_000002_000019"]


def test_pick_images_names_key_and_number_when_too_many_are_asked_for() -> None:
    facts = make_facts(0, {"ulm": 10, "jena": 10})
    with pytest.raises(DataError, match=r"`data.num_images` must be at most 10.*but got 11.*null"):
        pick(facts, "subset", 11)
    with pytest.raises(DataError, match="must have 21 images, but has 20"):
        pick(facts, "all", 21)
    assert len(pick(facts, "holdout", 1000)) == 10


def test_pick_images_refuses_when_there_is_nothing_to_pick_or_divide() -> None:
    with pytest.raises(DataError, match="has none"):
        pick([], "all")
    with pytest.raises(DataError, match="at least 2 images"):
        pick([make_fact("ulm", 0)], "holdout")


def test_pick_images_works_when_no_image_shows_a_class() -> None:
    facts = [make_fact(city, number) for city in ("ulm", "jena") for number in range(4)]
    assert len(pick(facts, "subset", 3)) == 3


def test_hash_names_depends_on_the_set_only() -> None:
    assert hash_names(["a", "b"]) == hash_names(iter(["b", "a", "b"]))
    assert len({hash_names(names) for names in ([], ["a"], ["a", "b"], ["ab"])}) == 4


def test_sides_of_a_fold_are_the_frames_of_its_spans_and_all_others() -> None:
    facts = make_facts(3, {"ulm": 5, "jena": 4, "bonn": 3})
    facts.append(make_fact("ulm", 77, split="val"))
    spans = (Span(city="bonn"), Span(city="ulm", first="ulm_000001_000019", last="ulm_000003_000019"))
    fold, rest = (pick_images(facts, ImageSet(part=part, spans=spans)) for part in ("fold", "rest"))
    numbers = {city: [int(name.split("_")[1]) for name in fold if city_of(name) == city] for city in map(city_of, fold)}
    assert numbers == {"bonn": [0, 1, 2], "ulm": [1, 2, 3]}
    assert sorted(fold + rest) == pick(facts, "all")
    assert [str(span) for span in spans] == ["bonn", "ulm_000001_000019 … ulm_000003_000019"]


@pytest.mark.parametrize(("part", "cities"), [("fold", []), ("fold", ["graz"]), ("rest", ["ulm", "jena"])])
def test_fold_is_refused_when_a_side_is_empty(part: str, cities: list[str]) -> None:
    facts = make_facts(0, {"ulm": 4, "jena": 4})
    image_set = ImageSet.model_validate({"part": part, "spans": [{"city": city} for city in cities]})
    with pytest.raises(DataError, match="a fold must hold frames of train and leave some"):
        pick_images(facts, image_set)


CITYSCAPES_VAL = {"frankfurt": 267, "lindau": 59, "munster": 174}


@pytest.mark.parametrize(
    ("halves", "first", "second"),
    [("city", {"frankfurt": 267}, {"lindau": 59, "munster": 174}), ("count", 250, 250)],
)
def test_halves_of_the_real_val_are_the_published_ones(halves: str, first: object, second: object) -> None:
    facts = make_facts(0, CITYSCAPES_VAL)
    rules = [ImageSet(part=part, halves=halves) for part in ("first_half", "second_half")]
    sides = [pick_images(facts, rule) for rule in rules]
    assert sorted(sides[0] + sides[1]) == sorted(fact.name for fact in facts)
    for side, wanted in zip(sides, (first, second), strict=True):
        counts = {city: sum(city_of(name) == city for name in side) for city in sorted({*map(city_of, side)})}
        assert counts == wanted if isinstance(wanted, dict) else len(side) == wanted
    assert max(sides[0]) < min(sides[1])  # of each kind here: frankfurt comes first
    assert [pick_images(facts[::-1], rule) for rule in rules] == sides


def test_half_is_refused_when_there_is_one_city() -> None:
    with pytest.raises(DataError, match=r"two cities or images to be halved by city, but has one city.*count"):
        pick_images(make_facts(0, {"lund": 9}), ImageSet(part="second_half", halves="city"))
