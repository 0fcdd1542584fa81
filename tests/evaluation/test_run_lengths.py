"""Run-length codes and rasters as runs, against hotcoco's decoder and full masks."""

import numpy as np
import pytest
from hotcoco import mask as decoder
from pycocotools import mask as rle_tools

from cityopt.errors import EvaluationError
from cityopt.evaluation.run_lengths import count_shared_pixels, decode_runs, find_raster_runs
from cityopt.models.masks import encode_crop


def encode(mask):
    return rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))


def paint_runs(runs, num_masks, size):
    masks = np.zeros((num_masks, size[0] * size[1]), np.int64)
    for owner, start, end in zip(runs.owners, runs.starts, runs.ends, strict=True):
        masks[owner, start:end] += 1
    return masks.reshape(num_masks, size[1], size[0]).transpose(0, 2, 1)


@pytest.mark.parametrize("seed", range(30))
def test_runs_equal_full_masks_when_masks_and_raster_are_random(seed):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 50)), int(rng.integers(1, 50)))
    masks = [rng.random(size) < rng.choice([0, 0.02, 0.5, 0.98, 1]) for _ in range(rng.integers(0, 6))]
    raster = rng.integers(0, 4, size) * (rng.random(size) < rng.choice([0.01, 0.3, 1]))
    runs = decode_runs([encode(mask) for mask in masks])
    np.testing.assert_array_equal(paint_runs(runs, len(masks), size), np.array(masks).reshape(-1, *size))
    assert (np.diff(runs.owners) >= 0).all()
    expected = [[np.count_nonzero(mask & (raster == region)) for region in range(4)] for mask in masks]
    found = count_shared_pixels(runs, len(masks), find_raster_runs(raster), 4)
    np.testing.assert_array_equal(found, np.array(expected).reshape(-1, 4))


def test_decode_runs_equals_hotcoco_when_counts_are_long_and_shrink_and_grow():
    size = (1500, 3000)
    shapes = [(0, 0, 1, 1), (3, 2000, 1400, 7), (1499, 2999, 1, 1), (0, 0, 1500, 3000), (700, 1, 33, 2900)]
    codes = [encode_crop(np.ones((height, width), bool), top, left, size) for top, left, height, width in shapes]
    codes.append(encode(np.zeros(size)))
    runs = decode_runs(codes)
    for index, code in enumerate(codes):
        own = runs.owners == index
        flat = decoder.decode(code).ravel(order="F").astype(np.int8)
        edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
        np.testing.assert_array_equal(np.stack((runs.starts[own], runs.ends[own]), axis=1).ravel(), edges)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 11)])
def test_find_raster_runs_equals_a_slow_loop_when_the_raster_is_random(size, dtype):
    raster = np.random.default_rng(1).choice([7, 8], size=size, p=[0.8, 0.2]).astype(dtype)
    slow = []
    for position, value in enumerate(raster.ravel(order="F").tolist()):
        if not slow or slow[-1][1] != value:
            slow.append((position, value))
    for given in (raster, np.asfortranarray(raster)):
        runs = find_raster_runs(given)
        assert list(zip(runs.starts.tolist(), runs.values.tolist(), strict=True)) == slow
        assert runs.lengths.sum() == raster.size
        one = runs.relabel(np.zeros(len(slow), np.int64))
        assert (one.starts.tolist(), one.ends.tolist(), one.values.tolist()) == ([0], [raster.size], [0])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"", "something else"),
        (b"04 ", "something else"),
        (b"0T", "something else"),  # ends within a number
        (b"oooooooo0", "something else"),  # a number without end
        (b"034", "mask 1 covers 7 of 12"),
        (b"0<4", "mask 1 covers 16 of 12"),
        (b"0O=", "counts of 0 or more, but mask 1"),  # -1 + 13 = 12
    ],
)
def test_decode_runs_refuses_a_code_when_it_is_broken(counts, message):
    good = encode(np.eye(3, 4))
    with pytest.raises(EvaluationError, match=message):
        decode_runs([good, {"size": [3, 4], "counts": counts}])
