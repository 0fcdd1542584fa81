"""Frames come in order, a few ahead, as the model saw them in training; predictions are made for their own sizes."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cityopt.data.cache import open_cache
from cityopt.data.cityscapes import Frame
from cityopt.errors import DataError
from cityopt.evaluation import full_resolution
from cityopt.evaluation.full_resolution import decode_frames, judge_frames, predict_frames
from cityopt.models.masks import Prediction
from cityopt.models.segmentation_model import SegmentationModel, Target

CPU, SEEN = torch.device("cpu"), (24, 40)


@pytest.fixture
def frames(tmp_path) -> list[Frame]:
    return [write(tmp_path, number, (48 + 2 * number, 80 - number)) for number in range(11)]


def write(folder: Path, number: int, size: tuple[int, int]) -> Frame:
    rng = np.random.default_rng(number)
    image, raster = folder / f"{number:02d}.png", folder / f"{number:02d}_ids.png"
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
    Image.fromarray(rng.choice([7, 24, 26001], size).astype(np.uint16)).save(raster)
    return Frame(f"{number:02d}", "val", "bonn", image, raster, None, None)


class Recorder(SegmentationModel):
    """Finds nothing, and remembers what it was asked."""

    task = "instance"

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[np.ndarray, tuple[int, int]]] = []
        self.batches: list[int] = []

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError

    def predict(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]] | None = None) -> list[Prediction]:
        assert sizes is not None and torch.is_inference_mode_enabled()
        self.batches.append(len(images))
        self.asked += [(image.numpy(), size) for image, size in zip(images, sizes, strict=True)]
        nothing = np.zeros(0, np.float32)
        return [Prediction(nothing.reshape(0, 4), nothing, np.zeros(0, np.int64), [], size) for size in sizes]


def test_model_sees_what_the_cache_holds_and_predicts_at_each_images_own_size(frames, tmp_path):
    model = Recorder().eval()
    found = list(predict_frames(model, frames, size=SEEN, device=CPU))
    cache = open_cache(frames, size=SEEN, folder=tmp_path / "cache", fingerprint="x")
    assert [decoded.frame for decoded, _ in found] == frames and model.batches == [8, 3]
    for (pixels, size), expected, (decoded, prediction), frame in zip(
        model.asked, cache.images, found, frames, strict=True
    ):
        np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        with Image.open(frame.image) as image, Image.open(frame.instance_ids) as raster:
            assert size == prediction.size == decoded.size == (image.height, image.width)
            np.testing.assert_array_equal(decoded.raster, np.asarray(raster))


def test_frames_are_decoded_only_a_few_ahead(frames, monkeypatch):
    begun, lock, others = [], threading.Lock(), threading.active_count()
    read = full_resolution.read_image

    def count(path):
        with lock:
            begun.append(path)
        return read(path)

    monkeypatch.setattr(full_resolution, "read_image", count)
    decoded = decode_frames(frames, SEEN, workers=2)
    for number in range(1, 4):
        next(decoded)
        assert len(begun) <= 3 + number
    decoded.close()
    assert len(begun) < len(frames) and threading.active_count() == others


def test_frame_without_label_has_no_raster(frames):
    bare = Frame("a", "test", "bonn", frames[0].image, None, None, None)
    (decoded,) = decode_frames([bare], SEEN)
    assert decoded.raster is None and decoded.image.shape == (*SEEN, 3)


def test_broken_pairs_are_named(frames, tmp_path):
    other = Frame("a", "val", "bonn", frames[0].image, frames[1].instance_ids, None, None)
    with pytest.raises(DataError, match="one size"):
        list(decode_frames([other], SEEN))
    frames[2].image.write_bytes(b"PNG")
    with pytest.raises(DataError, match=frames[2].image.name):
        list(predict_frames(Recorder(), frames, size=SEEN, device=CPU))


def test_every_frame_goes_once_to_every_judge_and_the_different_sizes_come_back(frames):
    class Judge:
        def __init__(self):
            self.seen = []

        def add(self, image_id, raster, prediction):
            self.seen.append((image_id, raster.shape, prediction.size))

    judges, counts = [Judge(), Judge()], []
    again = [*frames, Frame("11", "val", "bonn", frames[0].image, frames[0].instance_ids, None, None)]
    sizes = judge_frames(Recorder(), again, judges, size=SEEN, device=CPU, on_count=counts.append)
    assert sizes == tuple((48 + 2 * number, 80 - number) for number in range(11))
    assert judges[0].seen == judges[1].seen == [(f.name, s, s) for f, s in zip(again, (*sizes, sizes[0]), strict=True)]
    assert counts == list(range(1, 13))
