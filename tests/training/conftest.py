"""A tiny Cityscapes tree of rectangles, and the config of a training on it that takes seconds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityopt.config import AnchorTable, RunConfig

SIZE = (64, 128)


def write_frame(root: Path, split: str, city: str, number: int, *, empty: bool = False) -> None:
    rng = np.random.default_rng([number, len(city)])
    pixels = rng.integers(60, 120, (*SIZE, 3), dtype=np.uint8)
    raster = np.full(SIZE, 7, dtype=np.uint16)
    for index, class_id in enumerate(() if empty else (26, 24)):
        top, left = rng.integers(4, 20), rng.integers(4, 20) + 60 * index
        area = np.s_[top : top + 36, left : left + (40 if class_id == 26 else 16)]
        raster[area] = class_id * 1000 + index
        pixels[area] = (200, 40, 40) if class_id == 26 else (40, 40, 220)
    name = f"{city}_{number:06d}_000019"
    for folder, suffix, picture in (
        ("leftImg8bit", "leftImg8bit", Image.fromarray(pixels)),
        ("gtFine", "gtFine_instanceIds", Image.fromarray(raster)),
        ("gtFine", "gtFine_labelIds", Image.fromarray(np.where(raster > 999, raster // 1000, raster).astype(np.uint8))),
    ):
        path = root / folder / split / city / f"{name}_{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train: 6 images in aachen, 2 in bonn; val: 2 in lund."""
    root = tmp_path_factory.mktemp("cityscapes")
    for number in range(6):
        write_frame(root, "train", "aachen", number)
    for number in range(2):
        write_frame(root, "train", "bonn", number)
        write_frame(root, "val", "lund", number)
    return root


@pytest.fixture(scope="session")
def config(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    sizes = tuple((float(size),) * 3 for size in (12, 20, 32, 48, 64))
    return RunConfig.model_validate(
        {
            "study": "tiny",
            "name": "trial-0000",
            "kind": "trial",
            "seed": 3,
            "threads": 1,
            "device": "cpu",
            "cache": str(tmp_path_factory.mktemp("cache")),
            "data": {"root": str(tree), "size": SIZE, "scale_jitter": (0.8, 1.2)},
            "model": {
                "backbone": "resnet18",
                "weights": "none",
                "freeze_depth": 0,
                "anchors": "explicit",
                "anchor_table": AnchorTable(sizes=sizes, ratios=((0.5, 1.0, 2.0),) * 5),
                "stem_channels": 8,
                "fpn_channels": 16,
                "box_head_channels": 32,
                "mask_head_channels": 16,
                "mask_head_layers": 1,
                "rpn_pre_nms": 100,
                "rpn_post_nms": 50,
                "roi_samples": 32,
                "num_detections": 20,
            },
            "training": {"epochs": 4, "batch_size": 2, "optimizer": "adamw", "learning_rate": 0.008},
            "train_set": {"split": "train", "part": "subset", "holdout_fraction": 0.25},
            "validation_set": {"split": "train", "part": "holdout", "holdout_fraction": 0.25},
        }
    )
