"""What `weights convert` makes of files: those it takes, and those it names and refuses."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cityopt.config import ModelConfig
from cityopt.errors import WeightsError
from cityopt.models.boxes import build_cells
from cityopt.models.build import build_model
from cityopt.models.detectron2 import convert_detectron2
from cityopt.training.checkpoint import check_classes, load_checkpoint, load_model
from cityopt.training.conversion import convert_weights, read_tensors

ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
Arrays = dict[str, np.ndarray]


def name_there(name: str) -> str:
    """Return detectron2's name of a tensor of ours, by plain replacement, apart from the converter."""
    for number in range(4):
        name = name.replace(f"body.layer{number + 1}.", f"bottom_up.res{number + 2}.")
        name = name.replace(f"fpn.inner_blocks.{number}.0", f"fpn_lateral{number + 2}")
        name = name.replace(f"fpn.layer_blocks.{number}.0", f"fpn_output{number + 2}")
        name = name.replace(f"mask_head.{number}.0", f"mask_head.mask_fcn{number + 1}")
        name = name.replace(f".bn{number}.", f".conv{number}.norm.")
    for ours, theirs in (
        ("body.conv1", "bottom_up.stem.conv1"),
        ("downsample.0", "shortcut"),
        ("downsample.1", "shortcut.norm"),
        ("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv"),
        ("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
        ("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
        ("box_head.fc6", "box_head.fc1"),
        ("box_head.fc7", "box_head.fc2"),
        ("mask_predictor.conv5_mask", "mask_head.deconv"),
        ("mask_predictor.mask_fcn_logits", "mask_head.predictor"),
        ("body.conv1.norm", "bottom_up.stem.conv1.norm"),
    ):
        name = name.replace(ours, theirs)
    return name


def invent(family: str = "mask_rcnn", *, classes: int = 8, backbone: str = "resnet50") -> Arrays:
    """Return a detectron2 network full of zeros, which cost neither time nor memory."""
    kind = {8: "cityscapes", 80: "coco"}.get(classes, "cityscapes")
    config = ModelConfig(
        family=family, backbone=backbone, weights="none", anchors="default", classes=kind, freeze_depth=0
    )
    with torch.device("meta"):
        state = build_model(config.model_copy(update={"weights": "x"}), download=False).state_dict()
    shapes = {name_there(name): list(value.shape) for name, value in state.items()}
    for name in shapes:
        if "box_predictor.cls_score" in name:
            shapes[name][0] = classes + 1
        elif "box_predictor.bbox_pred" in name:
            shapes[name][0] = 4 * classes
        elif "mask_head.predictor" in name:
            shapes[name][0] = classes
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def to_tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.zeros(1).expand(array.shape) for name, array in arrays.items()}


def write(path: Path, arrays: Arrays) -> Path:
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "nobody"}, protocol=3))
    return path


@pytest.mark.parametrize("family", ["mask_rcnn", "point_rend"])
@pytest.mark.parametrize("classes", [8, 80])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet101"])
def test_config_says_what_the_file_holds(family: str, classes: int, backbone: str) -> None:
    found = convert_detectron2(to_tensors(invent(family, classes=classes, backbone=backbone)), origin="model.pkl")
    assert (found.model.family, found.model.num_classes, found.model.backbone) == (family, classes, backbone)
    assert (found.model.flavour, found.model.anchors, found.model.weights) == ("detectron2", "default", "model.pkl")
    with torch.device("meta"):
        wanted = build_model(found.model, download=False).state_dict()
    assert {name: value.shape for name, value in wanted.items()} == {n: v.shape for n, v in found.state.items()}


def test_old_names_of_point_rend_mean_the_same() -> None:
    arrays = invent("point_rend")
    old = {
        name.replace("mask_head.coarse_head.fc", "mask_coarse_head.coarse_mask_fc")
        .replace("mask_head.coarse_head", "mask_coarse_head")
        .replace("mask_head.point_head", "mask_point_head"): array
        for name, array in arrays.items()
    }
    assert old.keys() != arrays.keys()
    new = convert_detectron2(to_tensors(arrays), origin="new")
    assert convert_detectron2(to_tensors(old), origin="old").state.keys() == new.state.keys()


