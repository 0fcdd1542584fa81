"""Pixels that run-length coded masks share with the regions of a raster, counted on runs and never on pixels.

Stands under the protocols that work at full resolution: a raster of 2048 x 1024 has two million pixels but a few
ten thousand runs, and a mask has a few hundred. Both are read down the columns, as COCO's codes are, so that a
position is `column * H + row`.

Shapes: N masks, R regions, (H, W) the raster.

Source: the code of counts is that of the COCO API (maskApi.c, rleToString): base 32 with a continuation bit, signed,
each count from the fourth on as the difference to the one before the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cityopt.errors import DataError

if TYPE_CHECKING:
    from cityopt.models.masks import Rle

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class MaskRuns:
    """The foreground runs of N masks, mask after mask."""

    owners: Ints
    """`(K,)` which mask a run belongs to, in 0..N-1, ascending."""
    starts: Ints
    """`(K,)` first position."""
    ends: Ints
    """`(K,)` position after the last."""


@dataclass(frozen=True)
class RasterRuns:
    """A raster as runs of equal value that cover it without gaps."""

    starts: Ints
    """`(K,)` first position of each run, ascending from 0."""
    ends: Ints
    """`(K,)` position after the last; the last one is H * W."""
    values: NDArray[Any]
    """`(K,)` of the raster's type."""

    @property
    def lengths(self) -> Ints:
        """Return the pixels of each run."""
        return self.ends - self.starts

    def relabel(self, values: NDArray[Any]) -> "RasterRuns":
        """Give each run another value `(K,)`; neighbours that become equal become one run."""
        first = np.concatenate(([True], values[1:] != values[:-1]))
        starts = self.starts[first]
        return RasterRuns(starts, np.append(starts[1:], self.ends[-1]), values[first])


def find_raster_runs(raster: NDArray[Any]) -> RasterRuns:
    """Return the runs of a raster `(H, W)` that is not empty, down the columns, as long as they can be."""
    height, width = raster.shape
    rows, columns = np.nonzero(raster[1:] != raster[:-1])
    tops = np.flatnonzero(raster[0, 1:] != raster[-1, :-1]) + 1
    # A raster lies in memory row by row: to sort the edges is several times faster than to turn the pixels.
    starts = np.sort(np.concatenate(([0], columns * height + rows + 1, tops * height)))
    column = starts // height
    values = raster[starts - column * height, column]
    return RasterRuns(starts, np.append(starts[1:], height * width), values)


def decode_runs(codes: Sequence["Rle"]) -> MaskRuns:
    """Return the foreground of compressed COCO run-length codes, all of them at once.

    Raises DataError: a code that is no code, or does not cover its image exactly.
    """
    counts, sizes = _decode_counts([code["counts"] for code in codes])
    firsts = np.cumsum(sizes) - sizes
    owners = np.repeat(np.arange(len(codes)), sizes)
    totals = np.bincount(owners, weights=counts, minlength=len(codes))
    pixels = np.array([code["size"][0] * code["size"][1] for code in codes], dtype=np.int64)
    for index in np.flatnonzero(
        (totals != pixels) | (np.minimum.reduceat(counts, firsts) < 0 if len(codes) else False)
    ):
        raise DataError(
            f"a run-length code must cover its image exactly, with counts of 0 or more, but mask {index} covers "
            f"{totals[index]:.0f} of {pixels[index]} pixels."
        )
    ends = np.cumsum(counts) - (np.cumsum(pixels) - pixels)[owners]
    is_foreground = ((np.arange(len(counts)) - firsts[owners]) % 2 == 1) & (counts > 0)
    return MaskRuns(owners[is_foreground], (ends - counts)[is_foreground], ends[is_foreground])


def _decode_counts(texts: Sequence[bytes]) -> tuple[Ints, Ints]:
    """Return the counts of all codes one after the other, and how many each code has."""
    digits = np.frombuffer(b"".join(texts), dtype=np.uint8).astype(np.int64) - 48
    is_last = digits & 32 == 0
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    text_ends = np.cumsum(lengths)
    if ((digits < 0) | (digits > 63)).any() or not is_last[text_ends[lengths > 0] - 1].all() or not lengths.all():
        raise DataError("masks must be compressed COCO run-length codes, but got counts of other characters or none.")
    lasts = np.flatnonzero(is_last)
    firsts = np.concatenate(([0], lasts[:-1] + 1)) if lasts.size else lasts
    places = np.arange(len(digits)) - np.repeat(firsts, lasts - firsts + 1)
    if places.size and places.max() > 7:
        raise DataError("the counts of a run-length code must be below 2^39, but got a longer number.")
    numbers = np.add.reduceat((digits & 31) << 5 * places, firsts) if lasts.size else lasts
    negative = digits[lasts] & 16 != 0
    numbers = numbers - (negative.astype(np.int64) << 5 * (places[lasts] + 1))
    sizes = np.diff(np.searchsorted(lasts, text_ends), prepend=0)
    return _undo_differences(numbers, sizes), sizes


def _undo_differences(numbers: Ints, sizes: Ints) -> Ints:
    """Add to each number of a code, from the fourth on, the count before the last."""
    counts = numbers.copy()
    firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    indices = np.arange(len(numbers)) - firsts
    for parity in (0, 1):
        # The chain of a parity: 1, 3, 5 … and 2, 4, 6 …; the very first count stands alone.
        chain = np.flatnonzero((indices % 2 == parity) & (indices > 0))
        begins = indices[chain] == 2 - parity
        sums = np.cumsum(numbers[chain])
        before = (sums - numbers[chain])[begins]
        counts[chain] = sums - before[np.cumsum(begins) - 1]
    return counts


def count_overlaps(masks: MaskRuns, num_masks: int, regions: RasterRuns, num_regions: int) -> Ints:
    """Return how many pixels each mask has in each region, `(N, R)`.

    The values of `regions` are 0..R-1; every pixel belongs to one region, so a row sums to its mask's area.
    """
    first = np.searchsorted(regions.starts, masks.starts, side="right") - 1
    pieces = np.searchsorted(regions.starts, masks.ends, side="left") - first
    run = np.repeat(np.arange(len(first)), pieces)
    piece = np.arange(len(run)) + np.repeat(first - (np.cumsum(pieces) - pieces), pieces)
    starts = np.maximum(regions.starts[piece], masks.starts[run])
    ends = np.minimum(regions.ends[piece], masks.ends[run])
    cells = masks.owners[run] * num_regions + regions.values[piece]
    pixels = np.bincount(cells, weights=ends - starts, minlength=num_masks * num_regions)
    return pixels.astype(np.int64).reshape(num_masks, num_regions)
