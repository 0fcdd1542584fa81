"""torchvision's Mask R-CNN for COCO, converted, beside torchvision itself."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import roi_align

from cityopt.config import DEFAULT_ANCHORS
from cityopt.errors import WeightsError
from cityopt.labels import COCO_IDS
from cityopt.models.boxes import build_cells
from cityopt.models.roi_heads import cut_regions
from cityopt.models.torchvision_coco import convert_torchvision, is_torchvision, round_anchors
from cityopt.training.checkpoint import load_model
from cityopt.training.conversion import convert_weights

SCORES = "roi_heads.box_predictor.cls_score."


@pytest.fixture(scope="module", name="detector")
def _detector():
    torch.manual_seed(0)
    detector = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    torch.nn.init.normal_(detector.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    return detector


@pytest.mark.slow
def test_heads_say_what_torchvisions_say_of_the_same_regions(detector, tmp_path):
    """Of regions that take two samples a cell in both: sides of 7 to 14 cells, on P2, and of just 14 from P3 to P5."""
    torch.save(detector.state_dict(), tmp_path / "coco.pth")
    report = convert_weights(tmp_path / "coco.pth", tmp_path / "coco.pt")
    assert (report.framework, report.classes, report.num_tensors) == ("torchvision", "coco", 307)
    ours, config = load_model(tmp_path / "coco.pt")
    assert (config.study, config.model.flavour) == ("torchvision", "torchvision_coco")
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(1, 256, 128 // 2**i, 128 // 2**i, generator=generator) for i in range(4)]
    boxes = torch.tensor([[20.0, 30, 60, 80], [100, 8, 148, 42], [10, 20, 40, 70], [190.5, 150.2, 245, 201],
                          [16, 24, 128, 136], [32, 64, 256, 288], [32, 0, 480, 448]])  # fmt: skip
    named = {str(place): level for place, level in enumerate(features)}
    with torch.no_grad():
        pooled = detector.roi_heads.box_roi_pool(named, [boxes], [(512, 512)])
        logits, offsets = detector.roi_heads.box_predictor(detector.roi_heads.box_head(pooled))
        found = ours.roi_heads._classify(features, boxes, torch.zeros(7, dtype=torch.int64))
    rows = [0, *COCO_IDS]
    torch.testing.assert_close(found[0], logits[:, rows], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1].reshape(7, 81, 4), offsets.reshape(7, 91, 4)[:, rows], atol=1e-4, rtol=1e-3)


def test_regions_lie_where_the_first_roi_align_put_them():
    generator = torch.Generator().manual_seed(2)
    features = [torch.randn(1, 3, 128 // 2**i, 128 // 2**i, generator=generator) for i in range(4)]
    boxes = torch.tensor([[20.0, 30, 60, 80], [10, 20, 150, 170], [30, 40, 330, 320], [5, 6, 500, 490]])
    found = cut_regions(features, boxes, torch.zeros(4, dtype=torch.int64), 7, 0.5)
    for place, level in enumerate(features):
        wanted = roi_align(level, [boxes[place : place + 1]], 7, 1 / (4 * 2**place), aligned=False)
        torch.testing.assert_close(found[place : place + 1], wanted, atol=1e-5, rtol=1e-4)


def test_regions_of_less_than_a_cell_are_one_cell_as_in_the_first_roi_align():
    generator = torch.Generator().manual_seed(3)
    features = [torch.randn(1, 3, 128 // 2**i, 128 // 2**i, generator=generator) for i in range(4)]
    boxes = torch.tensor([[20.0, 30, 22, 32], [40, 50, 41, 90], [300, 200, 340, 201.5], [500, 490, 502, 493]])
    found = cut_regions(features, boxes, torch.zeros(4, dtype=torch.int64), 7, 0.5)
    wanted = roi_align(features[0], [boxes], 7, 1 / 4, aligned=False)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_anchors_are_torchvisions_rounded_ones():
    theirs = AnchorGenerator(tuple((size,) for size in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    table = round_anchors(DEFAULT_ANCHORS)
    torch.testing.assert_close(
        build_cells(table.sizes, table.ratios), torch.stack(theirs.cell_anchors), atol=1e-3, rtol=0
    )


def shapes(num_rows: int = 91) -> dict[str, Tensor]:
    state = {"backbone.body.conv1.weight": torch.zeros(1), "roi_heads.mask_predictor.conv5_mask.bias": torch.zeros(1)}
    return state | {f"{SCORES}bias": torch.zeros(num_rows)}


def test_norms_lose_their_missing_epsilon_when_names_are_those_of_the_published_file():
    norm = {f"backbone.body.bn1.{name}": torch.ones(3) for name in ("weight", "running_var")}
    for name, factor in (("backbone.fpn.inner_blocks.0.weight", 1 + 1e-5), ("backbone.fpn.inner_blocks.0.0.weight", 1)):
        state = convert_torchvision(shapes() | norm | {name: torch.zeros(1)}, origin="x").state
        assert torch.allclose(state["backbone.body.bn1.weight"], torch.tensor(factor).sqrt(), rtol=0, atol=1e-7)
        assert "backbone.fpn.inner_blocks.0.0.weight" in state


@pytest.mark.parametrize("num_rows", [9, 21, 81])
def test_other_classes_are_refused(num_rows):
    with pytest.raises(WeightsError, match=f"91 classes of COCO .* know {num_rows}"):
        convert_torchvision(shapes(num_rows), origin="x")


def test_detector_without_masks_is_refused():
    state = {name: value for name, value in shapes().items() if "mask" not in name}
    assert is_torchvision(state)
    with pytest.raises(WeightsError, match="no Mask R-CNN"):
        convert_torchvision(state, origin="x")
