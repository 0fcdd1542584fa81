from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from cityopt.evaluation.coco_ap import CocoEvaluator
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model, predict_images
from cityopt.models.masks import Prediction, encode_crop
from cityopt.models.segmentation_model import SegmentationModel, Target

SIZE = (48, 64)
CPU = torch.device("cpu")


class Oracle(SegmentationModel):
    """Reads the objects from the picture: red pixels are one car, the brightness of green is the score."""

    task = "instance"

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        assert all(image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 for image in images)
        self.batches.append(len(images))
        return [self._read(image.numpy()) for image in images]

    def _read(self, image: np.ndarray) -> Prediction:
        mask = image[0] > 0.5
        count = int(mask.any())
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if count else []
        return Prediction(
            boxes_xyxy=np.array(box, dtype=np.float32).reshape(count, 4),
            scores=np.full(count, image[1].max(), dtype=np.float32),
            classes=np.full(count, 3),
            masks=[encode_crop(mask, 0, 0, SIZE)] * count,
            size=SIZE,
        )


def make_cache(num_images: int) -> SimpleNamespace:
    """Every image shows one car, the first none; in every other image a second one that the oracle cannot see."""
    images = np.zeros((num_images, *SIZE, 3), dtype=np.uint8)
    instances = np.full((num_images, *SIZE), 7, dtype=np.uint16)
    for index in range(1, num_images):
        area = np.s_[index, 4:30, 3 : 10 + index]
        images[area] = (255, 100 + index, 0)
        instances[area] = 26001
        if index % 2:
            instances[index, 35:45, 40:60] = 26002
    return SimpleNamespace(names=[f"image-{i}" for i in range(num_images)], images=images, instances=instances)


def test_evaluate_model_equals_the_evaluator_fed_by_hand() -> None:
    cache, model = make_cache(7), Oracle()
    found = evaluate_model(model, cache, [1, 2, 5, 6], device=CPU, batch_size=3, prefix="holdout")
    evaluator = CocoEvaluator()
    for index in (1, 2, 5, 6):
        picture = cache.images[index].transpose(2, 0, 1) / np.float32(255)
        evaluator.add(str(index), cache.instances[index], model._read(picture))
    expected = {f"holdout/{name}": value for name, value in evaluator.summarize().items()}
    np.testing.assert_equal(found, expected)
    assert 0.5 < found["holdout/coco/segm/ap"] < 1
    assert model.batches == [3, 1]


def test_evaluate_model_tells_each_image_once_and_keeps_the_mode() -> None:
    cache, model, seen = make_cache(5), Oracle(), []
    model.train()
    evaluate_model(
        model, cache, [4, 0, 2], device=CPU, batch_size=2, on_image=lambda index, p: seen.append((index, len(p.scores)))
    )
    assert seen == [(4, 1), (0, 0), (2, 1)]
    assert model.training


def test_evaluate_model_gives_nan_when_there_is_nothing_to_find() -> None:
    found = evaluate_model(Oracle(), make_cache(2), [0], device=CPU, batch_size=1)
    assert np.isnan(found["val/coco/segm/ap"])


def test_predict_images_restores_training_mode_when_given_up() -> None:
    model = Oracle().train()
    predictions = predict_images(model, make_cache(4), [1, 2, 3], device=CPU, batch_size=1)
    assert next(predictions)[0] == 1
    predictions.close()
    assert model.training


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 128), 8), ((256, 512), 8), ((512, 1024), 2), ((1024, 2048), 1), ((4096, 4096), 1)]
)
def test_choose_batch_size_holds_about_a_million_pixels(size: tuple[int, int], expected: int) -> None:
    assert choose_batch_size(size) == expected
