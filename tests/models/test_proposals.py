import pytest
import torch
from small_models import SMALL, draw_scene
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork

from cityopt.config import AnchorTable
from cityopt.models.backbone import STRIDES
from cityopt.models.proposals import RegionProposals


def build(**changes: object) -> RegionProposals:
    torch.manual_seed(0)
    proposals = RegionProposals(SMALL.model_copy(update=changes))
    for name, parameter in proposals.head.named_parameters():
        if "weight" in name and "conv" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return proposals


def build_peer(proposals: RegionProposals) -> RegionProposalNetwork:
    """Wrap the same head in torchvision's network."""
    counts = {"training": proposals.num_before * 2, "testing": proposals.num_before}
    kept = {"training": proposals.num_after, "testing": proposals.num_after}
    return RegionProposalNetwork(AnchorGenerator(), proposals.head, 0.7, 0.3, 256, 0.5, counts, kept, 0.7)


def draw_features(size: tuple[int, int], num_images: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(num_images, 16, -(-size[0] // s), -(-size[1] // s), generator=generator) for s in STRIDES]


def test_proposals_equal_torchvisions() -> None:
    proposals, sizes = build(), [(90, 121), (64, 100)]
    peer = build_peer(proposals)
    for training in (True, False):
        proposals.train(training)
        peer.train(training)
        logits, offsets, anchors = proposals(draw_features((96, 128)))
        ours = proposals.propose(logits, offsets, anchors, sizes)
        boxes = peer.box_coder.decode(torch.cat(offsets, 1), [torch.cat(anchors)] * 2).view(2, -1, 4)
        theirs, _ = peer.filter_proposals(boxes, torch.cat(logits, 1), sizes, [len(a) for a in anchors])
        assert [len(b) for b in ours] == [len(b) for b in theirs]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-5)


def test_loss_equals_torchvisions_when_every_anchor_is_sampled() -> None:
    proposals = build()
    peer = build_peer(proposals)
    truths = [draw_scene(5, size=(32, 32), num_instances=1)[1]["boxes_xyxy"], torch.zeros(0, 4)]
    small = [torch.randn(2, 16, side, side) for side in (8, 2, 1, 1, 1)]
    logits, offsets, anchors = proposals(small)
    losses = proposals.loss(logits, offsets, anchors, truths)
    flat = torch.cat(anchors)
    assert len(flat) < 256
    labels, matched = peer.assign_targets_to_anchors([flat, flat], [{"boxes": t} for t in truths])
    assert all((label == 1).sum() <= 128 for label in labels)
    wanted = [*peer.box_coder.encode(matched[:1], [flat]), torch.zeros(len(flat), 4)]
    objectness, rpn_box = peer.compute_loss(torch.cat(logits, 1), torch.cat(offsets, 1).reshape(-1, 4), labels, wanted)
    torch.testing.assert_close(losses["objectness"], objectness)
    torch.testing.assert_close(losses["rpn_box"], rpn_box)
    assert rpn_box > 0


def test_head_output_follows_the_order_of_the_anchors() -> None:
    """One weight that fires for anchor 2 at one cell of P3 must come back at that anchor."""
    proposals = build()
    for parameter in proposals.head.parameters():
        torch.nn.init.zeros_(parameter)
    proposals.head.conv[0][0].weight.data[0, 0, 1, 1] = 1
    proposals.head.cls_logits.weight.data[2, 0] = 1
    proposals.head.bbox_pred.weight.data[2 * 4 + 1, 0] = 1
    features = [torch.zeros_like(f) for f in draw_features((64, 128), 1)]
    features[1][0, 0, 3, 5] = 7
    logits, offsets, anchors = proposals(features)
    row = int(logits[1][0].argmax())
    assert logits[1][0, row] == 7 and offsets[1][0, row].tolist() == [0, 7, 0, 0]
    box = anchors[1][row]
    assert ((box[:2] + box[2:]) / 2).tolist() == pytest.approx([5 * 8, 3 * 8])
    assert float((box[3] - box[1]) / (box[2] - box[0])) == pytest.approx(2)


def test_anchors_come_from_the_table_of_the_config() -> None:
    table = AnchorTable(sizes=((8.5, 9.0),) * 5, ratios=((0.4, 1.7),) * 5)
    proposals = build(anchors="explicit", anchor_table=table)
    logits, _, anchors = proposals(draw_features((64, 64), 1))
    assert logits[0].shape == (1, 16 * 16 * 2)
    width, height = (anchors[0][:2, 2:] - anchors[0][:2, :2]).T
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([8.5, 9.0]))
    torch.testing.assert_close(height / width, torch.tensor([0.4, 1.7]))


def test_proposals_stay_finite_when_the_head_says_nonsense() -> None:
    proposals = build()
    logits, offsets, anchors = proposals(draw_features((64, 64), 1))
    broken = [torch.full_like(o, float("nan")) for o in offsets]
    (boxes,) = proposals.propose(logits, broken, anchors, [(64, 64)])
    assert boxes.shape == (0, 4)
