import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from cityopt.models import roi_align as subject
from cityopt.models.roi_align import cut_map, weigh_cells


def draw_boxes(count: int, width: float, height: float) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([width, height])
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[:4] = torch.tensor(
        [[0, 0, width, height], [0, 0, 1, 1], [width - 1, height - 1, width, height], [3, 4, 3.2, 40]]
    )
    return boxes


@pytest.mark.parametrize("side", [7, 14])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("largest_map", [0, 2**14])
def test_cuts_and_gradients_equal_torchvisions(
    side: int, layout: torch.memory_format, largest_map: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "_LARGEST_MAP", largest_map)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 6, 24, 40, generator=generator).to(memory_format=layout).requires_grad_()
    boxes = draw_boxes(60, 160, 96)
    images = torch.arange(60) // 25
    images[images == 1] = 2
    ours = cut_map(features, boxes, images, side=side, stride=4)
    region = torch.cat([images[:, None].float(), boxes], 1)
    theirs = roi_align(features, region, (side, side), 0.25, sampling_ratio=0, aligned=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    upstream = torch.randn(ours.shape, generator=generator)
    (our_gradient,) = torch.autograd.grad(ours, features, upstream)
    (their_gradient,) = torch.autograd.grad(theirs, features, upstream)
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-3, rtol=1e-3)


def test_cuts_are_the_same_when_few_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, boxes, images = torch.randn(2, 6, 24, 40), draw_boxes(30, 160, 96), torch.arange(30) // 20
    whole = cut_map(features, boxes, images, side=7, stride=4)
    monkeypatch.setattr(subject, "_ELEMENTS_AT_ONCE", 7 * 40 * 6 * 3)
    torch.testing.assert_close(cut_map(features, boxes, images, side=7, stride=4), whole)


def test_cut_is_empty_when_there_are_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert cut_map(torch.rand(2, 3, 8, 8), torch.zeros(0, 4), none, side=7, stride=4).shape == (0, 3, 7, 7)


def test_weights_of_every_cell_sum_to_one() -> None:
    low = torch.tensor([0.0, 3.3, -0.2, 19.5])
    high = torch.tensor([20.0, 3.4, 0.1, 20.0])
    weights = weigh_cells(low, high, torch.tensor(20), cells=7, length=20)
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(4, 7))
    assert (weights >= 0).all()


def test_weights_are_one_hot_when_cells_are_pixels() -> None:
    weights = weigh_cells(torch.tensor([2.0]), torch.tensor([6.0]), torch.tensor(10), cells=4, length=10)
    torch.testing.assert_close(weights[0], torch.eye(10)[2:6])
