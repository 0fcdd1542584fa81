from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tree import write_frame, write_tree

from cityopt.config import DataConfig
from cityopt.data.augment import zoom_sample
from cityopt.data.cache import ImageCache, open_cache
from cityopt.data.cityscapes import index_split
from cityopt.data.loaders import Batch, build_loader
from cityopt.data.targets import find_instances, find_train_ids
from cityopt.runtime import derive_seed

SIZE = (24, 48)
NUM_FRAMES = 11
EMPTY = 4


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ImageCache:
    folder = tmp_path_factory.mktemp("loaders")
    root = write_tree(folder / "data", {"train": {"ulm": NUM_FRAMES}}, size=SIZE)
    write_frame(root, "train", "ulm", EMPTY, size=SIZE, raster=np.full(SIZE, 7, dtype=np.uint16))
    return open_cache(index_split(root, "train"), size=SIZE, folder=folder / "cache", fingerprint="f")


def load(cache: ImageCache, indices: list[int] | None = None, **changes: Any) -> list[Batch]:
    data = DataConfig(size=SIZE, scale_jitter=(0.5, 2.0), num_workers=changes.pop("num_workers", 0))
    settings: dict[str, Any] = {"batch_size": 3, "seed": 0, "epoch": 1, "train": True, **changes}
    return list(build_loader(cache, list(range(len(cache))) if indices is None else indices, data=data, **settings))


def flatten(batches: list[Batch]) -> list[torch.Tensor]:
    targets = [target for batch in batches for target in batch.targets]
    return [image for batch in batches for image in batch.images] + [
        target[key] for target in targets for key in ("boxes_xyxy", "classes", "instance_map")
    ]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.indices for batch in first] == [batch.indices for batch in second]
    for a, b in zip(flatten(first), flatten(second), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_build_loader_gives_each_process_its_part_of_every_batch(cache: ImageCache, num_parts: int) -> None:
    whole = load(cache, batch_size=4)
    parts = [load(cache, batch_size=4, share=(part, num_parts)) for part in range(num_parts)]
    assert len(whole) == 2 and all(len(part) == len(whole) for part in parts)
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share.indices) for share in shares] == [4 // num_parts] * num_parts
        assert [index for share in shares for index in share.indices] == batch.indices
        for a, b in zip(batch.images, [image for share in shares for image in share.images], strict=True):
            assert torch.equal(a, b)


def test_build_loader_gives_images_and_targets_of_the_cache_when_it_evaluates(cache: ImageCache) -> None:
    batches = load(cache, [7, 2, EMPTY, 9], train=False)
    assert [batch.indices for batch in batches] == [[7, 2, EMPTY], [9]]
    for batch in batches:
        for image, target, index in zip(batch.images, batch.targets, batch.indices, strict=True):
            assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, *SIZE))
            for channel in range(3):
                np.testing.assert_array_equal(image[channel], cache.images[index][..., channel])
            expected = find_instances(cache.instances[index])
            np.testing.assert_array_equal(target["boxes_xyxy"], expected.boxes_xyxy)
            np.testing.assert_array_equal(target["classes"], expected.classes)
            np.testing.assert_array_equal(target["instance_map"], expected.instance_map)
            dtypes = torch.float32, torch.int64, torch.int32
            assert tuple(target[key].dtype for key in ("boxes_xyxy", "classes", "instance_map")) == dtypes


def test_build_loader_crops_in_training_alone(cache: ImageCache) -> None:
    data, settings = DataConfig(size=SIZE, hflip=0.0, crop=0.5), {"batch_size": 3, "seed": 4, "epoch": 2}
    for train in (True, False):
        for batch in build_loader(cache, range(6), data=data, train=train, task="semantic", **settings):
            for image, target, index in zip(batch.images, batch.targets, batch.indices, strict=True):
                whole = cache.images[index], cache.instances[index]
                _, _, down, right = np.random.default_rng(derive_seed(4, "augment", 2, index)).random(4)
                pixels, raster = zoom_sample(*whole, 2.0, (down, right)) if train else whole
                np.testing.assert_array_equal(image.permute(1, 2, 0), pixels)
                np.testing.assert_array_equal(target["label_map"], find_train_ids(raster))


