"""Anchors for the region proposals: clusters of a study's boxes, and what any table of anchors can reach.

Fitted once per study, before the first trial, on the training subset's boxes at training resolution; from there the
table travels as plain numbers in every config and checkpoint. `cityopt anchors` prints what `choose_anchors` reports.

The method is k-means with 1 - IoU as the distance and the mean of log width and log height as the centre, which
differs from the textbook in that an anchor stands on its level's grid: where the cells are `stride` apart, the IoU is
that of the nearest cell's anchor, not of co-centred shapes. Without this, small boxes fill the coarse levels with
small anchors that reach hardly any of them. Three rules keep a table fit for (pretrained) region proposals:
  - the start is one number c, sizes `c * stride`, with three ratios that scikit-learn's k-means finds in log space;
  - a size stays within a factor of sqrt 2 of `c * stride`, so sizes grow with the levels, and a level without boxes
    keeps its start;
  - the A = 3 anchors of a level are ordered wide, square, tall, as the channels of pretrained weights are.

Shapes: N boxes, L = 5 levels (P2 … P6), A = 3 anchors per level. Sizes are sqrt(area) and boxes are in pixels of the
network's input, ratios are height / width. Nothing is rounded.

Source: Redmon and Farhadi, "YOLO9000", 2016, section 2 (dimension clusters); Ren et al., "Faster R-CNN", 2015.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cityopt.config import DEFAULT_ANCHORS, AnchorTable

Floats = NDArray[np.float64]

STRIDES = (4, 8, 16, 32, 64)
NUM_RATIOS = 3
NUM_ANCHORS = len(STRIDES) * NUM_RATIOS
MIN_SIDE_PX = 2.0
"""Boxes with a shorter side are neither fitted nor counted by `choose_anchors`."""
BAND = 2**0.5
SCALES = np.geomspace(1, 32, 41)
NUM_ROUNDS = 15
PAD_PX = 32
SIZE_BINS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}


@dataclass(frozen=True, slots=True)
class NamedAnchors:
    """A table of anchors, whose it is, and for which images."""

    table: AnchorTable
    name: str
    """Such as `k-means anchors of maskrcnn`."""
    size: tuple[int, int] | None
    """(height, width) in pixels that images are resized to for these anchors; None leaves them as they are."""


def name_adopted(study: str, report: dict[str, Any], size: tuple[int, int]) -> NamedAnchors:
    """Return the anchors that a study adopted, from the report of `choose_anchors` and the study's image size.

    A semantic study has no report: torchvision's defaults stand in for comparison.
    """
    if not report:
        return NamedAnchors(DEFAULT_ANCHORS, "torchvision's default anchors", None)
    kinds = {"kmeans": "k-means anchors", "default": "torchvision's default anchors", "explicit": "explicit anchors"}
    table = AnchorTable(sizes=report["sizes"], ratios=report["ratios"])
    return NamedAnchors(table, f"{kinds[report['adopted']]} of {study}", size)


def list_shapes(table: AnchorTable) -> Floats:
    """Return the widths and heights `(L, A, 2)` of a table's anchors in pixels."""
    return _spread(np.array(table.sizes), np.array(table.ratios))


def fit_anchors(boxes_xyxy: NDArray[Any], *, seed: int, image_size: tuple[int, int]) -> AnchorTable:
    """Cluster boxes `(N, 4)` of images of `image_size` (height, width) into a table of 5 levels with 3 anchors each.

    The same boxes in the same order and the same seed give the same table.

    Raises ValueError: fewer boxes than anchors, or a box without area.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    extents = boxes[:, 2:] - boxes[:, :2]
    if len(boxes) < NUM_ANCHORS or extents.min() <= 0:
        raise ValueError(
            f"k-means needs at least {NUM_ANCHORS} boxes of positive width and height, but got {len(boxes)} boxes."
        )
    scale, shapes = _find_start(boxes, _cluster_ratios(extents, seed), image_size)
    best, best_shapes = -1.0, shapes
    for _ in range(NUM_ROUNDS):
        overlap = measure_overlap(shapes, boxes, image_size).reshape(len(boxes), -1)
        mean = float(overlap.max(axis=1).mean())
        if mean > best:
            best, best_shapes = mean, shapes
        shapes = _move_centres(shapes, extents, overlap.argmax(axis=1), scale)
    return _tabulate(best_shapes)


def measure_overlap(shapes: Floats, boxes_xyxy: NDArray[Any], image_size: tuple[int, int] | None) -> Floats:
    """Return the IoU `(N, L, A)` of each box with the nearest anchor of each kind.

    The nearest anchor is that of the nearest cell of the level's grid in an image of `image_size` (height, width);
    None puts box and anchor on one centre, which shows what the shapes alone could do.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    extents = boxes[:, 2:] - boxes[:, :2]
    overlap = np.empty((len(boxes), *shapes.shape[:2]))
    for level, stride in enumerate(STRIDES):
        distance = _measure_distance(boxes, stride, image_size)
        anchors = shapes[level]
        shared = (anchors[None] + extents[:, None]) / 2 - distance[:, None]
        sides = np.clip(np.minimum(shared, np.minimum(anchors[None], extents[:, None])), 0, None)
        common = sides.prod(axis=-1)
        overlap[:, level] = common / (anchors.prod(axis=-1)[None] + extents.prod(axis=-1)[:, None] - common)
    return overlap


