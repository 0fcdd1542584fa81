"""Transfer studies without networks: what two models would find is the truth, drawn on coarse and on fine grids."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hotcoco import mask as rle_tools
from PIL import Image

from cityopt.config import ModelConfig
from cityopt.evaluation.close_ups import choose_close_ups, draw_close_up
from cityopt.evaluation.coco_ap import annotate_raster
from cityopt.evaluation.overlays import encode_picture
from cityopt.evaluation.transfer import StreetJudge
from cityopt.labels import RIDER, THING_NAMES
from cityopt.models.masks import Prediction, encode_masks
from cityopt.training import transfer_comparison
from cityopt.training.conversion import _describe_run
from cityopt.training.transfer_comparison import compare_subjects
from cityopt.training.transfer_study import COCO, STREETS, Conditions, Ground, Subject, TransferStudy

GRIDS = {"mask_rcnn_coco": 14, "point_rend_coco": 56}


def find_truth(raster, side: int, rng) -> Prediction:
    """Return what a model without riders finds whose masks have `side` x `side` cells; one in ten is missed."""
    probabilities, boxes, classes = [], [], []
    for entry in annotate_raster(raster):
        if entry["iscrowd"] or entry["category_id"] == RIDER or rng.random() < 0.1:
            continue
        x, y, width, height = map(int, entry["bbox"])
        crop = rle_tools.decode(entry["segmentation"])[y : y + height, x : x + width]
        small = Image.fromarray(crop * np.uint8(255)).resize((side, side), Image.Resampling.BOX)
        probabilities.append(np.asarray(small, dtype=np.float32) / 255)
        boxes.append((x, y, x + width, y + height))
        classes.append(entry["category_id"])
    box_array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.sort(rng.uniform(0.5, 1, len(boxes)).astype(np.float32))[::-1]
    masks = encode_masks(np.array(probabilities).reshape(-1, side, side), box_array, raster.shape)
    return Prediction(box_array, scores, np.array(classes, np.int64), masks, raster.shape)


def make_transfer(images: Mapping[str, tuple], root: Path, *, on_coco: bool = True) -> TransferStudy:
    """Return a study of two models on streets: (pixels, raster) by name. On COCO both are said to score half more."""
    grounds = [Ground(STREETS, root, "val", len(images), len(images), "1024 x 2048")]
    grounds += [Ground(COCO, root / "coco", "val2017", 2, 5000, "800/1333", num_published=5000)] if on_coco else []
    environment = {"device": "a card", "torch": "2.9", "torchvision": "0.24", "cityopt": "1.0", "platform": "Linux"}
    conditions = Conditions(limit=2 if on_coco else None, begun="2026-11-26 10:00:00", environment=environment)
    study = TransferStudy(grounds, conditions=conditions)
    for label, side in GRIDS.items():
        family = label.removesuffix("_coco")
        model = ModelConfig(family=family, classes="coco", weights="x.pkl", flavour="detectron2", anchors="default")
        origin = {"framework": "detectron2", "file": f"{family}.pkl", "licence": "CC BY-SA 3.0"}
        subject = Subject(label, f"{label}.pt", _describe_run(model, "detectron2", Path("x.pkl")), origin, 44_000_000)
        rng, judge = np.random.default_rng(0), StreetJudge(is_coco=True)
        for name, (_, raster) in images.items():
            judge.add(name, raster, find_truth(raster, side, rng))
            judge.judged.seconds.append(0.5 + side / 100)
        subject.judged[STREETS] = judge.finish()
        if on_coco:
            subject.judged[COCO] = raise_scores(subject.judged[STREETS])
        study.subjects.append(subject)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer_comparison, "AP_DRAWS", 50)
        study.comparisons = compare_subjects(*study.subjects)
    draw_pictures(study, images)
    return study


def raise_scores(judged):
    metrics = {name: min(1.0, 1.5 * value) for name, value in judged.metrics.items() if "cityscapes" not in name}
    return type(judged)(metrics, judged.seconds, judged.found)


def draw_pictures(study: TransferStudy, images: Mapping[str, tuple]) -> None:
    found = [subject.judged[STREETS].found for subject in study.subjects]
    for close_up in choose_close_ups(*found):
        pixels, raster = images[close_up.image]
        truth = list(annotate_raster(raster))[close_up.number]
        picture = draw_close_up(pixels, truth["segmentation"], close_up, list(GRIDS))
        study.close_ups.append((THING_NAMES[truth["category_id"] - 1], close_up, encode_picture(picture)))
