"""The semantic protocol against the official script on random scenes and corner cases, others against scikit-learn."""

import math
import pickle

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from official_scripts import old_numpy
from PIL import Image
from pycocotools import mask as rle_tools
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from cityopt.errors import DataError, EvaluationError
from cityopt.evaluation.semantic import THINGS_PREFIX, SemanticEvaluator, metric_names, paint_prediction
from cityopt.labels import BY_NAME, EVALUATED_LABELS, LABELS, THING_LABELS
from cityopt.models.masks import Prediction

IDS = [label.id for label in LABELS if label.id >= 0]
INSTANCE_IDS = [label.id for label in LABELS if label.has_instances]
EVALUATED = [label.id for label in EVALUATED_LABELS]
THINGS = [label.id for label in THING_LABELS]
CAR, CARAVAN, ROAD = 26, 29, 7


def to_ids(raster):
    return np.where(raster < 1000, raster, raster // 1000).astype(np.uint8)


def draw_rectangle(rng, shape):
    (top, bottom), (left, right) = (np.sort(rng.integers(0, n + 1, 2)) for n in shape)
    return np.s_[top:bottom, left:right]


def make_scene(rng, shape=(37, 53)):
    """Return a raster of stuff, groups, instances and void, and a prediction that is right for the most part."""
    raster = np.full(shape, rng.choice(IDS), np.uint16)
    for number in range(rng.integers(0, 30)):
        label_id = int(rng.choice(IDS))
        if label_id in INSTANCE_IDS and rng.random() < 0.8:
            label_id = label_id * 1000 + number
        raster[draw_rectangle(rng, shape)] = label_id
    predicted = np.roll(to_ids(raster), rng.integers(-3, 4, 2), (0, 1))
    for _ in range(rng.integers(0, 12)):
        predicted[draw_rectangle(rng, shape)] = rng.choice(IDS)
    noisy = rng.random(shape) < rng.choice([0, 0.05, 0.9])
    predicted[noisy] = rng.choice(IDS, noisy.sum())
    predicted[0, 0] = 33  # never a map of training ids
    return raster, predicted


def run_official(scenes, folder, monkeypatch):
    """Return the official confusion matrix and scores, under our names."""
    monkeypatch.setattr(official.args, "JSONOutput", False)
    monkeypatch.setattr(official.args, "quiet", True)
    predictions, truths = [], []
    for number, (raster, predicted) in enumerate(scenes):
        truths.append(str(folder / f"{number}_gtFine_labelIds.png"))
        predictions.append(str(folder / f"{number}_predicted.png"))
        Image.fromarray(to_ids(raster)).save(truths[-1])
        Image.fromarray(raster).save(truths[-1].replace("labelIds", "instanceIds"))
        Image.fromarray(predicted).save(predictions[-1])
    with old_numpy():
        found = official.evaluateImgLists(predictions, truths, official.args)
    scores = {
        "semantic/miou": found["averageScoreClasses"],
        "semantic/iiou": found["averageScoreInstClasses"],
        "semantic/category_iou": found["averageScoreCategories"],
        "semantic/category_iiou": found["averageScoreInstCategories"],
    }
    for key, name in (("classScores", "iou/class"), ("classInstScores", "iiou/class")):
        scores |= {f"semantic/{name}/{label}": value for label, value in found[key].items()}
    for key, name in (("categoryScores", "category_iou"), ("categoryInstScores", "category_iiou")):
        scores |= {f"semantic/{name}/category/{label}": value for label, value in found[key].items()}
    return np.array(found["confMatrix"]), scores


def run_ours(scenes, *arguments, **options):
    evaluator = SemanticEvaluator(*arguments, **options)
    for number, (raster, predicted) in enumerate(scenes):
        evaluator.add(f"image-{number}", raster, predicted)
    return evaluator


def assert_official(scenes, folder, monkeypatch):
    evaluator = run_ours(scenes)
    ours = evaluator.summarize()
    matrix, theirs = run_official(scenes, folder, monkeypatch)
    np.testing.assert_array_equal(evaluator.confusion, matrix)
    for name, value in theirs.items():
        if name in ours:
            assert ours[name] == pytest.approx(value, rel=0, abs=1e-12, nan_ok=True), name
        else:
            assert math.isnan(value), name
    assert {name for name in ours if "iou" in name} <= set(theirs)
    return ours


@pytest.mark.parametrize("seed", range(16))
def test_evaluator_equals_the_official_script_when_scenes_are_random(seed, tmp_path, monkeypatch):
    rng = np.random.default_rng(seed)
    scenes = [make_scene(rng) for _ in range(rng.integers(1, 6))]
    assert_official(scenes, tmp_path, monkeypatch)


def fill(*parts, background=0, dtype=np.uint16):
    """Return a map of 10 x 20 with columns from … to filled with values."""
    pixels = np.full((10, 20), background, dtype)
    for first, last, value in parts:
        pixels[:, first:last] = value
    return pixels


CORNERS = {
    "all is void": (fill(), fill(background=CAR), {"miou": math.nan, "accuracy": math.nan, "f1_macro": math.nan}),
    "ignored classes are void": (fill((0, 9, 9), (9, 20, 29001)), fill(background=ROAD), {"miou": math.nan}),
    "nothing is predicted": (fill(background=26001), fill(), {"miou": 0, "iiou": 0, "accuracy": 0, "f1_weighted": 0}),
    "void is predicted": (fill(background=ROAD), fill((0, 5, ROAD)), {"iou/class/road": 0.25, "accuracy": 0.25}),
    "a class is only predicted": (
        fill(background=ROAD),
        fill((0, 10, CAR), background=ROAD),
        {"iou/class/car": 0, "iiou/class/car": 0, "precision/class/car": 0, "recall/class/car": 0, "miou": 0.25},
    ),
    "a class is only predicted on void": (
        fill((0, 10, ROAD)),
        fill((0, 10, ROAD), background=CAR),
        {"iou/class/car": math.nan, "precision/class/car": math.nan, "precision_macro": 1, "miou": 1},
    ),
    "a caravan is found in a car": (  # right for the vehicles' iIoU only
        fill(background=26001),
        fill(background=CARAVAN),
        {"category_iiou/category/vehicle": 1, "category_iou/category/vehicle": 0, "iiou/class/car": 0},
    ),
    "a caravan is found on the road": (  # wrong for the vehicles' iIoU only
        fill((0, 4, 26001), background=ROAD),
        fill((0, 4, CAR), (4, 20, CARAVAN)),
        {
            "category_iou/category/vehicle": 1,
            "category_iiou/category/vehicle": 12794.0202738185 / (12794.0202738185 + 160),
        },
    ),
    "a car is taken for a truck": (
        fill(background=26001),
        fill(background=27),
        {"category_iou/category/vehicle": 1, "category_iiou/category/vehicle": 1, "miou": 0},
    ),
    "a group has no instance": (  # neither found nor missed by iIoU, false where it is not
        fill((0, 10, CAR), background=ROAD),
        fill((0, 12, CAR), background=ROAD),
        {"iiou/class/car": 0, "iou/class/car": 10 / 12},
    ),
    "instances differ in size": (  # the small one weighs as much as the large one
        fill((0, 2, 26000), (2, 20, 26001)),
        fill((2, 20, CAR)),
        {"iou/class/car": 0.9, "iiou/class/car": 0.5},
    ),
}


@pytest.mark.parametrize("name", CORNERS)
def test_evaluator_equals_the_official_script_when(name, tmp_path, monkeypatch):
    raster, predicted, expected = CORNERS[name]
    ours = assert_official([(raster, predicted.astype(np.uint8))], tmp_path, monkeypatch)
    found = {key: ours[f"semantic/{key}"] for key in expected}
    assert found == pytest.approx(expected, nan_ok=True, abs=1e-12)


def run_sklearn(scenes, ids):
    """Return accuracy and shares by scikit-learn, which sees counted pixels and one class 0 for all others."""
    truth = np.concatenate([to_ids(raster).ravel() for raster, _ in scenes])
    predicted = np.concatenate([prediction.ravel() for _, prediction in scenes])
    counted = np.isin(truth, EVALUATED)
    truth, predicted = truth[counted], predicted[counted]
    truth, predicted = (np.where(np.isin(pixels, ids), pixels, 0) for pixels in (truth, predicted))
    there = sorted((set(truth.tolist()) | set(predicted.tolist())) - {0})
    scores = {"accuracy": accuracy_score(truth, predicted)}
    for average in ("macro", "weighted", None):
        shares = precision_recall_fscore_support(truth, predicted, labels=there, average=average, zero_division=0)[:3]
        for name, value in zip(("precision", "recall", "f1"), shares, strict=True):
            if average:
                scores[f"{name}_{average}"] = value
            else:
                scores |= {f"{name}/class/{LABELS[i].name}": v for i, v in zip(there, value, strict=True)}
    return scores


@pytest.mark.parametrize(("labels", "prefix"), [(EVALUATED_LABELS, "semantic"), (THING_LABELS, THINGS_PREFIX)])
@pytest.mark.parametrize("seed", range(6))
def test_evaluator_equals_sklearn_when_scenes_are_random(seed, labels, prefix):
    rng = np.random.default_rng(seed)
    scenes = [make_scene(rng) for _ in range(3)]
    ours = run_ours(scenes, labels, prefix=prefix).summarize()
    theirs = run_sklearn(scenes, [label.id for label in labels])
    assert {name: ours[f"{prefix}/{name}"] for name in theirs} == pytest.approx(theirs, abs=1e-12)
    for name in ("precision", "recall", "f1"):
        of_classes = {key for key in ours if key.startswith(f"{prefix}/{name}/class/")}
        absent = {key for key in of_classes if math.isnan(ours[key])}
        assert of_classes - absent == {f"{prefix}/{key}" for key in theirs if key.startswith(f"{name}/class/")}
    f1 = {key.replace("/f1", "/dice"): value for key, value in ours.items() if "/f1" in key}
    assert {key: value for key, value in ours.items() if "/dice" in key} == pytest.approx(f1, nan_ok=True)


def test_evaluator_of_things_counts_things_on_anything_else_as_false():
    raster = fill((0, 6, 26001), (6, 8, 24), (8, 14, ROAD))  # a car, persons, a road, void
    predicted = fill((4, 20, CAR), dtype=np.uint8)
    ours = run_ours([(raster, predicted)], THING_LABELS, prefix=THINGS_PREFIX).summarize()
    expected = {
        "iou/class/car": 2 / 14,  # 2 columns found, 4 missed, 8 false: on persons and the road, but not on void
        "iou/class/person": 0,
        "iou/class/bus": math.nan,
        "miou": 1 / 14,
        "precision/class/car": 2 / 10,
        "recall/class/car": 2 / 6,
        "accuracy": 2 / 14,
        "category_iou/category/vehicle": 2 / 14,
        "category_iou": 1 / 14,
    }
    assert {name: ours[f"{THINGS_PREFIX}/{name}"] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert not any("road" in name or "flat" in name for name in ours)
    left_alone = run_ours([(raster, fill(dtype=np.uint8))], THING_LABELS, prefix=THINGS_PREFIX).summarize()
    assert left_alone[f"{THINGS_PREFIX}/accuracy"] == pytest.approx(6 / 14)  # the road is no thing, and none is said


def test_evaluator_of_things_equals_all_classes_when_a_thing_has_its_own_score():
    rng = np.random.default_rng(4)
    scenes = [make_scene(rng) for _ in range(3)]
    every = run_ours(scenes).summarize()
    things = run_ours(scenes, THING_LABELS, prefix=THINGS_PREFIX).summarize()
    single = {name: value for name, value in things.items() if "/class/" in name or "/category/" in name}
    assert len(single) == 6 * 8 + 4
    assert single == pytest.approx(
        {name: every[name.replace(THINGS_PREFIX, "semantic")] for name in single}, nan_ok=True, abs=0
    )


def test_summarize_gives_the_metric_names_and_nan_when_no_image_was_added():
    for labels, prefix, count in ((EVALUATED_LABELS, "semantic", 125), (THING_LABELS, THINGS_PREFIX, 65)):
        metrics = SemanticEvaluator(labels, prefix=prefix).summarize()
        assert list(metrics) == metric_names(labels, prefix)
        assert len(set(metrics)) == count
        assert all(type(value) is float and math.isnan(value) for value in metrics.values())


def test_merge_gives_the_scores_of_one_evaluator_when_ranks_share_the_images():
    rng = np.random.default_rng(8)
    scenes = [make_scene(rng) for _ in range(7)]
    whole = run_ours(scenes)
    ranks = [SemanticEvaluator() for _ in range(3)]
    for number, scene in enumerate(scenes):
        ranks[number % 3].add(f"image-{number}", *scene)
    first, *others = [pickle.loads(pickle.dumps(rank)) for rank in ranks]
    for other in others:
        first.merge(other)
    np.testing.assert_array_equal(first.confusion, whole.confusion)
    assert first.image_ids == whole.image_ids
    assert first.summarize() == pytest.approx(whole.summarize(), abs=1e-14, nan_ok=True)


def test_merge_refuses_when_images_or_classes_do_not_go_together():
    one, same = run_ours([(fill(), fill())]), run_ours([(fill(), fill())])
    with pytest.raises(EvaluationError, match="'image-0' came again"):
        one.merge(same)
    with pytest.raises(ValueError, match="same labels and prefix"):
        one.merge(SemanticEvaluator(THING_LABELS, prefix=THINGS_PREFIX))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_evaluator_takes_any_integers_and_any_memory_layout(dtype):
    raster, predicted = make_scene(np.random.default_rng(2))
    expected = run_ours([(raster, predicted)]).summarize()
    wide = np.zeros((predicted.shape[0], 2 * predicted.shape[1]), dtype)
    wide[:, ::2] = predicted
    found = run_ours([(np.asfortranarray(raster.astype(np.int32)), wide[:, ::2])]).summarize()
    np.testing.assert_equal(found, expected)


def test_add_refuses_an_image_when_it_comes_twice_and_keeps_what_was_there():
    evaluator = run_ours([(fill(background=ROAD), fill(background=ROAD))])
    with pytest.raises(EvaluationError, match="'image-0' came again"):
        evaluator.add("image-0", fill(background=ROAD), fill())
    with pytest.raises(EvaluationError, match="one size"):
        evaluator.add("image-1", fill(background=ROAD), fill().T)
    evaluator.add("image-1", fill(background=ROAD), fill(background=ROAD))
    assert evaluator.summarize()["semantic/miou"] == 1


@pytest.mark.parametrize(
    ("raster", "predicted", "error", "message"),
    [
        (fill(), fill()[:5], EvaluationError, r"one size .* got \(5, 20\) and \(10, 20\) for image 'a'"),
        (fill(), fill(dtype=np.float32), EvaluationError, "the prediction for image 'a'.* got float32"),
        (fill(), fill(dtype=bool), EvaluationError, "integers, but got bool"),
        (fill(), np.zeros((10, 20, 3), np.uint8), EvaluationError, r"uint8 \(10, 20, 3\)"),
        (fill(), fill(background=34), EvaluationError, "must be in 0 … 33, but got 34 for image 'a'"),
        (fill(), fill((0, 3, -1), dtype=np.int16), EvaluationError, "must be in 0 … 33, but got -1"),
        (fill(), fill((0, 3, 255), background=26), EvaluationError, "must be in 0 … 33, but got 255"),
        (fill(), fill(background=26001), EvaluationError, "must be in 0 … 33, but got 26001"),
        (fill(background=34), fill(), DataError, "but got 34 in image 'a'.*instanceIds.png"),
        (fill(background=255), fill(), DataError, "but got 255 in image 'a'"),
        (fill(background=7001), fill(), DataError, "but got 7001 in image 'a'"),
        (fill(background=1000), fill(), DataError, "but got 1000 in image 'a'"),
        (fill(background=34000), fill(), DataError, "but got 34000 in image 'a'"),
        (fill((0, 2, -1), dtype=np.int32), fill(), DataError, "but got -1 in image 'a'"),
        (fill(dtype=np.float64), fill(), DataError, "the ground truth of image 'a'.* got float64"),
        (np.zeros((0, 20), np.uint16), np.zeros((0, 20), np.uint8), DataError, r"uint16 \(0, 20\)"),
    ],
)
def test_add_says_what_is_wrong_when_a_map_cannot_be(raster, predicted, error, message):
    evaluator = SemanticEvaluator()
    with pytest.raises(error, match=message):
        evaluator.add("a", raster, predicted)
    assert not evaluator.confusion.any() and not evaluator.image_ids


TRAIN_IDS = np.array([label.train_id for label in LABELS if label.id >= 0], dtype=np.uint8)


@pytest.mark.parametrize("background", [0, 21])
def test_add_says_training_ids_when_a_map_holds_them(background):
    """With void (255) and without it."""
    raster = fill((0, 5, ROAD), (5, 9, 23), (9, 12, 26001), (12, 13, 8), background=background)
    with pytest.raises(EvaluationError, match=r"'a' look like training ids: .* Map each training id"):
        SemanticEvaluator().add("a", raster, TRAIN_IDS[to_ids(raster)])


def test_add_takes_poor_maps_when_they_are_honest():
    """One class everywhere, nothing at all, ignored classes where they are: none is a map of training ids."""
    raster = fill((0, 5, 26001), (5, 9, 21), (9, 12, 4), (12, 15, ROAD), background=8)
    for number, label_id in enumerate([0, *EVALUATED]):
        SemanticEvaluator().add(str(number), raster, fill(background=label_id))
    SemanticEvaluator().add("a", raster, fill((9, 12, 4), (12, 15, ROAD), background=8))


@pytest.mark.parametrize("labels", [(), (BY_NAME["car"], BY_NAME["car"]), (BY_NAME["caravan"],)])
def test_evaluator_refuses_labels_when_they_are_not_evaluated_classes(labels):
    with pytest.raises(ValueError, match="different evaluated classes"):
        SemanticEvaluator(labels)


def make_prediction(rng, size, num_masks):
    masks = [np.zeros(size, np.uint8) for _ in range(num_masks)]
    for mask in masks:
        mask[draw_rectangle(rng, size)] = 1
        mask[rng.random(size) < 0.2] = 0
    prediction = Prediction(
        boxes_xyxy=np.zeros((num_masks, 4), np.float32),
        scores=np.sort(rng.choice([0.9, 0.7, 0.6, 0.5, 0.4], num_masks))[::-1].astype(np.float32),
        classes=rng.integers(1, 9, num_masks),
        masks=[rle_tools.encode(np.asfortranarray(mask)) for mask in masks],
        size=size,
    )
    return prediction, masks


@pytest.mark.parametrize("seed", range(5))
def test_paint_prediction_shows_the_best_mask_of_each_pixel(seed):
    prediction, masks = make_prediction(np.random.default_rng(seed), (13, 17), 12)
    expected = np.zeros((13, 17), np.uint8)
    for y, x in np.ndindex(13, 17):
        for mask, score, class_index in zip(masks, prediction.scores, prediction.classes, strict=True):
            if mask[y, x] and score >= 0.5:
                expected[y, x] = THINGS[class_index - 1]
                break
    painted = paint_prediction(prediction)
    assert painted.dtype == np.uint8
    np.testing.assert_array_equal(painted, expected)


def test_paint_prediction_is_empty_when_no_score_suffices():
    prediction, _ = make_prediction(np.random.default_rng(0), (13, 17), 6)
    assert paint_prediction(prediction, score=0.4).any()
    assert not paint_prediction(prediction, score=0.95).any()
    nothing, _ = make_prediction(np.random.default_rng(0), (13, 17), 0)
    np.testing.assert_array_equal(paint_prediction(nothing), np.zeros((13, 17)))
