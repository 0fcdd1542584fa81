import math

import pytest
import torch
from small_models import SMALL, draw_scene
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionHeads
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from cityopt.models.backbone import STRIDES
from cityopt.models.roi_heads import Detections, RoiHeads, cut_regions, find_levels

IMAGE = (96, 160)


def build(**changes: object) -> RoiHeads:
    torch.manual_seed(0)
    heads = RoiHeads(SMALL.model_copy(update=changes)).eval()
    for layer in heads.box_predictor.children():
        torch.nn.init.normal_(layer.weight, std=0.2)
    return heads


def draw_features(num_images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(num_images, 16, -(-IMAGE[0] // s), -(-IMAGE[1] // s), generator=generator) for s in STRIDES]


def draw_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor(IMAGE[::-1])
    return torch.cat([corners.amin(1), corners.amax(1).maximum(corners.amin(1) + 0.5)], dim=1)


def build_peer(heads: RoiHeads) -> TorchvisionHeads:
    """Wrap the same layers in torchvision's heads."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    settings = (0.5, 0.5, heads.num_samples, 0.25, None, heads.score_threshold, 0.5, heads.num_detections)
    return TorchvisionHeads(pool, heads.box_head, heads.box_predictor, *settings).eval()


def test_levels_follow_the_formula_of_the_paper_and_stay_within_the_pyramid() -> None:
    sides = [1, 50, 111.9, 112, 223.9, 224, 447.9, 448, 2000]
    boxes = torch.tensor([[3.0, 5.0, 3 + side, 5 + side] for side in sides])
    expected = [min(5, max(2, math.floor(4 + math.log2(side / 224)))) - 2 for side in sides]
    assert find_levels(boxes).tolist() == expected


def test_regions_of_all_levels_come_back_in_order() -> None:
    features = [torch.full((2, 1, 64 // 2**k, 128 // 2**k), 10.0 * k) for k in range(5)]
    features = [f + torch.tensor([0.0, 1.0])[:, None, None, None] for f in features]
    boxes = torch.tensor([[0.0, 0, 250, 250], [0, 0, 20, 20], [0, 0, 500, 250], [0, 0, 120, 120], [5, 5, 30, 30]])
    images = torch.tensor([0, 0, 0, 1, 1])
    cut = cut_regions(features, boxes, images, 7)
    assert cut[:, 0, 3, 3].tolist() == pytest.approx([20, 0, 20, 11, 1])


def test_detections_equal_torchvisions() -> None:
    heads = build(score_threshold=0.05, num_detections=15)
    features, proposals, sizes = draw_features(), [draw_boxes(60, 0), draw_boxes(40, 1)], [IMAGE, (80, 131)]
    boxes = torch.cat(proposals)
    images = torch.tensor([0] * 60 + [1] * 40)
    logits, offsets = heads.box_predictor(heads.box_head(cut_regions(features, boxes, images, 7)))
    theirs = build_peer(heads).postprocess_detections(logits, offsets, proposals, sizes)
    for ours, box, score, label in zip(heads.detect(features, proposals, sizes), *theirs, strict=True):
        assert len(ours.boxes) == 15
        torch.testing.assert_close(ours.boxes, box, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(ours.scores, score)
        assert torch.equal(ours.classes, label)


def test_box_losses_equal_torchvisions_when_every_proposal_is_sampled() -> None:
    heads, features = build(), draw_features()
    targets = [draw_scene(0, size=IMAGE)[1], draw_scene(1, size=IMAGE, num_instances=0)[1]]
    proposals = [targets[0]["boxes_xyxy"] + torch.randn(3, 4) * 2, draw_boxes(20, 1)]
    proposals[0] = torch.cat([proposals[0], draw_boxes(20, 2)])
    losses = heads.loss(features, proposals, targets)
    peer = build_peer(heads)
    theirs = [{"boxes": t["boxes_xyxy"], "labels": t["classes"]} for t in targets]
    boxes, _, labels, wanted = peer.select_training_samples(proposals, theirs)
    assert [len(b) for b in boxes] == [26, 20]
    images = torch.tensor([0] * 26 + [1] * 20)
    logits, offsets = heads.box_predictor(heads.box_head(cut_regions(features, torch.cat(boxes), images, 7)))
    classifier, box = fastrcnn_loss(logits, offsets, labels, wanted)
    torch.testing.assert_close(losses["classifier"], classifier)
    torch.testing.assert_close(losses["box"], box)
    assert box > 0


def test_mask_logits_of_one_class_equal_those_of_the_whole_predictor() -> None:
    heads, features, boxes = build(), draw_features(), draw_boxes(9, 4)
    torch.nn.init.normal_(heads.mask_predictor.mask_fcn_logits.weight)
    torch.nn.init.normal_(heads.mask_predictor.mask_fcn_logits.bias)
    classes = torch.arange(9) % 8 + 1
    (masks, _) = heads.find_masks(
        features, [Detections(boxes, torch.ones(9), classes), Detections(boxes[:0], boxes[:0, 0], classes[:0])]
    )
    regions = cut_regions(features, boxes, torch.zeros(9, dtype=torch.int64), 14)
    whole = heads.mask_predictor(heads.mask_head(regions)).sigmoid()
    torch.testing.assert_close(masks, whole[torch.arange(9), classes])


def test_mask_loss_is_that_of_the_objects_masks_when_boxes_are_exact() -> None:
    """Proposals that overlap nothing leave the ground-truth boxes as the only foreground."""
    heads, features = build(), draw_features(1)
    target = draw_scene(2, size=IMAGE, num_instances=2)[1]
    loss = heads.loss(features, [torch.tensor([[0.0, 0, 2, 2]])], [target])["mask"]
    boxes, classes = target["boxes_xyxy"], target["classes"]
    (found,) = heads.find_masks(features, [Detections(boxes, torch.ones(2), classes)])
    wanted = torch.ones_like(found)  # rectangles fill their boxes but for cells across the edge of another one
    assert (target["instance_map"] > 0).sum() == (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sum()
    torch.testing.assert_close(loss, F.binary_cross_entropy(found, wanted), atol=1e-4, rtol=0)
