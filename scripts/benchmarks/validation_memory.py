"""Benchmark: how far validation raises memory, on images of 2048 x 1024 with 100 detections each.

Each side runs in a process of its own, which notes its resident memory once the model is there and its high-water
mark at the end. The peer validates as torchvision's reference scripts do: one full-size float mask per detection,
pasted by torchvision, cut at .5 and run-length coded. A third process runs the network alone, with no mask beyond
its 28 x 28 grid. `validation-memory` is the rise above the model in memory, the network's work included;
`validation-memory-masks` the rise above what that work alone needs, 0 if there is none.
"""

import json
import resource
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.measuring import Bound, Row, run_alone
from cityopt.data.cache import ImageCache
from cityopt.evaluation.evaluate import choose_batch_size, evaluate_model
from cityopt.models.mask_rcnn import MaskRCNN
from cityopt.models.masks import Prediction
from cityopt.runtime import GIB, measure_memory_gib, seed_everything
from cityopt.settings import replace_section
from cityopt.study_file import load_study

DETECTIONS = 100
NARROW = {"fpn_channels": 32, "box_head_channels": 64, "mask_head_channels": 32, "mask_head_layers": 1}
SIDES = ("network", "ours", "peer")
SWEEP = Path(__file__).parents[2] / "sweeps" / "maskrcnn.yaml"


def bench_validation_memory(*, quick: bool) -> list[Row]:
    """Measure each side in a process of its own; quick: one process, a small network, one image of 720 x 360."""
    backbone, num_images, height = ("resnet18", 1, 360) if quick else ("resnet50", 4, 1024)
    measure = measure_side if quick else partial(run_alone, __name__)
    peaks = {side: measure(side, backbone, num_images, height) for side in SIDES}
    rows = []
    for name, base, what in (
        ("validation-memory", None, "the model in memory"),
        ("validation-memory-masks", "network", "the model at work, without validation"),
    ):
        floor = peaks[base]["peak"] - peaks[base]["loaded"] if base else 0.0
        ours, peer = (max(0.0, peaks[side]["peak"] - peaks[side]["loaded"] - floor) for side in ("ours", "peer"))
        unit = (
            f"GB above {what}, {backbone}, {num_images} images of {2 * height} x {height}, {DETECTIONS} detections "
            f"each, {torch.get_num_threads()} threads; peer: float masks of full size"
        )
        rows.append(Row(name, ours, peer, unit, Bound("ours", "<=", 1)))
    return rows


def measure_side(side: str, backbone: str, num_images: int, height: int) -> dict[str, float]:
    """Run one side in this process and return its memory: `loaded` and `peak`, in GB."""
    seed_everything(0)
    study = load_study(str(SWEEP))
    widths = NARROW if backbone == "resnet18" else {}
    config = replace_section(
        study.model, backbone=backbone, weights="none", anchors="default", freeze_depth=0, score_threshold=0.0, **widths
    )
    model = MaskRCNN(config, norm="frozen")  # as with pretrained weights, which would be a download
    run = {"network": run_network, "ours": run_ours, "peer": run_peer}[side]
    run(model, invent_cache(1, (64, 64)))  # libraries load their code when it is first needed
    cache = invent_cache(num_images, (height, 2 * height))
    loaded = measure_memory_gib() * GIB / 1e9
    counts = run(model, cache)
    if counts != [DETECTIONS] * num_images:
        raise SystemExit(f"every image must have {DETECTIONS} detections, but got {counts}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    return {"loaded": loaded, "peak": peak}


def invent_cache(num_images: int, size: tuple[int, int]) -> ImageCache:
    """Return noise with a few instances, one image as a memory map would give it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, *size, 3), dtype=np.uint8)
    rasters = np.full((num_images, *size), 7, dtype=np.uint16)
    for number in range(20):
        rasters[:, 8:400, 100 * number : 100 * number + 60] = 26000 + number
    return ImageCache(Path(), tuple(map(str, range(num_images))), images, rasters)


def run_ours(model: MaskRCNN, cache: ImageCache) -> list[int]:
    """Validate as each epoch does; return the detections per image."""
    counts: list[int] = []

    def count(_: int, prediction: Prediction) -> None:
        counts.append(len(prediction.masks))

    indices, batch_size = range(len(cache)), choose_batch_size(cache.images.shape[1:3])
    evaluate_model(model, cache, indices, device=torch.device("cpu"), batch_size=batch_size, on_image=count)
    return counts


@torch.inference_mode()
def run_network(model: MaskRCNN, cache: ImageCache) -> list[int]:
    """Run the network and drop what it finds."""
    model.eval()
    return [len(model._find([read_image(cache, index)])[0][1]) for index in range(len(cache))]


@torch.inference_mode()
def run_peer(model: MaskRCNN, cache: ImageCache) -> list[int]:
    """Validate with full-size float masks."""
    model.eval()
    counts = []
    for index in range(len(cache)):
        found, masks = model._find([read_image(cache, index)])[0]
        pasted = paste_masks_in_image(masks[:, None], found.boxes, cache.instances[index].shape) >= 0.5
        codes: list[Any] = [coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in pasted[:, 0]]
        counts.append(len(codes))
    return counts


def read_image(cache: ImageCache, index: int) -> torch.Tensor:
    """Return an image as `(3, H, W)` float32 in [0, 1]."""
    return torch.from_numpy(cache.images[index]).permute(2, 0, 1).float().div_(255).contiguous()


if __name__ == "__main__":
    print(json.dumps(measure_side(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
