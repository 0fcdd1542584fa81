"""COCO's layout, read and refused; numbers against pycocotools, which reads the same file itself."""

import contextlib
import copy
import io

import numpy as np
import pytest
from coco_root import SIZE, list_categories, list_shapes, write_annotations, write_coco
from hotcoco import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cityopt.data.coco import encode_annotations, index_coco
from cityopt.errors import DataError
from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.labels import COCO_IDS, COCO_NAMES
from cityopt.models.masks import Prediction


@pytest.fixture(name="coco")
def _coco(tmp_path):
    return tmp_path / "coco", write_coco(tmp_path / "coco")


def test_images_come_with_what_was_annotated_in_them(coco):
    root, _ = coco
    images = index_coco(root)
    assert [image.name for image in images] == [f"{number:012d}.png" for number in (3, 10, 17)]
    assert [len(image.annotations) for image in images] == [4, 3, 0]
    assert all(image.path.is_file() and image.size == SIZE for image in images)
    first = encode_annotations(images[0])
    assert [COCO_NAMES[entry["category_id"] - 1] for entry in first] == ["person", "car", "dog", "car"]
    for entry, (_, (x, y, width, height)) in zip(first, list_shapes(3), strict=False):
        mask = np.zeros(SIZE, np.uint8)
        mask[y : y + height, x : x + width] = 1
        np.testing.assert_array_equal(rle_tools.decode(entry["segmentation"]), mask)
    crowd = first[3]
    assert crowd["iscrowd"] == 1 and rle_tools.decode(crowd["segmentation"])[:, :5].all()
    assert rle_tools.area(crowd["segmentation"]) == 5 * SIZE[0]


def draw_prediction(annotations, rng) -> Prediction:
    """Move the true masks about, call some of them by another name, and add one where nothing is."""
    masks, classes = [], []
    for entry in annotations:
        mask = np.roll(rle_tools.decode(entry["segmentation"]), rng.integers(-3, 4, 2), axis=(0, 1))
        masks.append(mask.astype(bool))
        classes.append(entry["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 81)))
    masks.append(np.pad(np.ones((9, 9), bool), ((SIZE[0] - 9, 0), (SIZE[1] - 9, 0))))
    return Prediction.from_masks(masks, [*classes, 1], rng.random(len(masks)).tolist(), SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_equal_pycocotools_which_reads_the_file_itself(coco, seed):
    root, content = coco
    rng = np.random.default_rng(seed)
    evaluator, results = CocoEvaluator(COCO_NAMES), {"segm": [], "bbox": []}
    for image, entry in zip(index_coco(root), content["images"], strict=True):
        annotations = encode_annotations(image)
        prediction = draw_prediction(annotations, rng)
        evaluator.add_annotated(image.name, image.size, annotations, prediction)
        for row, class_index in enumerate(prediction.classes):
            x0, y0, x1, y1 = prediction.boxes_xyxy[row].tolist()
            own = {
                "image_id": entry["id"],
                "category_id": COCO_IDS[class_index - 1],
                "score": float(prediction.scores[row]),
            }
            results["segm"].append({**own, "segmentation": dict(prediction.masks[row])})
            results["bbox"].append({**own, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    found = evaluator.summarize()
    for kind, some in results.items():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(str(root / "annotations/instances_val2017.json"))
            theirs = COCOeval(truth, truth.loadRes(some), kind)
            theirs.evaluate()
            theirs.accumulate()
            theirs.summarize()
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
        for name, value in zip(names, theirs.stats[:6], strict=True):
            expected = np.nan if value == -1 else value
            assert found[f"coco/{kind}/{name}"] == pytest.approx(expected, abs=1e-9, nan_ok=True), (kind, name)
        assert 0 < found[f"coco/{kind}/ap50"] < 1


def change(content, **changes):
    """Return annotations in which the first annotation is another."""
    changed = copy.deepcopy(content)
    changed["annotations"][0] |= changes
    return changed


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"category_id": 12}, "a category of COCO's"),
        ({"category_id": [1]}, "a category of COCO's"),
        ({"bbox": [1, 2, 3]}, "four numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "four numbers"),
        ({"area": "large"}, "an `area`"),
        ({"area": 10**400}, "an `area`"),
        ({"area": -1}, "no area below 0"),
        ({"bbox": [5, 5, -2, 3]}, "no side .* below 0"),
        ({"iscrowd": 2}, "`iscrowd` 0 or 1"),
        ({"image_id": 99}, "of one of its images, but 100 is of 99"),
        ({"image_id": {}}, "of one of its images"),
    ],
)
def test_annotation_is_refused_when_it_cannot_be_judged(coco, changes, text):
    root, content = coco
    write_annotations(root, change(content, **changes))
    with pytest.raises(DataError, match=text):
        index_coco(root)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5, 1e300]],
        {"size": [1, 2], "counts": [2]},
        {"size": list(SIZE), "counts": [5]},
        {"size": list(SIZE), "counts": [-1, SIZE[0] * SIZE[1] + 1]},
        {"size": list(SIZE), "counts": "`0"},
    ],
)
def test_segmentation_is_refused_when_it_is_none(coco, segmentation):
    root, content = coco
    write_annotations(root, change(content, segmentation=segmentation))
    with pytest.raises(DataError, match=r"polygons or the counts .* annotation 100 of 000000000003\.png"):
        index_coco(root)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "must hold JSON"),
        ("[1]", "must hold a mapping"),
        ({}, "under 'categories'"),
        ({"categories": list_categories(), "images": [], "annotations": []}, "must have images"),
        ({"categories": list_categories()[:1]}, "COCO's 80, but 79 are missing, first 'bicycle'"),
        ({"categories": [{"id": 1, "name": "cat"}]}, "COCO's 80, but 1 is 'cat'"),
        ({"categories": list_categories(), "images": [{"id": 1, "file_name": "../x.png"}]}, "a plain name"),
        ({"categories": list_categories(), "images": [{"id": 1, "file_name": 300 * "x"}]}, "a plain name"),
        ({"categories": list_categories(), "images": [{"id": 1, "file_name": "\ud800.png"}]}, "a plain name"),
        ({"categories": list_categories(), "images": [{"id": 1, "file_name": "x.png"}]}, "a height and a width"),
    ],
)
def test_annotations_are_refused_when_they_are_none_of_cocos(coco, content, text):
    root, _ = coco
    write_annotations(root, content)
    with pytest.raises(DataError, match=text):
        index_coco(root)


@pytest.mark.parametrize(
    "changes", [{"id": 3}, {"id": None}, {"id": "10"}, {"id": -1}, {"id": True}, {"file_name": "000000000003.png"}]
)
def test_image_is_refused_that_would_stand_for_another(coco, changes):
    root, content = coco
    content["images"][1] |= changes
    write_annotations(root, content)
    with pytest.raises(DataError, match="no two the same"):
        index_coco(root)


def test_root_is_refused_without_annotations_or_images(coco, tmp_path):
    root, _ = coco
    (root / "val2017/000000000010.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 are missing, first .*000000000010\.png"):
        index_coco(root)
    (root / "annotations/instances_val2017.json").unlink()
    with pytest.raises(DataError, match=r"must hold annotations.*annotations_trainval2017\.zip.*leave --coco out"):
        index_coco(root)
    with pytest.raises(DataError, match="must be a folder"):
        index_coco(tmp_path / "nowhere")
