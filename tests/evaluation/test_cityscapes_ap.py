"""Cityscapes AP against the official script: random scenes, and each of its rules with the value it must give."""

import math
import pickle
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hotcoco import mask as decoder
from pycocotools import mask as rle_tools

from cityopt.errors import DataError, EvaluationError
from cityopt.evaluation.cityscapes_ap import THRESHOLDS, CityscapesEvaluator, metric_names
from cityopt.labels import LABELS, THING_LABELS, THING_NAMES
from cityopt.models.masks import Prediction

IDS = [label.id for label in THING_LABELS]
PERSON, CAR, TRUCK = 1, 3, 4
SIZE = (40, 100)


@pytest.fixture
def score_officially(monkeypatch, tmp_path):
    """Return a function from scenes to the official AP matrix, by way of the files that the script reads."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    peer = import_module("benchmarks.cityscapes_peer")

    def score(scenes):
        peer.write_scenes(tmp_path, scenes)
        return peer.score_officially(tmp_path)

    return score


def make_prediction(size, found):
    """Make a prediction of (mask, class, score)."""
    found = sorted(found, key=lambda one: -one[2])
    return Prediction(
        boxes_xyxy=np.zeros((len(found), 4), np.float32),
        scores=np.array([score for _, _, score in found], np.float32),
        classes=np.array([class_index for _, class_index, _ in found], np.int64),
        masks=[rle_tools.encode(np.asfortranarray(mask.astype(np.uint8))) for mask, _, _ in found],
        size=size,
    )


def paint(*boxes, size=SIZE):
    """Paint (value, top, left, height, width) one over the other on road."""
    raster = np.full(size, 7, np.uint16)
    for value, top, left, height, width in boxes:
        raster[top : top + height, left : left + width] = value
    return raster


def box(top, left, height, width, size=SIZE):
    return paint((1, top, left, height, width), size=size) == 1


def draw_ellipse(size, center, radii):
    y, x = np.ogrid[: size[0], : size[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def make_scene(rng, num_objects, num_predictions):
    """Paint instances, groups, specks, caravans and void, and predict near to them, twice, far away, or nothing."""
    size = (int(rng.integers(30, 80)), int(rng.integers(30, 110)))
    ids = rng.choice(IDS, 3, replace=False)  # few classes, so that objects of one class meet
    raster, shapes = np.full(size, rng.choice([0, 7, 23]), np.uint16), []
    for number in range(num_objects):
        label_id = int(rng.choice([*ids, *ids, *ids, 0, 3, 9, 18, 29, 30]))
        center, radii = rng.uniform(0, size), np.exp(rng.uniform(np.log(2), np.log(25), 2))
        value = label_id * 1000 + number if label_id >= 24 and rng.random() < 0.75 else label_id
        raster[draw_ellipse(size, center, radii)] = value
        shapes.append((label_id, center, radii))
    found = []
    for _ in range(num_predictions):
        label_id, center, radii = int(rng.choice(ids)), rng.uniform(0, size), rng.uniform(1, 25, 2)
        if shapes and rng.random() < 0.85:
            label_id, center, radii = shapes[rng.integers(len(shapes))]
            blur = rng.choice([0, 0.05, 0.1, 0.3])
            center, radii = center + blur * radii * rng.normal(size=2), radii * np.exp(blur * rng.normal(size=2))
        class_index = IDS.index(label_id if label_id in IDS and rng.random() < 0.9 else int(rng.choice(ids))) + 1
        mask = draw_ellipse(size, center, radii) & (rng.random() > 0.03)  # some masks are empty
        found.append((mask, class_index, round(rng.random(), 1 if rng.random() < 0.5 else 6)))  # many ties
    return raster, make_prediction(size, found)


def run_ours(scenes):
    evaluator = CityscapesEvaluator()
    for number, (raster, prediction) in enumerate(scenes):
        evaluator.add(f"image-{number}", raster, prediction)
    return evaluator


def assert_same(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("seed", range(60))
def test_evaluator_equals_the_official_script_when_scenes_are_random(seed, score_officially):
    rng = np.random.default_rng(seed)
    scenes = [
        make_scene(rng, int(rng.choice([0, 4, 12])), int(rng.choice([0, 6, 30]))) for _ in range(rng.integers(1, 6))
    ]
    assert_same(run_ours(scenes).compute_matrix(), score_officially(scenes))


def test_random_scenes_reach_many_values():
    scenes = [make_scene(np.random.default_rng(seed), 12, 30) for seed in range(12)]
    matrix = run_ours(scenes).compute_matrix()
    assert np.unique(matrix[(matrix > 0) & (matrix < 1)]).size > 20


# Name, raster, what was found, class, AP (one number, or one per threshold).
CAR_A, CAR_B, FAR = (26000, 5, 5, 20, 20), (26001, 5, 30, 20, 20), (5, 75, 20, 20)
A, B, HALF = box(5, 5, 20, 20), box(5, 30, 20, 20), box(5, 5, 10, 20)
MISS = box(*FAR)
ALWAYS, NEVER = [1.0] * 10, [0.0] * 10
CASES = {
    "a perfect object": (paint(CAR_A), [(A, CAR, 0.9)], CAR, 1),
    "a miss after a hit": (paint(CAR_A), [(A, CAR, 0.9), (MISS, CAR, 0.5)], CAR, 1),
    "a miss before a hit": (paint(CAR_A), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 0.25),
    "a miss and a hit of one score": (paint(CAR_A), [(MISS, CAR, 0.5), (A, CAR, 0.5)], CAR, 0.75),
    "one of two": (paint(CAR_A, CAR_B), [(A, CAR, 0.5)], CAR, 0.5),
    "no envelope": (paint(CAR_A, CAR_B), [(A, CAR, 0.9), (MISS, CAR, 0.8), (B, CAR, 0.7)], CAR, 19 / 24),
    "a duplicate": (paint(CAR_A), [(A, CAR, 0.9), (A, CAR, 0.5)], CAR, 1),
    "a duplicate before another object": (
        paint(CAR_A, CAR_B),
        [(A, CAR, 0.9), (A, CAR, 0.8), (B, CAR, 0.7)],
        CAR,
        19 / 24,
    ),
    "the better score wins over the better overlap": (
        paint(CAR_A, CAR_B),
        [(box(5, 5, 19, 20), CAR, 0.9), (A, CAR, 0.8), (B, CAR, 0.85)],
        CAR,  # .95 of the first overlaps: a hit at every threshold but the last, where the second is the hit
        [1.0] * 9 + [0.25 * (1 / 2) + 0.5 * (7 / 12)],
    ),
    "nothing found": (paint(CAR_A), [], CAR, 0),
    "only empty masks": (paint(CAR_A), [(np.zeros(SIZE, bool), CAR, 0.9)], CAR, 0),
    "nothing to find": (paint(), [(A, CAR, 0.9)], CAR, math.nan),
    "another class": (paint(CAR_A), [(A, TRUCK, 0.9)], CAR, 0),
    "half an object": (paint(CAR_A), [(HALF, CAR, 0.9)], CAR, 0),
    "three quarters of an object": (paint(CAR_A), [(box(5, 5, 15, 20), CAR, 0.9)], CAR, [1.0] * 5 + [0.0] * 5),
    "more than a hundred misses": (paint(CAR_A), [(MISS, CAR, 0.9)] * 149 + [(A, CAR, 0.5)], CAR, 0.5 / 150),
    "an object of 99 px": (paint((26000, 5, 5, 9, 11)), [(box(5, 5, 9, 11), CAR, 0.9)], CAR, math.nan),
    "an object of 100 px": (paint((26000, 5, 5, 10, 10)), [(box(5, 5, 10, 10), CAR, 0.9)], CAR, 1),
    "a small object excuses": (
        paint(CAR_A, (26001, 5, 60, 9, 11)),
        [(box(5, 60, 9, 11), CAR, 0.9), (A, CAR, 0.5)],
        CAR,
        1,
    ),
    "a small object of another class does not": (
        paint(CAR_A, (24001, 5, 60, 9, 11)),
        [(box(5, 60, 9, 11), CAR, 0.9), (A, CAR, 0.5)],
        CAR,
        0.25,
    ),
    "seven tenths on void": (
        paint(CAR_A, (3, 0, 60, 40, 14)),
        [(box(5, 60, 20, 20), CAR, 0.9), (A, CAR, 0.5)],
        CAR,
        [1.0] * 4 + [0.25] * 6,
    ),
    "within a group": (paint(CAR_A, (26, 0, 60, 40, 40)), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 1),
    "a group is not to be found": (paint((26, 0, 60, 40, 40)), [(MISS, CAR, 0.9)], CAR, math.nan),
    "a whole group": (
        paint(CAR_A, (26, 5, 60, 20, 20)),
        [(box(3, 58, 24, 24), CAR, 0.9), (A, CAR, 0.5)],
        CAR,  # IoU and share are both 400 / 576 = .694
        [1.0] * 4 + [0.25] * 6,
    ),
    "a car in a persongroup": (paint(CAR_A, (24, 0, 60, 40, 40)), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 0.25),
    "a group of 50 px counts twice": (
        paint(CAR_A, (26, 5, 60, 5, 10)),
        [(box(5, 60, 9, 10), CAR, 0.9), (A, CAR, 0.5)],
        CAR,
        1,
    ),
    "an object of 50 px counts once": (
        paint(CAR_A, (26001, 5, 60, 5, 10)),
        [(box(5, 60, 9, 10), CAR, 0.9), (A, CAR, 0.5)],
        CAR,  # 5 / 9 of the pixels
        [1.0] * 2 + [0.25] * 8,
    ),
    "void and a group add up": (
        paint(CAR_A, (0, 0, 60, 40, 8), (26, 0, 68, 40, 6)),
        [(box(5, 60, 20, 20), CAR, 0.9), (A, CAR, 0.5)],
        CAR,
        [1.0] * 4 + [0.25] * 6,
    ),
    "a caravan": (paint(CAR_A, (29000, 5, 75, 20, 20)), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 0.25),
    "a trailer": (paint(CAR_A, (30001, 5, 75, 20, 20)), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 0.25),
    "a group of caravans": (paint(CAR_A, (29, 5, 75, 20, 20)), [(MISS, CAR, 0.9), (A, CAR, 0.5)], CAR, 1),
    "objects, and all predictions ignored": (paint(CAR_A, (3, 0, 60, 40, 40)), [(MISS, CAR, 0.9)], CAR, 0),
    "the same, up to a threshold": (paint(CAR_A, (3, 0, 75, 40, 14)), [(MISS, CAR, 0.9)], CAR, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_evaluator_follows_the_official_rule_when_there_is(name, score_officially):
    raster, found, class_index, expected = CASES[name]
    scenes = [(raster, make_prediction(SIZE, found))]
    ours = run_ours(scenes).compute_matrix()
    assert_same(ours[class_index - 1], np.broadcast_to(np.asarray(expected, float), 10))
    assert_same(ours, score_officially(scenes))


@pytest.mark.parametrize("label", [label for label in LABELS if label.id >= 0], ids=lambda label: label.name)
def test_evaluator_excuses_a_prediction_when_it_lies_on_void_only(label, score_officially):
    raster = paint(CAR_A, (label.id, 5, 75, 20, 20))
    scenes = [(raster, make_prediction(SIZE, [(MISS, CAR, 0.9), (A, CAR, 0.5)]))]
    ours = run_ours(scenes).compute_matrix()
    excused = label.ignore_in_eval or label.name == "car"
    assert_same(ours[CAR - 1], np.full(10, 1.0 if excused else 0.25))
    assert_same(ours, score_officially(scenes))


def test_evaluator_takes_license_plates_for_void_when_the_raster_is_signed():
    raster = paint(CAR_A).astype(np.int32)
    raster[MISS] = -1
    metrics = run_ours([(raster, make_prediction(SIZE, [(MISS, CAR, 0.9), (A, CAR, 0.5)]))]).summarize()
    assert metrics["cityscapes/ap"] == 1


def test_evaluator_pools_images_when_a_class_is_in_some_of_them(score_officially):
    raster, nothing = paint(CAR_A, (24000, 5, 60, 20, 20)), paint()
    scenes = [
        (raster, make_prediction(SIZE, [(A, CAR, 0.6), (MISS, PERSON, 0.2)])),
        (nothing, make_prediction(SIZE, [(A, CAR, 0.7), (A, TRUCK, 0.7)])),
        (nothing, make_prediction(SIZE, [])),
        (raster, make_prediction(SIZE, [(A, CAR, 0.8)])),
    ]
    evaluator = run_ours(scenes)
    assert_same(evaluator.compute_matrix(), score_officially(scenes))
    metrics = evaluator.summarize()
    assert list(metrics) == metric_names()
    assert metrics["cityscapes/ap/class/car"] == pytest.approx(19 / 24, abs=1e-12)
    assert metrics["cityscapes/ap50/class/person"] == 0
    assert math.isnan(metrics["cityscapes/ap/class/truck"])
    for name in ("ap", "ap50"):
        assert metrics[f"cityscapes/{name}"] == pytest.approx(19 / 48, abs=1e-12)


def test_summarize_gives_the_official_averages_when_thresholds_differ(score_officially):
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official

    scenes = [make_scene(np.random.default_rng(seed), 12, 30) for seed in range(4)]
    official.setInstanceLabels(official.args)
    averages = official.computeAverages(score_officially(scenes)[None], official.args)
    metrics = run_ours(scenes).summarize()
    assert averages["allAp"] < averages["allAp50%"]
    for name, key, class_key in (("ap", "allAp", "ap"), ("ap50", "allAp50%", "ap50%")):
        assert metrics[f"cityscapes/{name}"] == pytest.approx(averages[key], abs=1e-12)
        for label in THING_NAMES:
            expected = averages["classes"][label][class_key]
            assert metrics[f"cityscapes/{name}/class/{label}"] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_thresholds_are_the_official_ones_to_the_last_bit():
    from cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling import args

    assert THRESHOLDS.tolist() == args.overlaps.tolist()


def test_evaluator_gives_the_same_bits_when_ranks_share_the_images():
    scenes = [make_scene(np.random.default_rng(seed), 12, 30) for seed in range(6)]
    ranks = [CityscapesEvaluator() for _ in range(3)]
    for number, (raster, prediction) in reversed(list(enumerate(scenes))):
        ranks[number % 3].add(f"image-{number}", raster, prediction)
    gathered = CityscapesEvaluator()
    for rank in ranks:
        gathered.merge(pickle.loads(pickle.dumps(rank)))
    np.testing.assert_array_equal(gathered.compute_matrix(), run_ours(scenes).compute_matrix())
    with pytest.raises(EvaluationError, match=r"'image-0' is in both \(2 images"):
        run_ours(scenes).merge(ranks[0])


def test_evaluator_keeps_no_pixels_when_an_image_is_large():
    raster, prediction = make_scene(np.random.default_rng(1), 12, 30)
    large = [
        (np.kron(decoder.decode(code), np.ones((8, 8), np.uint8)), int(class_index), float(score))
        for code, class_index, score in zip(prediction.masks, prediction.classes, prediction.scores, strict=True)
    ]
    enlarged = np.kron(raster, np.ones((8, 8), np.uint16))
    scenes = [(raster, prediction)], [(enlarged, make_prediction(enlarged.shape, large))]
    small_state, large_state = (len(pickle.dumps(run_ours(scene))) for scene in scenes)
    assert large_state < 100 * len(large) + 2000
    assert large_state < 1.5 * small_state


def test_evaluator_gives_nan_when_no_image_was_added():
    metrics = CityscapesEvaluator().summarize()
    assert list(metrics) == metric_names()
    assert all(math.isnan(value) for value in metrics.values())


def test_evaluator_repeats_itself_and_refuses_more_when_it_is_asked_twice():
    scene = make_scene(np.random.default_rng(5), 12, 30)
    evaluator = run_ours([scene])
    np.testing.assert_equal(evaluator.summarize(), evaluator.summarize())
    evaluator.compute_matrix()[:] = 7
    np.testing.assert_equal(evaluator.summarize(), run_ours([scene]).summarize())
    with pytest.raises(ValueError, match="`add` must come before"):
        evaluator.add("late", *scene)
    with pytest.raises(ValueError, match="`merge` must come before"):
        evaluator.merge(CityscapesEvaluator())


def change(prediction, **fields):
    return Prediction(**{**vars(prediction), **fields})


ONE = make_prediction(SIZE, [(A, CAR, 0.5)])
TRAIN_IDS = np.where(np.arange(4000).reshape(SIZE) % 7 == 0, 255, 13).astype(np.uint8)


@pytest.mark.parametrize(
    ("error", "raster", "prediction", "message"),
    [
        (EvaluationError, paint(CAR_A).T, ONE, r"one size, but got \(40, 100\) and \(100, 40\) for 'b'"),
        (EvaluationError, paint(CAR_A), change(ONE, size=(20, 50)), r"\(20, 50\) and \(40, 100\)"),
        (
            EvaluationError,
            paint(CAR_A),
            change(ONE, masks=[rle_tools.encode(np.asfortranarray(A[:, :50]))]),
            r"\(40, 50\)",
        ),
        (EvaluationError, paint(CAR_A), change(ONE, classes=np.array([0])), r"1\.\.8, but got 0 for image 'b'"),
        (EvaluationError, paint(CAR_A), change(ONE, classes=np.array([26])), "but got 26"),
        (EvaluationError, paint(CAR_A), change(ONE, scores=np.array([np.nan], np.float32)), "NaN for image 'b'"),
        (EvaluationError, paint(CAR_A), change(ONE, scores=np.zeros(2, np.float32)), r"equally many, but got \[1, 2\]"),
        (DataError, paint(CAR_A).astype(float), ONE, "integers, but got"),
        (DataError, paint(CAR_A)[None], change(ONE, size=(1, *SIZE)), "integers, but got"),
        (DataError, np.zeros((0, 0), np.uint8), change(ONE, size=(0, 0), masks=[]), "integers, but got"),
        (
            EvaluationError,
            paint(CAR_A),
            change(ONE, masks=[{"size": [*SIZE], "counts": b"5"}]),
            "covers 5 of 4000 pixels.*image 'b'",
        ),
        (
            DataError,
            TRAIN_IDS,
            ONE,
            "but got 255 in image 'b'. It looks like a map of trainIds: give .*instanceIds.png",
        ),
        (DataError, paint((34, 0, 0, 1, 1)), ONE, "but got 34 in image 'b'"),
        (DataError, paint((34000, 0, 0, 1, 1)), ONE, "but got 34000"),
        (DataError, paint((7001, 0, 0, 1, 1)), ONE, "of a class with instances, but got 7001"),
        (DataError, paint((13001, 0, 0, 1, 1)), ONE, "but got 13001 in image 'b'. It looks like a map of trainIds"),
        (EvaluationError, paint(CAR_A), change(ONE, masks=[A]), r"but got ndarray for image 'b'.*from_masks"),
        (DataError, paint(CAR_A).astype(np.int32) - 9, ONE, "but got -2"),
    ],
)
def test_evaluator_says_what_is_wrong_when_raster_or_prediction_is(error, raster, prediction, message):
    evaluator = CityscapesEvaluator()
    evaluator.add("a", paint(CAR_A), ONE)
    with pytest.raises(error, match=message):
        evaluator.add("b", raster, prediction)
    with pytest.raises(EvaluationError, match="'a' came again"):
        evaluator.add("a", paint(CAR_A), ONE)
    assert evaluator.summarize()["cityscapes/ap"] == 1  # what was refused left no trace
