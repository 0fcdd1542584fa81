"""Predict images of a split at full resolution, as official numbers want it, and hand them to the protocols.

Stands between a dataset's frames and the protocols. Each image is decoded at its own size and shrunk to the size that
the model was trained at, by the same filter as the cache; boxes and masks are then drawn at the image's own size, and
the ground truth is never resized. Threads decode a few images ahead, so memory does not grow with their number.

Shapes: (H, W) an image's own height and width, (h, w) the size that the model sees.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from cityopt.data.cityscapes import Frame, check_same_size, read_image, read_instance_ids
from cityopt.data.resizing import resize_image
from cityopt.evaluation.evaluate import choose_batch_size
from cityopt.evaluation.export import Export
from cityopt.evaluation.protocols import Judge
from cityopt.models.masks import Prediction, SemanticMap
from cityopt.models.segmentation_model import SegmentationModel

DECODERS = 2


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One image as the model sees it, and its ground truth at full size."""

    frame: Frame
    image: NDArray[np.uint8]
    """(h, w, 3) RGB."""
    raster: NDArray[np.uint16] | None
    """(H, W) raw instanceIds; None without label."""
    size: tuple[int, int]
    """(H, W)."""


def judge_frames(
    model: SegmentationModel,
    frames: Sequence[Frame],
    judges: Sequence[Judge],
    export: Export | None = None,
    *,
    size: tuple[int, int],
    device: torch.device,
    on_count: Callable[[int], None] = lambda _: None,
) -> tuple[tuple[int, int], ...]:
    """Predict every frame once, hand each prediction to every judge and to the export, and return the different (H, W).

    Frames without label may have no judge. Raises what `predict_frames`, the judges and the export raise.
    """
    sizes: dict[tuple[int, int], None] = {}
    for done, (decoded, prediction) in enumerate(predict_frames(model, frames, size=size, device=device), start=1):
        sizes[decoded.size] = None
        for judge in judges:
            assert decoded.raster is not None
            judge.add(decoded.frame.name, decoded.raster, prediction)
        if export is not None:
            export.add(decoded.frame, decoded.raster, prediction)
        on_count(done)
    return tuple(sizes)


def predict_frames(
    model: SegmentationModel, frames: Sequence[Frame], *, size: tuple[int, int], device: torch.device
) -> Iterator[tuple[DecodedFrame, Prediction | SemanticMap]]:
    """Yield each frame with what the model finds in it, at the frame's own size, in full float32 precision.

    The model must be on `device` and in evaluation mode; `size` is the (height, width) that it was trained at.

    Raises DataError: an image or its label is broken, or they differ in size.
    """
    decoded = decode_frames(frames, size)
    batch_size = choose_batch_size(size)
    while batch := list(islice(decoded, batch_size)):
        pixels = torch.from_numpy(np.stack([item.image for item in batch])).to(device)
        with torch.inference_mode():
            images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
            predictions = model.predict(list(images.unbind()), [item.size for item in batch])
        yield from zip(batch, predictions, strict=True)


def decode_frames(frames: Sequence[Frame], size: tuple[int, int], *, workers: int = DECODERS) -> Iterator[DecodedFrame]:
    """Decode frames in threads, in their order, at most twice as many ahead as there are threads."""
    waiting: deque[Future[DecodedFrame]] = deque()
    rest = iter(frames)
    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting.extend(pool.submit(_decode, frame, size) for frame in islice(rest, 2 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(_decode, frame, size) for frame in islice(rest, 1))
        finally:
            for future in waiting:
                future.cancel()


def _decode(frame: Frame, size: tuple[int, int]) -> DecodedFrame:
    image, raster = read_image(frame.image), None
    if frame.instance_ids is not None:
        raster = read_instance_ids(frame.instance_ids)
        check_same_size(frame.image, image.shape, frame.instance_ids, raster.shape)
    return DecodedFrame(frame, resize_image(image, size), raster, (image.shape[0], image.shape[1]))
