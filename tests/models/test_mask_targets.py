import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from cityopt.models import mask_targets as subject
from cityopt.models.mask_targets import sample_labels, sample_masks


def draw_case(count: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 4, (2, 12, 20), dtype=torch.int32, generator=generator)
    large, small = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    maps = [large, small[:70, :131]]
    images = torch.randint(0, 2, (count,), generator=generator)
    instances = torch.randint(0, 3, (count,), generator=generator)
    size = torch.tensor([[m.shape[1], m.shape[0]] for m in maps])[images].float()
    corners = torch.rand(count, 2, 2, generator=generator) * size[:, None]
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[0] = torch.cat([torch.zeros(2), size[0]])
    boxes[1] = torch.cat([size[1] - 1, size[1]])
    boxes[2] = torch.tensor([0, 0, 0.5, 50])
    return maps, images, instances, boxes


@pytest.mark.parametrize("side", [7, 28])
def test_targets_equal_roi_align_of_the_binary_mask(side: int) -> None:
    maps, images, instances, boxes = draw_case(80)
    targets = sample_masks(maps, images, instances, boxes, side=side)
    for row, target in enumerate(targets):
        mask = (maps[images[row]] == instances[row] + 1).float()[None, None]
        expected = roi_align(mask, [boxes[row : row + 1]], (side, side), sampling_ratio=0, aligned=True)[0, 0]
        torch.testing.assert_close(target, expected, atol=2e-4, rtol=0)


def test_targets_are_the_same_when_few_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw_case(40)
    whole = sample_masks(*case, side=28)
    monkeypatch.setattr(subject, "_ELEMENTS_AT_ONCE", 1)
    torch.testing.assert_close(sample_masks(*case, side=28), whole)


def test_targets_are_the_mask_itself_when_cells_are_pixels() -> None:
    instance_map = torch.zeros(40, 40, dtype=torch.int32)
    instance_map[8:20, 10:17] = 3
    zero = torch.zeros(1, dtype=torch.int64)
    box = torch.tensor([[6.0, 4.0, 34.0, 32.0]])
    (target,) = sample_masks([instance_map], zero, zero + 2, box, side=28)
    torch.testing.assert_close(target, (instance_map[4:32, 6:34] == 3).float())


def test_targets_are_empty_when_there_are_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    maps = [torch.zeros(8, 8, dtype=torch.int32)]
    assert sample_masks(maps, none, none, torch.zeros(0, 4), side=28).shape == (0, 28, 28)


def test_labels_equal_grid_sample_of_the_binary_mask() -> None:
    maps, images, instances, boxes = draw_case(40)
    points = torch.rand(40, 30, 2, generator=torch.Generator().manual_seed(1)) * 1.4 - 0.2  # some outside
    positions = boxes[:, None, :2] + points * (boxes[:, None, 2:] - boxes[:, None, :2])
    labels = sample_labels(maps, images, instances, positions)
    assert 0 < float((labels > 0).float().mean()) < 1
    for row, label in enumerate(labels):
        mask = (maps[images[row]] == instances[row] + 1).float()[None, None]
        size = torch.tensor([mask.shape[3], mask.shape[2]])
        expected = F.grid_sample(mask, (2 * positions[row] / size - 1)[None, None], align_corners=False)[0, 0, 0]
        torch.testing.assert_close(label, expected, atol=1e-4, rtol=0)


def test_labels_are_empty_when_there_is_no_box() -> None:
    maps, images, instances, _ = draw_case(4)
    assert sample_labels(maps, images[:0], instances[:0], torch.zeros(0, 7, 2)).shape == (0, 7)
