"""Benchmark: pasting 100 masks of 28 x 28 into an image of 2048 x 1024, and the memory that it takes.

Ours are pasted and run-length coded. The peer is torchvision's paste alone, which returns 100 float images. Memory is
how far the high-water mark of a fresh process rises over one paste.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.measuring import Bound, Row, alternate, run_alone
from cityopt.models.masks import encode_masks

MASKS = 100


def bench_paste(*, quick: bool) -> list[Row]:
    """Measure both sides by turns, then each one's memory; quick: an image of 512 x 256, all in one process."""
    height, rounds = (256, 1) if quick else (1024, 7)
    unit = f"{MASKS} masks into {2 * height} x {height}, {torch.get_num_threads()} threads; peer: torchvision's paste"
    seconds = alternate(build_sides(height), rounds=rounds)
    raise_memory = measure_rise if quick else partial(run_alone, __name__)
    memory = {side: raise_memory(side, height) for side in ("ours", "peer")}
    return [
        Row("paste", seconds["ours"], seconds["peer"], f"s, {unit}", Bound("ratio", "<=", 0.1)),
        Row("paste-memory", memory["ours"], memory["peer"], f"MB, {unit}", Bound("ratio", "<", 0.1)),
    ]


def build_sides(height: int) -> dict[str, Callable[[], object]]:
    """Return what pastes the same masks our way and torchvision's."""
    rng, size = np.random.default_rng(0), (height, 2 * height)
    y, x = np.mgrid[:28, :28] / 13.5 - 1
    radius = rng.uniform(0.6, 1.0, (MASKS, 1, 1))
    masks = (1 / (1 + np.exp(-20 * (radius - np.hypot(x, y))))).astype(np.float32)
    sides = np.exp(rng.uniform(np.log(10), np.log(height / 2), (MASKS, 2)))
    corners = rng.uniform(0, 1, (MASKS, 2)) * (np.array(size[::-1]) - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    their_masks, their_boxes = torch.from_numpy(masks)[:, None], torch.from_numpy(boxes)
    return {
        "ours": lambda: encode_masks(masks, boxes, size),
        "peer": lambda: paste_masks_in_image(their_masks, their_boxes, size),
    }


def measure_rise(side: str, height: int) -> float:
    """Paste once and return by how many MB this process's memory rose."""
    build_sides(32)[side]()  # libraries load their code when it is first needed
    paste = build_sides(height)[side]
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    before = read_high_water_kb()
    kept = paste()
    return (read_high_water_kb() - before) / 1e3 if kept is not None else 0.0


def read_high_water_kb() -> int:
    """Return the largest resident memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    print(json.dumps(measure_rise(sys.argv[1], int(sys.argv[2]))))