def test_colours_and_background_change_places() -> None:
    tensors = to_tensors(invent())
    tensors["backbone.bottom_up.stem.conv1.weight"] = stem = torch.randn(64, 3, 7, 7)
    tensors["roi_heads.box_predictor.cls_score.bias"] = torch.arange(9.0)
    tensors["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(1.0, 33)
    tensors["roi_heads.mask_head.predictor.bias"] = torch.arange(1.0, 9)
    state = convert_detectron2(tensors, origin="x").state
    for ours, theirs in enumerate((2, 1, 0)):  # RGB of BGR
        assert torch.equal(state["backbone.body.conv1.weight"][:, ours], stem[:, theirs])
    assert state["roi_heads.box_predictor.cls_score.bias"].tolist() == [8, *range(8)]
    assert state["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0, 0, 0, 0, *range(1, 33)]
    assert state["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, *range(1, 9)]


def test_anchors_of_the_file_are_kept_when_they_are_not_the_usual_ones() -> None:
    arrays, sides = invent(), torch.tensor([[24.0, 12], [16, 16], [8, 20]])
    for level in range(5):
        half = sides * 2**level / 2
        arrays[f"{ANCHORS}{level}"] = torch.cat([-half, half], dim=1).numpy()
    tensors = to_tensors(arrays) | {n: torch.from_numpy(a) for n, a in arrays.items() if n.startswith(ANCHORS)}
    found = convert_detectron2(tensors, origin="x")
    assert found.model.anchor_table is not None
    cells = build_cells(found.model.anchor_table.sizes, found.model.anchor_table.ratios)
    for level in range(5):
        torch.testing.assert_close(cells[level], tensors[f"{ANCHORS}{level}"])
    assert len(found.dropped) == 5


@pytest.mark.slow
def test_checkpoint_remembers_everything_and_tensors_travel_by_either_file(tmp_path: Path) -> None:
    arrays = invent()
    arrays["pixel_mean"] = np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1)
    arrays["pixel_std"] = np.ones((3, 1, 1), np.float32)
    found = convert_weights(write(tmp_path / "model_final.pkl", arrays), tmp_path / "out.pt")
    assert (found.family, found.classes, found.dropped) == ("mask_rcnn", "cityscapes", ("pixel_mean", "pixel_std"))
    assert json.dumps(found.to_json()) and found.num_parameters > 40e6
    content = load_checkpoint(tmp_path / "out.pt")
    assert content["config"]["model"]["flavour"] == "detectron2" and content["config"]["kind"] == "conversion"
    assert content["origin"]["licence"] == "CC BY-SA 3.0" and content["origin"]["file"] == "model_final.pkl"
    torch.save(
        {"model": {n: torch.from_numpy(a.copy()) for n, a in arrays.items()}, "iteration": 3}, tmp_path / "m.pth"
    )
    assert read_tensors(tmp_path / "m.pth").keys() == arrays.keys()


@pytest.mark.slow
def test_network_for_coco_is_rebuilt_but_not_judged_on_cityscapes(tmp_path: Path) -> None:
    convert_weights(write(tmp_path / "coco.pkl", invent("point_rend", classes=80)), tmp_path / "coco.pt")
    network, config = load_model(tmp_path / "coco.pt")
    assert config.model.num_classes == 80
    assert network.state_dict()["roi_heads.box_predictor.cls_score.weight"].shape == (81, 1024)
    with pytest.raises(WeightsError, match=r"8 classes, but knows the 80 of coco\. Fine-tune it"):
        check_classes(config, "coco.pt")


FAMILIES = {
    "RetinaNet": ["head.cls_subnet.0.weight", "backbone.bottom_up.stem.conv1.weight"],
    "C4": ["backbone.stem.conv1.weight", "backbone.res2.0.conv1.weight", "roi_heads.res5.0.conv1.weight"],
    "without an FPN": [
        "backbone.stem.conv1.weight",
        "backbone.res5.0.conv1.weight",
        "roi_heads.mask_head.predictor.bias",
    ],
    "Cascade": ["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.0.fc1.weight"],
    "Keypoint": ["backbone.bottom_up.stem.conv1.weight", "roi_heads.keypoint_head.conv_fcn1.weight"],
    "Panoptic": ["backbone.bottom_up.stem.conv1.weight", "sem_seg_head.p2.0.weight", "roi_heads.mask_head.deconv.bias"],
    "Faster R-CNN": ["backbone.bottom_up.stem.conv1.weight", "roi_heads.box_head.fc1.weight"],
    "classifier": ["stem.conv1.weight", "res2.0.conv1.weight"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_are_named(tmp_path: Path, family: str) -> None:
    path = write(tmp_path / "other.pkl", {name: np.zeros(3, np.float32) for name in FAMILIES[family]})
    with pytest.raises(WeightsError, match=rf"(?s){family}.*Supported: .*Mask R-CNN and PointRend"):
        convert_weights(path, tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_resnext_is_named() -> None:
    arrays = invent()
    arrays["backbone.bottom_up.res2.0.conv2.weight"] = np.zeros((256, 8, 3, 3), np.float32)
    with pytest.raises(WeightsError, match="ResNeXt"):
        convert_detectron2(to_tensors(arrays), origin="x")


@pytest.mark.parametrize("classes", [1, 20, 1230])
def test_other_class_counts_are_refused(classes: int) -> None:
    with pytest.raises(
        WeightsError, match=rf"80 classes \(COCO\) or 8 \(Cityscapes\), but the classifier knows {classes}"
    ):
        convert_detectron2(to_tensors(invent(classes=classes)), origin="x")


def test_heads_that_disagree_about_the_classes_are_refused() -> None:
    arrays = invent()
    arrays["roi_heads.box_predictor.bbox_pred.bias"] = np.zeros(4, np.float32)
    with pytest.raises(WeightsError, match="the boxes 1 and the masks 8"):
        convert_detectron2(to_tensors(arrays), origin="x")


def test_other_pixels_are_refused() -> None:
    tensors = {**to_tensors(invent()), "pixel_std": torch.tensor([57.375, 57.12, 58.395]).reshape(3, 1, 1)}
    with pytest.raises(WeightsError, match="pixel_std"):
        convert_detectron2(tensors, origin="x")


def test_unknown_missing_and_misshapen_tensors_are_listed(tmp_path: Path) -> None:
    arrays = {n: np.zeros(1, np.float32) if "weight" in n and "predictor" not in n else a for n, a in invent().items()}
    with pytest.raises(
        WeightsError, match=r"backbone\.body\.layer2\.1\.conv2\.weight: \(1,\) in the file, \(128, 128, 3, 3\)"
    ):
        convert_weights(
            write(tmp_path / "a.pkl", arrays | {"backbone.bottom_up.stem.conv1.weight": np.zeros((64, 3, 7, 7))}),
            tmp_path / "o.pt",
        )
    small = {
        name: np.zeros(array.shape if array.ndim < 2 else (1,) * array.ndim, np.float32)
        for name, array in invent().items()
    }
    del small["roi_heads.box_head.fc1.bias"]
    with pytest.raises(WeightsError, match=r"roi_heads\.box_head\.fc6\.bias: missing"):
        convert_weights(write(tmp_path / "b.pkl", small), tmp_path / "o.pt")
    small["roi_heads.box_head.fc9.bias"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError, match=r"no supported network has: roi_heads\.box_head\.fc9\.bias"):
        convert_weights(write(tmp_path / "c.pkl", small), tmp_path / "o.pt")
    assert not (tmp_path / "o.pt").exists()


def test_truncated_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(100)}}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:300])
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "text.pkl").write_bytes(pickle.dumps({"model": {"a": "b"}}))
    for name, message in {
        "cut.pth": "cut short",
        "list.pkl": "must hold a dict of named arrays",
        "text.pkl": "must be an array",
        "whole.pth": "no weights that cityopt can convert",
        "none.pkl": "no file",
    }.items():
        with pytest.raises(WeightsError, match=message):
            convert_weights(tmp_path / name, tmp_path / "out.pt")
    for out in (tmp_path, tmp_path / "nowhere" / "out.pt", tmp_path / "list.pkl"):
        with pytest.raises(WeightsError, match="--out"):
            convert_weights(tmp_path / "list.pkl", out)
