"""COCO metrics against pycocotools, on random scenes with crowds, ties, empty images and too many detections."""

import contextlib
import io
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cityopt.errors import DataError, EvaluationError
from cityopt.evaluation.coco_ap import CocoEvaluator, find_runs, metric_names
from cityopt.labels import THING_LABELS, THING_NAMES

IDS = [label.id for label in THING_LABELS]


def make_prediction(size, masks, classes, scores, boxes=None):
    """Stand in for models.masks.Prediction: the evaluator reads these five fields and no more."""
    rles = [rle_tools.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    if boxes is None:
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (rle_tools.toBbox(rle) for rle in rles)]
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    return SimpleNamespace(
        size=size,
        boxes_xyxy=np.asarray(boxes, np.float32).reshape(-1, 4)[order],
        classes=np.asarray(classes, np.int64).reshape(-1)[order],
        scores=np.asarray(scores, np.float32).reshape(-1)[order],
        masks=[rles[i] for i in order],
    )


def draw_ellipse(size, center, radii):
    y, x = np.ogrid[: size[0], : size[1]]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def make_scene(rng, size, num_objects, num_predictions):
    """Return a raster with instances, groups and caravans, and predictions near to them and far from them."""
    raster, shapes = np.full(size, 7, np.uint16), []
    for number in range(num_objects):
        label_id = int(rng.choice([*IDS, 29]))
        center, radii = rng.uniform(0, size), np.exp(rng.uniform(np.log(1.5), np.log(size[0] / 3), 2))
        is_group = rng.random() < 0.15
        raster[draw_ellipse(size, center, radii)] = label_id if is_group else label_id * 1000 + number
        shapes.append((label_id, center, radii))
    masks, classes, scores, boxes = [], [], [], []
    for _ in range(num_predictions):
        label_id, center, radii = int(rng.choice(IDS)), rng.uniform(0, size), rng.uniform(2, size[0] / 3, 2)
        if shapes and rng.random() < 0.8:
            label_id, center, radii = shapes[rng.integers(len(shapes))]
            blur = rng.choice([0, 0.05, 0.3])
            center, radii = center + blur * radii * rng.normal(size=2), radii * np.exp(blur * rng.normal(size=2))
        masks.append(draw_ellipse(size, center, radii))
        classes.append(IDS.index(label_id) + 1 if label_id in IDS else 3)
        scores.append(round(rng.random(), 1 if rng.random() < 0.5 else 6))  # many ties
        (y, x), (ry, rx) = center, radii
        boxes.append(np.array([x - rx, y - ry, x + rx, y + ry]) + 0.3 * rng.normal(size=4))
    return raster, make_prediction(size, masks, classes, scores, boxes)


