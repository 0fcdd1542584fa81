import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, clip_boxes_to_image

from cityopt.config import DEFAULT_ANCHORS
from cityopt.models.backbone import STRIDES
from cityopt.models.boxes import (
    build_cells,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    match_boxes,
    place_anchors,
    sample_boxes,
)


def draw_boxes(count: int, seed: int = 0, extent: float = 100) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * extent
    return torch.cat([corners.amin(1), corners.amax(1) + 1], dim=1)


def test_default_anchors_lie_where_torchvision_puts_its_own_before_rounding() -> None:
    shapes = [(256 // stride, 512 // stride) for stride in STRIDES]
    ours = place_anchors(build_cells(DEFAULT_ANCHORS.sizes, DEFAULT_ANCHORS.ratios), shapes, STRIDES)
    generator = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 256, 512), [(256, 512)]), maps)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 0.5


def test_cells_have_the_area_and_ratio_of_the_table_unrounded() -> None:
    (cell,) = build_cells([[12.0, 20.5]], [[0.5, 3.0]])
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([12.0, 20.5]))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(cell[:, :2], -cell[:, 2:])


def test_anchors_keep_their_stride_when_the_grid_is_rounded_up() -> None:
    anchors = place_anchors(torch.zeros(1, 1, 4), [(2, 3)], [64])
    assert anchors[:, :2].tolist() == [[0, 0], [64, 0], [128, 0], [0, 64], [64, 64], [128, 64]]


def test_offsets_equal_torchvisions_and_lead_back() -> None:
    boxes, references = draw_boxes(50, 0), draw_boxes(50, 1)
    weights = (10.0, 10.0, 5.0, 5.0)
    offsets = encode_boxes(boxes, references, weights)
    coder = BoxCoder(weights)
    torch.testing.assert_close(offsets, coder.encode_single(boxes, references))
    torch.testing.assert_close(decode_boxes(offsets, references, weights), boxes, atol=1e-3, rtol=1e-4)
    wild = torch.randn(50, 4, generator=torch.Generator().manual_seed(2)) * 40
    torch.testing.assert_close(decode_boxes(wild, references, weights), coder.decode_single(wild, references))


def test_clip_equals_torchvisions() -> None:
    boxes = draw_boxes(50, 3) - 30
    torch.testing.assert_close(clip_boxes(boxes, (40, 60)), clip_boxes_to_image(boxes, (40, 60)))


@pytest.mark.parametrize(("low", "high", "keep_best"), [(0.3, 0.7, True), (0.5, 0.5, False)])
def test_matches_equal_torchvisions(low: float, high: float, keep_best: bool) -> None:
    truth, boxes = draw_boxes(6, 4), draw_boxes(400, 5)
    index, state = match_boxes(truth, boxes, low=low, high=high, keep_best=keep_best)
    expected = Matcher(high, low, allow_low_quality_matches=keep_best)(box_iou(truth, boxes))
    assert torch.equal(torch.where(state == 1, index, state - 1), expected)
    assert {-1, 0, 1} >= set(state.tolist()) and (state == 1).any() and (state == 0).any()


def test_everything_is_background_when_nothing_is_there_or_nothing_overlaps() -> None:
    boxes = draw_boxes(5)
    for truth in (torch.zeros(0, 4), torch.tensor([[500.0, 500, 510, 510]])):
        _, state = match_boxes(truth, boxes, low=0.3, high=0.7, keep_best=True)
        assert state.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("num_positive", "num_negative", "expected"), [(50, 50, (8, 24)), (3, 50, (3, 29)), (50, 3, (8, 3)), (0, 0, (0, 0))]
)
def test_sample_keeps_the_share_and_fills_up_with_background(
    num_positive: int, num_negative: int, expected: tuple[int, int]
) -> None:
    state = torch.tensor([1] * num_positive + [0] * num_negative + [-1] * 20)
    positive, negative = sample_boxes(state, count=32, positive_fraction=0.25)
    assert (len(positive), len(negative)) == expected
    assert (state[positive] == 1).all() and (state[negative] == 0).all()
    assert len(set(positive.tolist() + negative.tolist())) == sum(expected)


def test_sample_draws_every_row_equally_often() -> None:
    torch.manual_seed(0)
    state = torch.tensor([1] * 10 + [0] * 10)
    counts = torch.zeros(20)
    for _ in range(1000):
        positive, negative = sample_boxes(state, count=8, positive_fraction=0.5)
        counts[positive] += 1
        counts[negative] += 1
    assert (counts - 400).abs().max() < 80  # five standard deviations of a binomial with n = 1000, p = .4
