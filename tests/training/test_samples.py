import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from cityopt.config import RunConfig
from cityopt.data.cityscapes import FrameFacts
from cityopt.labels import BY_NAME, EVALUATED_LABELS, LABELS
from cityopt.models.build import build_model
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.tracking.run_folder import RunFolder
from cityopt.training import samples
from cityopt.training.dataset import prepare_data
from cityopt.training.samples import choose_samples, write_gallery, write_overlays


def facts(*counts: tuple[int, ...]) -> list[FrameFacts]:
    rows = [count + (0,) * (8 - len(count)) for count in counts]
    return [FrameFacts(f"image-{i}", "train", "aachen", (8, 8), row, 0, 1, None) for i, row in enumerate(rows)]


def test_choose_samples_prefers_many_classes_then_many_instances_and_leaves_out_empty_images() -> None:
    assert choose_samples(facts((9,), (), (1, 1), (1, 2), (0, 9), (3,))) == [3, 2, 0, 4]
    assert choose_samples(facts((), ())) == []


def test_write_overlays_draws_the_very_images(config: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(config)
    model = build_model(config.model)
    write_overlays(RunFolder(tmp_path), model, data.train, [4, 1], torch.device("cpu"))
    paths = sorted((tmp_path / "artifacts" / "overlays").iterdir())
    assert [path.stem for path in paths] == [data.train.names[1], data.train.names[4]]
    picture = Image.open(io.BytesIO(paths[0].read_bytes())).convert("RGB")
    right = np.asarray(picture.crop((picture.width // 2, 26, picture.width, picture.height)).resize((128, 64)), int)
    image = data.train.images[1].astype(int)
    background = data.train.instances[1] < 1000
    assert np.abs(right[background] - image[background]).mean() < 25


def test_gallery_ranks_images_and_draws_the_best_and_the_worst(config: RunConfig, tmp_path: Path, monkeypatch) -> None:
    data = prepare_data(config)
    wrong = {0: [1], 1: [], 2: [0, 1], 3: [0]}  # instances that the model misses, of two; image 4, 5: none

    def predict(model, cache, indices, **_):
        for index in indices:
            raster = np.asarray(cache.instances[index])
            values = [v for i, v in enumerate((24001, 26000)) if i not in wrong.get(index, [])]
            masks = [coco_mask.encode(np.asfortranarray((raster == v).astype(np.uint8))) for v in values]
            classes = np.array([{24: 1, 26: 3}[v // 1000] for v in values], np.int64)
            boxes = np.zeros((len(values), 4), np.float32)
            yield index, Prediction(boxes, np.full(len(values), 0.9, np.float32), classes, masks, raster.shape)

    monkeypatch.setattr(samples, "predict_images", predict)
    monkeypatch.setattr(samples, "NUM_RANKED", 2)
    ranking = write_gallery(RunFolder(tmp_path), build_model(config.model), data.train, torch.device("cpu"))
    names = data.train.names
    assert [score.name for score in ranking][:3] == [names[2], names[0], names[3]]
    assert [score.value for score in ranking] == [0.0, 2 / 3, 2 / 3, 1.0, 1.0, 1.0]
    folder = tmp_path / "artifacts" / "overlays"
    assert sorted(path.name for path in (folder / "worst").iterdir()) == [
        f"01_f1-0.00_{names[2]}.jpg",
        f"02_f1-0.67_{names[0]}.jpg",
    ]
    assert sorted(path.name for path in (folder / "best").iterdir()) == [
        f"01_f1-1.00_{names[1]}.jpg",
        f"02_f1-1.00_{names[4]}.jpg",
    ]
    rows = (folder / "images.csv").read_text().splitlines()
    assert rows[0] == "image,f1,found,false,missed" and rows[2] == f"{names[0]},0.666667,1,0,1" and len(rows) == 7


def mean_iou(truth: np.ndarray, found: np.ndarray) -> float:
    """The slow way: class by class, over the pixels that count."""
    counted = ~np.isin(truth, [label.id for label in LABELS if label.ignore_in_eval])
    ious = []
    for label in EVALUATED_LABELS:
        there, said = (truth == label.id) & counted, (found == label.id) & counted
        if (there | said).any():
            ious.append((there & said).sum() / (there | said).sum())
    return float(np.mean(ious))


def test_gallery_of_a_semantic_model_ranks_by_the_mean_iou_of_the_image(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps that are right but for a share of the background, which grows from image to image."""
    data = prepare_data(config)
    model = build_model(config.model.model_copy(update={"family": "unet", "weights": "none", "freeze_depth": 0}))
    wanted = {}

    def predict(model, cache, indices, **_):
        for index in indices:
            raster = np.asarray(cache.instances[index])
            truth = np.where(raster >= 1000, raster // 1000, raster).astype(np.uint8)
            found = truth.copy()
            background = np.flatnonzero(raster < 1000)
            found.flat[background[: index * len(background) // len(cache)]] = BY_NAME["sidewalk"].id
            wanted[cache.names[index]] = mean_iou(truth, found)
            yield index, SemanticMap(found)

    monkeypatch.setattr(samples, "predict_images", predict)
    monkeypatch.setattr(samples, "NUM_RANKED", 2)
    ranking = write_gallery(RunFolder(tmp_path), model, data.train, torch.device("cpu"))
    assert {score.name: score.value for score in ranking} == pytest.approx(wanted)
    assert len({round(value, 6) for value in wanted.values()}) > 2
    folder = tmp_path / "artifacts" / "overlays"
    worst = ranking[0].name
    assert wanted[worst] == min(wanted.values())
    assert (folder / "worst" / f"01_miou-{wanted[worst]:.2f}_{worst}.jpg").is_file()
    assert len(list((folder / "best").iterdir())) == 2
    monkeypatch.setattr(samples, "NUM_RANKED", 100)
    write_gallery(RunFolder(tmp_path / "few"), model, data.train, torch.device("cpu"))
    few = tmp_path / "few" / "artifacts" / "overlays"
    assert [len(list((few / side).iterdir())) for side in ("worst", "best")] == [3, 3]  # a half of six each
    rows = (folder / "images.csv").read_text().splitlines()
    assert rows[:2] == ["image,miou", f"{worst},{wanted[worst]:.6f}"] and len(rows) == 1 + len(data.train)
