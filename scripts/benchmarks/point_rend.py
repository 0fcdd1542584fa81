"""Benchmark: what PointRend's finer masks cost, from an image of 2048 x 1024 to 100 run-length coded masks.

The peer is our Mask R-CNN: backbone, proposals and box head are the same. Weights are random, so that any 100 boxes
are found; the last layers say yes everywhere, since masks of noise would have far longer codes than masks of things.
"""

from pathlib import Path

import torch

from benchmarks.measuring import Bound, Row, alternate
from benchmarks.training_step import choose_device, name_device
from cityopt.models.build import SegmentationModel, build_model
from cityopt.runtime import seed_everything
from cityopt.settings import replace_section
from cityopt.study_file import load_study

SWEEP = Path(__file__).parents[2] / "sweeps" / "pointrend.yaml"
DETECTIONS = 100


def bench_point_rend(*, quick: bool) -> list[Row]:
    """Measure prediction of one image; quick: a smaller image and a narrower network."""
    backbone, width, height, rounds = ("resnet18", 32, 192, 1) if quick else ("resnet50", 256, 1024, 5)
    device = choose_device()
    image = torch.rand(3, height, 2 * height, generator=torch.Generator().manual_seed(0)).to(device)
    models = {family: build_finder(family, backbone, width).to(device) for family in ("point_rend", "mask_rcnn")}
    with torch.inference_mode():
        seconds = alternate({name: lambda m=model: check(m, image) for name, model in models.items()}, rounds=rounds)
    unit = (
        f"s to predict an image of {2 * height} x {height} with {DETECTIONS} detections, {backbone}, "
        f"{name_device(device)}; peer: our Mask R-CNN"
    )
    return [Row("point-rend", seconds["point_rend"], seconds["mask_rcnn"], unit, Bound("ratio", "<=", 1.6))]


def build_finder(family: str, backbone: str, width: int) -> SegmentationModel:
    """Return a network that finds 100 solid objects in anything."""
    seed_everything(0)
    config = replace_section(
        load_study(str(SWEEP)).model,
        family=family,
        backbone=backbone,
        fpn_channels=width,
        mask_head_channels=width,
        weights="none",
        anchors="default",
        freeze_depth=0,
        score_threshold=0.0,
        num_detections=DETECTIONS,
    )
    model = build_model(config)
    outputs = ("coarse_head.prediction.bias", "point_head.predictor.bias", "mask_fcn_logits.bias")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(outputs):
                parameter.fill_(1)
    return model.eval()


def check(model: SegmentationModel, image: torch.Tensor) -> None:
    """Predict, and see that as much was found as was asked for."""
    found = len(model.predict([image])[0].masks)
    if found != DETECTIONS:
        raise SystemExit(f"the image must have {DETECTIONS} detections, but got {found}")