def test_build_loader_gives_an_empty_target_when_an_image_has_no_instance(cache: ImageCache) -> None:
    for train in (False, True):
        ((target,),) = (batch.targets for batch in load(cache, [EMPTY], train=train))
        assert tuple(target["boxes_xyxy"].shape) == (0, 4)
        assert tuple(target["classes"].shape) == (0,)
        assert not target["instance_map"].any()


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores are fine here
@pytest.mark.parametrize("train", [False, True])
def test_build_loader_is_the_same_to_the_bit_when_workers_load(cache: ImageCache, train: bool) -> None:
    alone = load(cache, train=train, num_workers=0)
    for num_workers in (1, 2):
        assert_same(alone, load(cache, train=train, num_workers=num_workers))


def test_build_loader_augments_an_image_alike_when_the_batches_differ(cache: ImageCache) -> None:
    images = {}
    for batch in load(cache, batch_size=1):
        images[batch.indices[0]] = batch.images[0]
    for batch in load(cache, [3, 8, 1], batch_size=3):
        for image, index in zip(batch.images, batch.indices, strict=True):
            assert torch.equal(image, images[index])


def test_build_loader_shuffles_by_seed_and_epoch_when_it_trains(cache: ImageCache) -> None:
    orders = set()
    for seed in (0, 1):
        for epoch in (1, 2):
            order = [index for batch in load(cache, seed=seed, epoch=epoch, batch_size=1) for index in batch.indices]
            assert sorted(order) == list(range(NUM_FRAMES))
            orders.add(tuple(order))
    assert len(orders) == 4
    assert_same(load(cache, epoch=2), load(cache, epoch=2))


def test_build_loader_draws_by_weight_when_it_trains_alone(cache: ImageCache) -> None:
    weights = np.array([float(len(cache)) ** 3] + [1.0] * (len(cache) - 1))
    drawn = [index for batch in load(cache, weights=weights, batch_size=1) for index in batch.indices]
    assert len(drawn) == len(cache) and drawn.count(0) >= len(cache) - 1
    judged = [index for batch in load(cache, weights=weights, train=False) for index in batch.indices]
    assert judged == list(range(len(cache)))


def test_build_loader_augments_otherwise_in_another_epoch(cache: ImageCache) -> None:
    (first,), (second,) = (load(cache, [5], epoch=epoch) for epoch in (1, 2))
    assert not torch.equal(first.images[0], second.images[0])


def test_build_loader_leaves_the_global_generators_alone(cache: ImageCache) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    np_state = np.random.get_state(legacy=False)["state"]["pos"]
    load(cache)
    load(cache, train=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state(legacy=False)["state"]["pos"] == np_state


@pytest.mark.parametrize(
    ("count", "train", "sizes"),
    [(7, True, [3, 3]), (7, False, [3, 3, 1]), (6, True, [3, 3]), (2, True, [2]), (2, False, [2]), (0, True, [])],
)
def test_build_loader_drops_the_last_batch_only_when_it_trains_and_has_others(
    cache: ImageCache, count: int, train: bool, sizes: list[int]
) -> None:
    batches = load(cache, list(range(count)), train=train)
    assert [len(batch.images) for batch in batches] == sizes


def test_build_loader_keeps_target_and_picture_together_when_it_augments(tmp_path: Path) -> None:
    raster = np.full(SIZE, 7, dtype=np.uint16)
    raster[6:20, 10:34] = 26000
    root = tmp_path / "data"
    write_frame(root, "train", "ulm", 0, size=SIZE, raster=raster)
    (frame,) = index_split(root, "train")
    Image.fromarray(np.repeat(np.where(raster[..., None] == 26000, 220, 30).astype(np.uint8), 3, -1)).save(frame.image)
    cache = open_cache([frame], size=SIZE, folder=tmp_path / "cache", fingerprint="f")
    for epoch in range(30):
        (batch,) = load(cache, epoch=epoch)
        bright = batch.images[0][0] > 125
        car = batch.targets[0]["instance_map"] > 0
        assert (bright & car).sum() / (bright | car).sum() > 0.85
        (box,) = batch.targets[0]["boxes_xyxy"].tolist()
        ys, xs = torch.nonzero(car, as_tuple=True)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.gpu
def test_build_loader_pins_memory_when_batches_go_to_cuda(cache: ImageCache) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    pinned = load(cache, device="cuda")
    assert all(tensor.is_pinned() for tensor in flatten(pinned) if tensor.numel())
    assert_same(pinned, load(cache))
