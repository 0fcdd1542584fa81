"""Anchors against torchvision's generator, brute force over every anchor of an image, and clusters known beforehand."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from cityopt.config import DEFAULT_ANCHORS, AnchorTable
from cityopt.data import anchors
from cityopt.data.anchors import STRIDES, choose_anchors, fit_anchors, list_shapes, measure_recall
from cityopt.models.boxes import build_cells


def make_boxes(rng, shapes, image_size):
    """Return boxes of the given widths and heights `(N, 2)` anywhere in an image."""
    centres = rng.uniform(0, 1, shapes.shape) * image_size[::-1]
    return np.concatenate((centres - shapes / 2, centres + shapes / 2), axis=1)


def make_natural_boxes(rng, count, image_size, median_px):
    sizes, ratios = median_px * np.exp(0.8 * rng.normal(size=count)), np.exp(0.6 + 0.6 * rng.normal(size=count))
    return make_boxes(rng, np.stack((sizes / np.sqrt(ratios), sizes * np.sqrt(ratios)), axis=1), image_size)


def make_table(sizes, ratios):
    return AnchorTable(sizes=tuple((s,) * 3 for s in sizes), ratios=(tuple(ratios),) * 5)


def list_all_anchors(table, image_size):
    """Return every anchor that torchvision puts on the feature maps of a padded image, unrounded."""
    shapes = torch.tensor(list_shapes(table))
    generator = AnchorGenerator(sizes=((1,),) * 5, aspect_ratios=((1.0,),) * 5)
    generator.cell_anchors = [torch.cat((-level, level), dim=1) / 2 for level in shapes]
    padded = [32 * -(-side // 32) for side in image_size]
    grids = [[-(-side // stride) for side in padded] for stride in STRIDES]
    strides = [[torch.tensor(stride)] * 2 for stride in STRIDES]
    return torch.cat(generator.grid_anchors(grids, strides))


def test_default_anchors_equal_torchvisions_when_these_are_not_rounded(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "round", lambda self: self)
    sizes = ((32,), (64,), (128,), (256,), (512,))
    theirs = torch.stack(AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5).cell_anchors).double()
    shapes = torch.from_numpy(list_shapes(DEFAULT_ANCHORS))
    torch.testing.assert_close(theirs, torch.cat((-shapes, shapes), dim=-1) / 2, atol=1e-4, rtol=0)


def test_shapes_equal_those_of_the_model():
    table = AnchorTable(sizes=((7.3, 8.1, 9.2),) * 5, ratios=((0.4, 1.1, 3.3),) * 5)
    shapes = torch.from_numpy(list_shapes(table)).float()
    cells = build_cells(table.sizes, table.ratios)
    torch.testing.assert_close(cells, torch.cat((-shapes, shapes), dim=-1) / 2)


@pytest.mark.parametrize("image_size", [(128, 256), (100, 230), (360, 480)])
def test_recall_equals_brute_force_over_all_anchors(image_size):
    rng = np.random.default_rng(0)
    boxes = make_natural_boxes(rng, 150, image_size, median_px=25)
    table = make_table((9, 17, 40, 70, 160), (0.6, 1.2, 2.7))
    best = box_iou(torch.from_numpy(boxes), list_all_anchors(table, image_size)).max(dim=1).values.numpy()
    report = measure_recall(table, boxes, image_size=image_size)
    assert report["mean_best_iou"] == pytest.approx(best.mean(), abs=1e-9)
    assert report["recall_50"] == (best >= 0.5).mean() and report["recall_70"] == (best >= 0.7).mean()
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for name, chosen in (("small", area < 1024), ("medium", (area >= 1024) & (area < 9216)), ("large", area >= 9216)):
        assert report["bins"][name]["num_boxes"] == chosen.sum() > 0
        assert report["bins"][name]["mean_best_iou"] == pytest.approx(best[chosen].mean(), abs=1e-9)


def test_co_centred_recall_equals_a_slow_loop():
    rng = np.random.default_rng(1)
    boxes = make_natural_boxes(rng, 60, (128, 256), median_px=25)
    table = make_table((9, 17, 40, 70, 160), (0.6, 1.2, 2.7))
    best = []
    for x0, y0, x1, y1 in boxes:
        best.append(0.0)
        for size in (9, 17, 40, 70, 160):
            for ratio in (0.6, 1.2, 2.7):
                width, height = size / ratio**0.5, size * ratio**0.5
                common = min(width, x1 - x0) * min(height, y1 - y0)
                best[-1] = max(best[-1], common / (width * height + (x1 - x0) * (y1 - y0) - common))
    report = measure_recall(table, boxes, image_size=(128, 256))
    assert report["co_centred"]["mean_best_iou"] == pytest.approx(np.mean(best))
    assert report["co_centred"]["recall_50"] == np.mean(np.array(best) >= 0.5)
    assert report["mean_best_iou"] < report["co_centred"]["mean_best_iou"]


def test_recall_is_one_when_the_boxes_are_anchors():
    table = DEFAULT_ANCHORS
    boxes = list_all_anchors(table, (128, 128)).numpy()
    report = measure_recall(table, boxes, image_size=(128, 128))
    assert (report["mean_best_iou"], report["recall_70"]) == (pytest.approx(1), 1)


def test_recall_has_no_numbers_when_there_are_no_boxes():
    report = measure_recall(DEFAULT_ANCHORS, np.zeros((0, 4), np.float32), image_size=(64, 64))
    assert report["num_boxes"] == 0
    assert report["mean_best_iou"] is report["recall_50"] is report["bins"]["small"]["recall_70"] is None


def test_fit_recovers_clusters_when_they_are_known():
    rng = np.random.default_rng(2)
    sizes, ratios = 7.0 * np.array(STRIDES), np.array((0.4, 1.0, 2.5))
    truth = np.stack([(s / r**0.5, s * r**0.5) for s in sizes for r in ratios])
    shapes = np.repeat(truth, 60, axis=0) * np.exp(0.03 * rng.normal(size=(900, 2)))
    table = fit_anchors(make_boxes(rng, shapes, (1024, 2048)), seed=0, image_size=(1024, 2048))
    np.testing.assert_allclose(np.array(table.sizes), np.repeat(sizes[:, None], 3, axis=1), rtol=0.02)
    np.testing.assert_allclose(np.array(table.ratios), np.tile(ratios, (5, 1)), rtol=0.03)


def test_fit_equals_the_plain_cluster_mean_when_boxes_are_of_one_kind():
    """One dense cloud per level and anchor is a closed form: the geometric mean of its widths and heights."""
    rng = np.random.default_rng(3)
    shapes = np.tile((40.0, 80.0), (500, 1)) * np.exp(0.02 * rng.normal(size=(500, 2)))
    table = fit_anchors(make_boxes(rng, shapes, (512, 1024)), seed=0, image_size=(512, 1024))
    nearest = np.abs(np.log(list_shapes(table) / (40, 80))).max(axis=-1).min()
    assert nearest < 0.05


@pytest.mark.parametrize("median_px", [6, 20, 60, 200])
@pytest.mark.parametrize("count", [15, 300])
def test_fit_is_sane_for_region_proposals_when_boxes_are_small_or_large(median_px, count):
    boxes = make_natural_boxes(np.random.default_rng(median_px), count, (256, 512), median_px)
    table = fit_anchors(boxes, seed=0, image_size=(256, 512))
    sizes, ratios = np.array(table.sizes), np.array(table.ratios)
    assert sizes.shape == ratios.shape == (5, 3)
    assert (np.diff(ratios, axis=1) >= 0).all()  # wide, square, tall
    assert (sizes[1:].min(axis=1) >= sizes[:-1].max(axis=1) * (1 - 1e-9)).all()
    assert (np.diff(sizes.mean(axis=1)) > 0).all()
    assert (sizes.max(axis=1) / sizes.min(axis=1) <= 2 + 1e-9).all()


def test_fit_survives_when_all_boxes_are_equal():
    boxes = np.tile((10.0, 20.0, 30.0, 40.0), (20, 1))
    table = fit_anchors(boxes, seed=0, image_size=(64, 64))
    assert measure_recall(table, boxes, image_size=(64, 64))["mean_best_iou"] > 0.5


def test_fit_repeats_itself_when_the_seed_is_the_same():
    boxes = make_natural_boxes(np.random.default_rng(4), 400, (256, 512), 30)
    first, second = (fit_anchors(boxes.astype(np.float32), seed=7, image_size=(256, 512)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "boxes", [np.zeros((0, 4)), np.tile((0.0, 0, 9, 9), (14, 1)), np.tile((0.0, 0, 0, 9), (99, 1))]
)
def test_fit_refuses_when_boxes_are_too_few_or_flat(boxes):
    with pytest.raises(ValueError, match="at least 15 boxes"):
        fit_anchors(boxes, seed=0, image_size=(64, 64))


@pytest.mark.parametrize(("image_size", "median_px"), [((128, 256), 12), ((360, 480), 30), ((1024, 2048), 60)])
def test_choose_adopts_kmeans_when_held_out_boxes_are_like_the_fitted_ones(image_size, median_px):
    rng = np.random.default_rng(5)
    boxes = [make_natural_boxes(rng, 500, image_size, median_px).astype(np.float32) for _ in range(2)]
    table, report = choose_anchors("kmeans", *boxes, seed=0, image_size=image_size)
    assert report["adopted"] == "kmeans"
    assert table == AnchorTable(**{key: json.loads(json.dumps(report))[key] for key in ("sizes", "ratios")})
    ours, theirs = report["kmeans"], report["default"]
    assert ours["mean_best_iou"] > theirs["mean_best_iou"] and ours["recall_50"] >= theirs["recall_50"]
    kept = [part[(part[:, 2:] - part[:, :2] >= 2).all(axis=1)] for part in boxes]
    assert report["num_boxes"] == {"fit": len(kept[0]), "held_out": len(kept[1])}
    assert theirs == measure_recall(DEFAULT_ANCHORS, kept[1], image_size=image_size)


def test_choose_keeps_the_defaults_when_held_out_boxes_are_their_own():
    boxes = make_natural_boxes(np.random.default_rng(6), 300, (256, 512), 12)
    own = list_all_anchors(DEFAULT_ANCHORS, (256, 512)).numpy()
    table, report = choose_anchors("kmeans", boxes, own, seed=0, image_size=(256, 512))
    assert report["adopted"] == "default" and table == DEFAULT_ANCHORS
    assert "no higher mean best IoU" in report["reason"]
    assert report["default"]["mean_best_iou"] == pytest.approx(1)


def test_choose_keeps_the_defaults_when_fewer_boxes_reach_half(monkeypatch):
    """A higher mean does not buy a lower recall."""
    values = iter([{"recall_50": 0.9, "mean_best_iou": 0.6}, {"recall_50": 0.8, "mean_best_iou": 0.7}, {}])
    monkeypatch.setattr(anchors, "measure_recall", lambda *_, **__: {"num_boxes": 300} | next(values))
    boxes = make_natural_boxes(np.random.default_rng(6), 300, (256, 512), 12)
    table, report = choose_anchors("kmeans", boxes, boxes, seed=0, image_size=(256, 512))
    assert report["kmeans"]["recall_50"] == 0.8
    assert table == DEFAULT_ANCHORS and "fewer held-out boxes" in report["reason"]


@pytest.mark.parametrize(("num_fit", "num_held_out", "reason"), [(14, 99, "fewer than 15"), (99, 0, "no held-out")])
def test_choose_keeps_the_defaults_when_there_are_too_few_boxes(num_fit, num_held_out, reason):
    boxes = make_natural_boxes(np.random.default_rng(7), 99, (256, 512), 40)
    table, report = choose_anchors("kmeans", boxes[:num_fit], boxes[:num_held_out], seed=0, image_size=(256, 512))
    assert table == DEFAULT_ANCHORS and report["adopted"] == "default" and reason in report["reason"]
    assert report["kmeans"]["mean_best_iou"] is None
    json.dumps(report, allow_nan=False)


def test_choose_takes_what_is_asked_when_the_mode_is_default_or_explicit():
    boxes = make_natural_boxes(np.random.default_rng(8), 200, (128, 256), 12)
    wish = make_table((4, 8, 16, 32, 64), (0.5, 1, 2))
    table, report = choose_anchors("explicit", boxes, boxes, seed=0, image_size=(128, 256), table=wish)
    assert table == wish and report["adopted"] == "explicit"
    assert report["explicit"] == measure_recall(
        wish, boxes[(boxes[:, 2:] - boxes[:, :2] >= 2).all(1)], image_size=(128, 256)
    )
    table, report = choose_anchors("default", boxes, boxes, seed=0, image_size=(128, 256))
    assert table == DEFAULT_ANCHORS and report["kmeans"]["mean_best_iou"] > report["default"]["mean_best_iou"]
    with pytest.raises(ValueError, match="go together"):
        choose_anchors("explicit", boxes, boxes, seed=0, image_size=(128, 256))


def test_anchors_need_no_torch_until_they_are_used():
    code = "import sys, cityopt.data.anchors; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
