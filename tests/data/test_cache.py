import errno
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tree import write_frame, write_tree

from cityopt.data.cache import ImageCache, load_cache, open_cache
from cityopt.data.cityscapes import Frame, index_split
from cityopt.errors import DataError, StoreError

SIZE = (16, 32)
NUM_FRAMES = 10
# Opens the cache that `build` opens; prints how many frames it decoded itself and a checksum of what it sees.
BUILDER = f"""
import os, pathlib, resource, signal, sys, time, zlib
from cityopt.data.cache import open_cache
from cityopt.data.cityscapes import index_split
root, folder, mode = sys.argv[1:]
decoded = []
def progress(done, total):
    decoded.append(done)
    if mode == "slow":
        time.sleep(0.05)
    if mode == "die" and done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
cache = open_cache(
    index_split(root, "train"), size={SIZE}, folder=pathlib.Path(folder), fingerprint="f", progress=progress
)
print(len(decoded), zlib.crc32(cache.images.tobytes() + cache.instances.tobytes()))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data", {"train": {"ulm": 6, "jena": NUM_FRAMES - 6}})


def build(root: Path, folder: Path, size: tuple[int, int] = SIZE, fingerprint: str = "f") -> ImageCache:
    return open_cache(index_split(root, "train"), size=size, folder=folder, fingerprint=fingerprint)


def start_builder(root: Path, folder: Path, mode: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", BUILDER, str(root), str(folder), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def list_caches(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_open_cache_holds_what_pillow_decodes_when_it_resizes(root: Path, tmp_path: Path) -> None:
    frames = index_split(root, "train")
    cache = open_cache(frames[::-1], size=SIZE, folder=tmp_path / "cache", fingerprint="f")
    assert cache.names == tuple(sorted(frame.name for frame in frames))
    assert (cache.images.shape, cache.images.dtype) == ((NUM_FRAMES, *SIZE, 3), np.uint8)
    assert (cache.instances.shape, cache.instances.dtype) == ((NUM_FRAMES, *SIZE), np.uint16)
    assert len(cache) == NUM_FRAMES
    for index, frame in enumerate(frames):
        assert frame.instance_ids is not None
        image = Image.open(frame.image).resize(SIZE[::-1], Image.Resampling.BILINEAR)
        raster = Image.open(frame.instance_ids).resize(SIZE[::-1], Image.Resampling.NEAREST)
        np.testing.assert_array_equal(cache.images[index], np.asarray(image))
        np.testing.assert_array_equal(cache.instances[index], np.asarray(raster))


def test_open_cache_holds_the_files_pixels_when_the_size_is_theirs(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache", size=(24, 48))
    for index, frame in enumerate(index_split(root, "train")):
        assert frame.instance_ids is not None
        np.testing.assert_array_equal(cache.images[index], np.asarray(Image.open(frame.image)))
        np.testing.assert_array_equal(cache.instances[index], np.asarray(Image.open(frame.instance_ids)))


def test_open_cache_decodes_nothing_when_it_is_there_already(root: Path, tmp_path: Path) -> None:
    build(root, tmp_path / "cache")
    (tmp_path / "data").rename(tmp_path / "gone")
    frames = index_split(tmp_path / "gone", "train")
    shutil.rmtree(tmp_path / "gone")
    calls: list[int] = []
    again = open_cache(
        frames, size=SIZE, folder=tmp_path / "cache", fingerprint="f", progress=lambda done, _: calls.append(done)
    )
    assert calls == []
    assert len(again) == NUM_FRAMES


def test_open_cache_keeps_several_when_anything_that_matters_differs(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    frames = index_split(root, "train")
    paths = {
        open_cache(some, size=size, folder=folder, fingerprint=fingerprint).path
        for some, size, fingerprint in (
            (frames, SIZE, "f"),
            (frames, (24, 48), "f"),
            (frames, SIZE, "g"),
            (frames[1:], SIZE, "f"),
            ([Frame(f.name, f.split, f.city, f.image, None, None, None) for f in frames], SIZE, "f"),
        )
    }
    assert len(paths) == 5


def test_open_cache_reports_progress_when_it_builds(root: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    frames = index_split(root, "train")
    open_cache(frames, size=SIZE, folder=tmp_path, fingerprint="f", progress=lambda *call: calls.append(call))
    assert calls == [(done, NUM_FRAMES) for done in range(1, NUM_FRAMES + 1)]


@pytest.mark.parametrize("workers", [1, 3])
def test_open_cache_is_the_same_when_more_threads_decode(root: Path, tmp_path: Path, workers: int) -> None:
    expected = build(root, tmp_path / "expected")
    frames = index_split(root, "train")
    cache = open_cache(frames, size=SIZE, folder=tmp_path / str(workers), fingerprint="f", workers=workers)
    np.testing.assert_array_equal(cache.images, expected.images)
    np.testing.assert_array_equal(cache.instances, expected.instances)


def test_open_cache_holds_zeros_when_frames_have_no_label(tmp_path: Path) -> None:
    write_frame(tmp_path / "data", "test", "berlin", 0, labelled=False)
    frames = index_split(tmp_path / "data", "test")
    cache = open_cache(frames, size=SIZE, folder=tmp_path / "cache", fingerprint="f")
    assert cache.images.any()
    assert not cache.instances.any()


def cut_images(path: Path) -> None:
    file = path / "images.npy"
    file.write_bytes(file.read_bytes()[:-1])


def flip_first_byte(path: Path) -> None:
    content = bytearray((path / "instances.npy").read_bytes())
    content[128] ^= 1
    (path / "instances.npy").write_bytes(content)


def forget_meta(path: Path) -> None:
    (path / "meta.json").unlink()


def garble_meta(path: Path) -> None:
    (path / "meta.json").write_text('{"names": ["a"], "size": [1, 1], "checksums": []}')


@pytest.mark.parametrize("damage", [cut_images, flip_first_byte, forget_meta, garble_meta])
def test_open_cache_builds_again_when_it_is_damaged(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    cache = build(root, tmp_path / "cache")
    expected = cache.images.copy(), cache.instances.copy()
    del cache
    (name,) = list_caches(tmp_path / "cache")
    damage(tmp_path / "cache" / name)
    with caplog.at_level(logging.WARNING, "cityopt"):
        again = build(root, tmp_path / "cache")
    assert "The cache is built again" in caplog.text
    np.testing.assert_array_equal(again.images, expected[0])
    np.testing.assert_array_equal(again.instances, expected[1])
    assert list_caches(tmp_path / "cache") == [name]


@pytest.mark.parametrize("damage", [cut_images, flip_first_byte, forget_meta, shutil.rmtree])
def test_load_cache_refuses_when_it_is_damaged(root: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = build(root, tmp_path / "cache").path
    assert load_cache(path).path == path
    damage(path)
    with pytest.raises(StoreError, match=f"{path} must be a whole image cache"):
        load_cache(path)


def test_open_cache_leaves_nothing_when_an_image_is_broken(root: Path, tmp_path: Path) -> None:
    image = index_split(root, "train")[7].image
    image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(DataError, match=f"{image} must be a whole PNG"):
        build(root, tmp_path / "cache")
    assert list_caches(tmp_path / "cache") == []


def test_open_cache_ends_with_a_good_cache_when_an_earlier_builder_was_killed(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    killed = start_builder(root, folder, "die")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [Path(name).suffix for name in list_caches(folder)] == [".partial"]
    cache = build(root, folder)
    assert list_caches(folder) == [cache.path.name]
    np.testing.assert_array_equal(cache.images, build(root, tmp_path / "other").images)


def test_open_cache_is_built_once_when_processes_want_it_at_the_same_time(root: Path, tmp_path: Path) -> None:
    running = [start_builder(root, tmp_path / "cache", "slow") for _ in range(3)]
    printed = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], printed
    decoded, sums = zip(*(out.split() for out, _ in printed), strict=True)
    assert sorted(decoded) == ["0", "0", str(NUM_FRAMES)]
    assert len(set(sums)) == 1
    assert len(list_caches(tmp_path / "cache")) == 1


def test_open_cache_leaves_nothing_when_a_write_fails(root: Path, tmp_path: Path) -> None:
    process = start_builder(root, tmp_path / "cache", "full")
    _, err = process.communicate(timeout=60)
    assert "StoreError: the cache cannot be written" in err
    assert os.strerror(errno.EFBIG) in err
    assert list_caches(tmp_path / "cache") == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 6000


def test_open_cache_refuses_before_it_writes_when_the_disk_has_no_room(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 9, 9))
    with pytest.raises(StoreError, match=r"needs 0.0 GiB, but .* has 0.0. .*--store.*data.size or data.num_images"):
        build(root, tmp_path / "cache")
    assert list_caches(tmp_path / "cache") == []


def test_open_cache_refuses_when_the_folder_cannot_be_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="another store with --store"):
        build(root, tmp_path / "file" / "cache")


def test_open_cache_warns_once_when_the_size_distorts(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cityopt"):
        build(root, tmp_path / "cache", size=(16, 32))
        assert caplog.text == ""
        build(root, tmp_path / "cache", size=(16, 30))
    assert caplog.text.count("distorts images of width / height 2.000") == 1


def test_cache_travels_as_its_path_when_it_is_pickled(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache")
    content = pickle.dumps(cache)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.names == cache.names
    np.testing.assert_array_equal(again.instances, cache.instances)


def test_cache_cannot_be_changed_by_a_reader(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_find_gives_indices_in_the_order_of_the_names(root: Path, tmp_path: Path) -> None:
    cache = build(root, tmp_path / "cache")
    assert cache.find([cache.names[4], cache.names[0]]) == [4, 0]
    with pytest.raises(StoreError, match="lacks bonn_1"):
        cache.find([cache.names[0], "bonn_1"])


def test_selection_equals_a_cache_of_its_own_and_shares_the_files(root: Path, tmp_path: Path) -> None:
    whole = build(root, tmp_path / "cache")
    names = [whole.names[index] for index in (7, 2, 5)]
    frames = [frame for frame in index_split(root, "train") if frame.name in names]
    alone = open_cache(frames, size=SIZE, folder=tmp_path / "other", fingerprint="f")
    some = whole.select(names)
    for cache in (some, pickle.loads(pickle.dumps(some)), some.select(names)):
        assert cache.names == alone.names and cache.path == whole.path and len(cache) == 3
        assert cache.images.shape == alone.images.shape and cache.size == SIZE
        for index in range(3):
            assert np.array_equal(cache.images[index], alone.images[index])
            assert np.array_equal(cache.instances[index], alone.instances[index])
        assert np.array_equal(cache.images[[2, 0]], alone.images[[2, 0]])
        assert np.array_equal(np.stack(list(cache.instances)), alone.instances)
    assert len(list((tmp_path / "cache").glob("*/images.npy"))) == 1
    with pytest.raises(StoreError, match="lacks graz"):
        whole.select(["graz"])
