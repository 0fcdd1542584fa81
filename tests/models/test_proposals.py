import pytest
import torch
from small_models import SMALL, draw_scene
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou

from cityopt.config import AnchorTable
from cityopt.models.backbone import STRIDES
from cityopt.models.proposals import RegionProposals, Suppress, suppress_at_once, suppress_one_by_one


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


def draw_level(count: int, seed: int, *, spread_px: float = 30.0) -> tuple[Tensor, Tensor]:
    """Boxes (2, count, 4) in dense heaps, some of them empty, and their scores, descending."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(2, count, 2, generator=generator) * spread_px
    half = torch.rand(2, count, 2, generator=generator) * 12 + 6
    half[:, ::9, 0] = 0
    scores = torch.rand(2, count, generator=generator).sort(dim=1, descending=True).values
    return torch.cat([centre - half, centre + half], dim=2), scores


def suppress_slowly(boxes: Tensor, alive: Tensor, max_iou: float) -> Tensor:
    """Do what the kernel does, box by box."""
    kept = alive.clone()
    for group, box in zip(kept, boxes, strict=True):
        for i in range(len(box)):
            if group[i]:
                group[i + 1 :] &= ~(box_iou(box[i : i + 1], box[i + 1 :])[0] > max_iou)
    return kept


@pytest.mark.parametrize("count", [5, 40, 10_000])
def test_suppress_at_once_equals_torchvisions_suppression(count: int) -> None:
    levels = [draw_level(300, 0), draw_level(120, 1), draw_level(7, 2, spread_px=500), draw_level(1, 3)]
    boxes, scores = [box for box, _ in levels], [score for _, score in levels]
    wanted = suppress_one_by_one(boxes, scores, count=count)
    found = suppress_at_once(boxes, scores, count=count, suppress=suppress_slowly)
    assert [len(box) for box in found] == [len(box) for box in wanted]
    assert 0 < len(wanted[0]) < 300
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_suppress_at_once_finds_nothing_when_all_boxes_are_empty() -> None:
    found = suppress_at_once([torch.zeros(2, 5, 4)], [torch.zeros(2, 5)], count=3, suppress=suppress_slowly)
    assert [len(box) for box in found] == [0, 0]


def draw_groups() -> tuple[Tensor, Tensor]:
    """Three groups: a heap, a chain in which each covers its neighbour (IoU .82) and nobody else (.67), and nothing."""
    left = torch.arange(30.0) * 2
    chain = torch.stack([left, torch.zeros(30), left + 20, torch.full((30,), 20.0)], dim=1)
    heap = draw_level(30, 5, spread_px=8)[0][0]
    boxes = torch.stack([heap, chain, torch.zeros(30, 4)])
    return boxes, ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=2)


def check_kernel(suppress: Suppress, device: str) -> None:
    boxes, alive = draw_groups()
    kept = suppress(boxes.to(device), alive.to(device), 0.7).cpu()
    assert torch.equal(kept, suppress_slowly(boxes, alive, 0.7))
    assert kept[1].tolist() == [True, False] * 15
    assert 1 < int(kept[0].sum()) < int(alive[0].sum())


@pytest.mark.skipif(torch.cuda.is_available(), reason="a test of its own runs the kernel on the GPU")
def test_kernel_equals_a_slow_loop() -> None:
    pytest.importorskip("triton")
    from cityopt.models.suppression_triton import suppress_groups

    check_kernel(suppress_groups, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernel_equals_a_slow_loop_when_on_cuda() -> None:
    from cityopt.models.suppression_triton import suppress_groups

    check_kernel(suppress_groups, "cuda")


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