def list_ground_truth(scenes):
    """Convert rasters to a COCO dictionary the slow way: a full mask per id."""
    images, annotations = [], []
    for image_id, (raster, _) in enumerate(scenes, start=1):
        images.append({"id": image_id, "height": raster.shape[0], "width": raster.shape[1]})
        for value in np.unique(raster):
            label_id = int(value) // 1000 if value >= 1000 else int(value)
            if label_id not in IDS:
                continue
            rle = rle_tools.encode(np.asfortranarray(raster == value))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": IDS.index(label_id) + 1,
                    "iscrowd": int(value < 1000),
                    "area": int((raster == value).sum()),
                    "bbox": rle_tools.toBbox(rle).tolist(),
                    "segmentation": rle,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(THING_NAMES, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def list_results(scenes, kind):
    results: list[dict[str, Any]] = []
    for image_id, (_, prediction) in enumerate(scenes, start=1):
        for i, score in enumerate(prediction.scores):
            x0, y0, x1, y1 = map(float, prediction.boxes_xyxy[i])
            shape = {"segmentation": prediction.masks[i]} if kind == "segm" else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            category = int(prediction.classes[i])
            results.append({"image_id": image_id, "category_id": category, "score": float(score), **shape})
    return results


def run_pycocotools(scenes):
    """Return the metrics as pycocotools computes them from a COCO dictionary."""
    metrics = {}
    for kind in ("segm", "bbox"):
        with contextlib.redirect_stdout(io.StringIO()):
            truth, found = COCO(), COCO()
            truth.dataset = list_ground_truth(scenes)
            truth.createIndex()
            results = list_results(scenes, kind)
            if results:
                found = truth.loadRes(results)
            else:
                found.dataset = truth.dataset | {"annotations": []}
                found.createIndex()
            evaluation = COCOeval(truth, found, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        metrics |= {f"coco/{kind}/{name}": value for name, value in zip(names, evaluation.stats[:6], strict=True)}
        for index, label in enumerate(THING_NAMES):
            for name, rows in (("ap", slice(None)), ("ap50", slice(0, 1))):
                values = evaluation.eval["precision"][rows, :, index, 0, 2]
                metrics[f"coco/{kind}/{name}/class/{label}"] = np.mean(values[values > -1]) if values.max() > -1 else -1
    return metrics


def run_ours(scenes):
    evaluator = CocoEvaluator(THING_NAMES)
    for number, (raster, prediction) in enumerate(scenes):
        evaluator.add(f"image-{number}", raster, prediction)
    return evaluator.summarize()


def assert_same(scenes):
    ours, theirs = run_ours(scenes), run_pycocotools(scenes)
    assert set(ours) == set(theirs) == set(metric_names())
    for name, value in theirs.items():
        expected = math.nan if value == -1 else value
        assert ours[name] == pytest.approx(expected, abs=1e-9, nan_ok=True), name
    return ours


@pytest.mark.parametrize("seed", range(12))
def test_evaluator_equals_pycocotools_when_scenes_are_random(seed):
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(rng.integers(2, 6)):
        size = (int(rng.integers(40, 160)), int(rng.integers(40, 240)))
        scenes.append(make_scene(rng, size, int(rng.choice([0, 3, 15])), int(rng.choice([0, 10, 40]))))
    assert_same(scenes)


def test_evaluator_equals_pycocotools_when_a_class_has_more_than_100_detections():
    rng = np.random.default_rng(1)
    raster, prediction = make_scene(rng, (60, 80), 10, 140)
    prediction.classes[:] = 3
    ours = assert_same([(raster, prediction)])
    assert ours["coco/segm/ap"] >= 0


def test_evaluator_equals_pycocotools_when_objects_are_of_every_size():
    rng = np.random.default_rng(3)
    ours = assert_same([make_scene(rng, (400, 500), 30, 60) for _ in range(2)])
    bins = [ours[f"coco/{kind}/ap_{size}"] for kind in ("segm", "bbox") for size in ("small", "medium", "large")]
    assert all(value > 0 for value in bins)
    assert len(set(bins)) == 6


def test_evaluator_gives_one_when_the_only_instance_is_found():
    raster = np.zeros((40, 50), np.int32)
    raster[10:30, 5:45] = 26000
    metrics = run_ours([(raster, make_prediction((40, 50), [raster == 26000], [3], [0.3]))])
    names = ("coco/segm/ap", "coco/segm/ap_small", "coco/segm/ap/class/car", "coco/bbox/ap50")
    assert [metrics[name] for name in names] == pytest.approx([1, 1, 1, 1])
    assert math.isnan(metrics["coco/segm/ap_large"])
    assert math.isnan(metrics["coco/segm/ap/class/bus"])


def test_evaluator_ignores_many_predictions_when_they_lie_in_a_group():
    raster = np.zeros((40, 90), np.uint16)
    raster[10:30, :40] = 24  # a group: neither to be found nor to be punished
    raster[10:30, 50:80] = 24000
    inside = np.zeros_like(raster, bool)
    inside[12:20, 3:20] = True
    person = raster == 24000
    scenes = [(raster, make_prediction((40, 90), [inside, inside.copy(), person], [1, 1, 1], [0.9, 0.8, 0.7]))]
    assert assert_same(scenes)["coco/segm/ap"] == pytest.approx(1)


def test_evaluator_punishes_a_prediction_when_it_lies_on_a_caravan():
    raster = np.zeros((40, 90), np.uint16)
    raster[10:30, :40] = 29000
    raster[10:30, 50:80] = 26000
    masks = [raster == 29000, raster == 26000]
    scenes = [(raster, make_prediction((40, 90), masks, [3, 3], [0.9, 0.7]))]
    assert assert_same(scenes)["coco/segm/ap"] == pytest.approx(0.5)


@pytest.mark.parametrize("fill", [0, 26, 26000])
def test_evaluator_equals_pycocotools_when_nothing_is_predicted(fill):
    raster = np.zeros((20, 30), np.uint16)
    raster[5:15, 5:15] = fill
    metrics = assert_same([(raster, make_prediction((20, 30), [], [], []))] * 1)
    assert metrics["coco/segm/ap"] == 0 if fill == 26000 else math.isnan(metrics["coco/segm/ap"])


def test_evaluator_gives_nan_when_no_image_was_added():
    metrics = CocoEvaluator().summarize()
    assert list(metrics) == metric_names()
    assert all(math.isnan(value) for value in metrics.values())


def test_evaluator_repeats_itself_and_is_silent(capfd):
    rng = np.random.default_rng(5)
    scenes = [make_scene(rng, (50, 70), 6, 20) for _ in range(3)]
    evaluator = CocoEvaluator()
    for number, (raster, prediction) in enumerate(scenes):
        evaluator.add(str(number), raster, prediction)
    first = evaluator.summarize()
    np.testing.assert_equal(first, evaluator.summarize())
    np.testing.assert_equal(first, run_ours(scenes))
    assert capfd.readouterr() == ("", "")


def test_evaluator_refuses_an_image_when_it_comes_twice_or_late_or_in_another_size():
    evaluator = CocoEvaluator()
    raster, nothing = np.zeros((20, 30), np.uint16), make_prediction((20, 30), [], [], [])
    evaluator.add("a", raster, nothing)
    with pytest.raises(EvaluationError, match="'a' came again"):
        evaluator.add("a", raster, nothing)
    with pytest.raises(EvaluationError, match=r"\(20, 30\) and \(30, 20\)"):
        evaluator.add("b", raster.T, nothing)
    evaluator.summarize()
    with pytest.raises(ValueError, match="must come before"):
        evaluator.add("c", raster, nothing)


def test_find_runs_gives_the_masks_when_instances_touch_the_borders():
    rng = np.random.default_rng(2)
    raster = rng.choice([7, 26, 26000, 24003, 29000], size=(9, 13)).astype(np.uint16)
    raster[0, 0], raster[-1, -1] = 26000, 24003
    found = list(find_runs(raster))
    assert [(index, is_crowd) for index, is_crowd, _ in found] == [(3, True), (1, False), (3, False)]
    for value, (_, _, counts) in zip((26, 24003, 26000), found, strict=True):
        mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(raster.shape, order="F")
        np.testing.assert_array_equal(mask, raster == value)


def test_metric_names_need_no_torch():
    code = (
        "import sys; from cityopt.evaluation.coco_ap import metric_names; names = metric_names();"
        "assert 'coco/segm/ap/class/bicycle' in names and len(set(names)) == len(names) == 44;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("seed", range(4))
def test_evaluator_equals_pycocotools_when_all_hard_cases_come_together(seed):
    """Crowds, images without objects or without predictions, more than 100 of a class, ties across the cut at 100."""
    rng = np.random.default_rng(100 + seed)
    size = (60, 90)
    crowded, many = make_scene(rng, size, 25, 260)
    many.classes[:230] = rng.choice([1, 3], 230, p=[0.3, 0.7])
    many.scores[:] = np.sort(rng.choice([0.2, 0.4, 0.6, 0.8], 260))[::-1]
    crowded[:20, :30], crowded[40:, 60:] = 26, 24
    empty, found_in_empty = make_scene(rng, size, 0, 15)
    missed, _ = make_scene(rng, size, 12, 0)
    scenes = [
        (empty, found_in_empty),
        (crowded, many),
        (missed, make_prediction(size, [], [], [])),
        make_scene(rng, size, 15, 40),
    ]
    own = np.sort(many.scores[many.classes == 3])[::-1]
    assert len(own) > 100 and own[99] == own[100]
    assert {26, 24} <= set(crowded[crowded < 1000].tolist())
    assert_same(scenes)


def test_evaluator_drops_what_is_beyond_100_of_a_class_and_image_when_scores_tie():
    raster = np.zeros((40, 50), np.uint16)
    raster[10:30, 5:45] = 26000
    wrong, right = np.zeros_like(raster, bool), raster == 26000
    wrong[:5, :5] = True
    for place, found in ((99, True), (100, False)):  # from 0
        masks = [wrong] * place + [right] + [wrong] * (110 - place)
        ours = assert_same([(raster, make_prediction((40, 50), masks, [3] * 111, [0.5] * 111))])
        assert (ours["coco/segm/ap"] > 0) == found


def test_annotations_are_counted_from_one_over_all_images():
    """With pycocotools' rule an annotation 0 could not be found."""
    raster = np.zeros((20, 30), np.uint16)
    raster[2:6, 2:9], raster[10:15, 3:20], raster[16:, 20:] = 26000, 24001, 24
    evaluator = CocoEvaluator()
    found = [annotation["id"] for number in (1, 2) for annotation in evaluator.annotate(raster, number)]
    assert found == [1, 2, 3, 4, 5, 6]


MASK = np.pad(np.ones((6, 6), bool), 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"classes": np.array([9])}, EvaluationError, r"1\.\.8, but got 9 for image 'b'"),
        ({"classes": np.array([0])}, EvaluationError, "but got 0"),
        ({"classes": np.array([26])}, EvaluationError, "but got 26"),
        ({"scores": np.array([np.nan], np.float32)}, EvaluationError, "NaN for image 'b'"),
        ({"scores": np.zeros(2, np.float32)}, EvaluationError, "equally many"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, EvaluationError, "equally many"),
        ({"masks": [MASK]}, EvaluationError, "but got ndarray for image 'b'.*from_masks"),
        ({"masks": [rle_tools.encode(np.asfortranarray(MASK[:10]).astype(np.uint8))]}, EvaluationError, "one size"),
        ({"raster": np.zeros((22, 22))}, DataError, "integers, but got"),
    ],
)
def test_evaluator_refuses_what_it_could_only_miscount(changes, error, message):
    raster = np.where(MASK, 26000, 7).astype(np.uint16)
    fine = make_prediction(MASK.shape, [MASK], [3], [0.5])
    evaluator = CocoEvaluator()
    evaluator.add("a", raster, fine)
    changes = dict(changes)
    raster_b = changes.pop("raster", raster)
    with pytest.raises(error, match=message):
        evaluator.add("b", raster_b, SimpleNamespace(**{**vars(fine), **changes}))
    assert evaluator.summarize()["coco/segm/ap"] == pytest.approx(1)  # what was refused left no trace