def measure_recall(table: AnchorTable, boxes_xyxy: NDArray[Any], *, image_size: tuple[int, int]) -> dict[str, Any]:
    """Measure how well a table's anchors meet boxes `(N, 4)` where they stand in images of `image_size`.

    Returns `mean_best_iou`, `recall_50` and `recall_70` (the shares of boxes whose best anchor reaches an IoU of .5
    and .7), with the offset to the nearest cell; the same under `co_centred` without it, and under `bins` for small,
    medium and large boxes (below 32², below 96² and above, in px of box area). Numbers are None where there is no box.
    """
    shapes = list_shapes(table)
    best = measure_overlap(shapes, boxes_xyxy, image_size).max(axis=(1, 2))
    centred = measure_overlap(shapes, boxes_xyxy, None).max(axis=(1, 2))
    boxes = np.asarray(boxes_xyxy, dtype=np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    bins = {name: _summarize(best[(areas >= low) & (areas < high)]) for name, (low, high) in SIZE_BINS.items()}
    return {**_summarize(best), "co_centred": _summarize(centred), "bins": bins}


def choose_anchors(
    mode: Literal["kmeans", "default", "explicit"],
    fit_boxes: NDArray[Any],
    held_out_boxes: NDArray[Any],
    *,
    seed: int,
    image_size: tuple[int, int],
    table: AnchorTable | None = None,
) -> tuple[AnchorTable, dict[str, Any]]:
    """Fit anchors, compare them with the defaults on held-out boxes, and say which ones a study shall use.

    `kmeans` adopts the clusters only if they are better on the held-out boxes `(M, 4)`: a higher mean best IoU and no
    lower share of boxes at IoU .5. It keeps the defaults if not, or if there are fewer boxes than anchors or none
    held out. `default` and `explicit` (which takes `table`) are adopted as asked, with the comparison beside them.

    Returns the table and a report that JSON can hold: `sizes` and `ratios` of the adopted table, `adopted`, `reason`,
    `num_boxes`, and `measure_recall` on the held-out boxes under `kmeans`, `default` and, if given, `explicit`.
    """
    if (mode == "explicit") != (table is not None):
        raise ValueError("`mode='explicit'` and `table` go together.")
    fit_boxes, held_out_boxes = _drop_slivers(fit_boxes), _drop_slivers(held_out_boxes)
    tables = {"default": DEFAULT_ANCHORS}
    if len(fit_boxes) >= NUM_ANCHORS:
        tables["kmeans"] = fit_anchors(fit_boxes, seed=seed, image_size=image_size)
    if table is not None:
        tables["explicit"] = table
    scores = {name: measure_recall(entry, held_out_boxes, image_size=image_size) for name, entry in tables.items()}
    adopted, reason = _judge(mode, scores)
    chosen = tables[adopted]
    report = {
        "sizes": [list(row) for row in chosen.sizes],
        "ratios": [list(row) for row in chosen.ratios],
        "adopted": adopted,
        "reason": reason,
        "num_boxes": {"fit": len(fit_boxes), "held_out": len(held_out_boxes)},
        "kmeans": measure_recall(chosen, np.zeros((0, 4)), image_size=image_size),  # None, if nothing was fitted
    }
    return chosen, report | scores


def _judge(mode: Literal["kmeans", "default", "explicit"], scores: dict[str, Any]) -> tuple[str, str]:
    """Return the name of the table to use, and why."""
    if mode != "kmeans":
        return mode, f"`model.anchors: {mode}` asks for it"
    if "kmeans" not in scores:
        return "default", f"fewer than {NUM_ANCHORS} boxes to fit"
    ours, theirs = scores["kmeans"], scores["default"]
    if not ours["num_boxes"]:
        return "default", "no held-out boxes to compare on"
    if ours["mean_best_iou"] <= theirs["mean_best_iou"]:
        return "default", "k-means has no higher mean best IoU on held-out boxes"
    if ours["recall_50"] < theirs["recall_50"]:
        return "default", "k-means brings fewer held-out boxes to an IoU of .5"
    return "kmeans", "higher mean best IoU, and no fewer boxes at an IoU of .5, on held-out boxes"


def _drop_slivers(boxes_xyxy: NDArray[Any]) -> Floats:
    boxes: Floats = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return boxes[(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE_PX).all(axis=1)]


def _cluster_ratios(extents: Floats, seed: int) -> Floats:
    """Return three ratios, ascending: k-means of log(height / width), or the defaults if all boxes look alike."""
    from sklearn.cluster import KMeans

    logs = np.log(extents[:, 1] / extents[:, 0])
    if len(np.unique(logs)) < NUM_RATIOS:
        return np.array(DEFAULT_ANCHORS.ratios[0])
    clusters = KMeans(NUM_RATIOS, n_init=10, random_state=seed).fit(logs[:, None])
    # Rounded, because threads may add up in another order: the same seed must give the same table.
    centres: Floats = np.sort(clusters.cluster_centers_[:, 0]).round(6)
    return np.exp(centres)


def _find_start(boxes: Floats, ratios: Floats, image_size: tuple[int, int]) -> tuple[float, Floats]:
    """Return c and the shapes of sizes `c * stride` that meet the boxes best."""
    candidates = [(float(scale), _spread(scale * np.array(STRIDES)[:, None], ratios[None])) for scale in SCALES]
    means = [measure_overlap(shapes, boxes, image_size).max(axis=(1, 2)).mean() for _, shapes in candidates]
    return candidates[int(np.argmax(means))]


def _move_centres(shapes: Floats, extents: Floats, nearest: NDArray[np.intp], scale: float) -> Floats:
    """Move each anchor to the mean log width and log height of the boxes nearest to it, within its level's band."""
    counts = np.bincount(nearest, minlength=NUM_ANCHORS)[:, None]
    sums = np.stack([np.bincount(nearest, np.log(extents[:, i]), NUM_ANCHORS) for i in (0, 1)], axis=1)
    moved = np.where(counts > 0, np.exp(sums / np.maximum(counts, 1)), shapes.reshape(-1, 2)).reshape(shapes.shape)
    middle = scale * np.array(STRIDES)[:, None]
    sizes = np.clip(np.sqrt(moved.prod(axis=-1)), middle / BAND, middle * BAND)
    ratios = moved[..., 1] / moved[..., 0]
    order = np.argsort(ratios, axis=1, kind="stable")
    return _spread(np.take_along_axis(sizes, order, axis=1), np.take_along_axis(ratios, order, axis=1))


def _spread(sizes: Floats, ratios: Floats) -> Floats:
    """Return widths and heights `(L, A, 2)` of sizes and ratios that broadcast to `(L, A)`."""
    root = np.sqrt(ratios)
    return np.stack((sizes / root, sizes * root), axis=-1)


def _tabulate(shapes: Floats) -> AnchorTable:
    sizes, ratios = np.sqrt(shapes.prod(axis=-1)), shapes[..., 1] / shapes[..., 0]
    return AnchorTable(sizes=tuple(map(tuple, sizes.tolist())), ratios=tuple(map(tuple, ratios.tolist())))


def _measure_distance(boxes: Floats, stride: int, image_size: tuple[int, int] | None) -> Floats:
    """Return the distance `(N, 2)` in x and y from each box's centre to the nearest cell of a level."""
    if image_size is None:
        return np.zeros((len(boxes), 2))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    padded = -(-np.array(image_size[::-1]) // PAD_PX) * PAD_PX
    num_cells = -(-padded // stride)
    nearest: Floats = np.clip(np.rint(centres / stride), 0, num_cells - 1) * stride
    return np.abs(centres - nearest)


def _summarize(best: Floats) -> dict[str, Any]:
    if not best.size:
        return {"num_boxes": 0, "mean_best_iou": None, "recall_50": None, "recall_70": None}
    recalls = {f"recall_{round(100 * t)}": float((best >= t).mean()) for t in (0.5, 0.7)}
    return {"num_boxes": int(best.size), "mean_best_iou": float(best.mean()), **recalls}
