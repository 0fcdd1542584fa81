"""The kernels run on a CPU too, in triton's interpreter: slowly, so that everything here is tiny."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

pytest.importorskip("triton")
from cityopt.models.roi_align_triton import cut_pyramid

SIDE = 2
BOXES = torch.tensor([[0.0, 0, 62, 30], [61, 29, 64, 32], [3.3, 2.1, 9.7, 30.2], [0, 0, 64, 32], [9, 9, 21, 12.5]])
IMAGES, LEVELS = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 0, 0, 3, 2])


def draw_pyramid(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, 32 // 2**k, 64 // 2**k) for k in range(2, 6)]
    return [level.to(device, dtype).requires_grad_() for level in maps]


def cut_with_torchvision(pyramid: list[Tensor], boxes: Tensor, images: Tensor, levels: Tensor, side: int) -> Tensor:
    regions = torch.cat([images[:, None].float(), boxes], dim=1)
    cuts = [
        roi_align(pyramid[level].float(), regions[row : row + 1], (side, side), 1 / 2 ** (level + 2), aligned=True)
        for row, level in enumerate(levels.tolist())
    ]
    return torch.cat(cuts)


def compare(cut: Callable[..., Tensor], pyramid: list[Tensor], *, tolerance: float, side: int = SIDE) -> None:
    place = pyramid[0].device
    where = [tensor.to(place) for tensor in (BOXES, IMAGES, LEVELS)]
    found, wanted = cut(pyramid, *where, side), cut_with_torchvision(pyramid, *where, side)
    torch.testing.assert_close(found.float(), wanted, atol=tolerance, rtol=tolerance)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(place)
    ours = torch.autograd.grad(found, pyramid, upstream.to(found.dtype))
    theirs = torch.autograd.grad(wanted, pyramid, upstream)
    for our_gradient, their_gradient in zip(ours, theirs, strict=True):
        assert our_gradient.dtype == their_gradient.dtype
        torch.testing.assert_close(our_gradient, their_gradient, atol=3 * tolerance, rtol=3 * tolerance)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a test of its own runs the kernels on the GPU")
def test_cut_pyramid_equals_torchvision_forward_and_backward() -> None:
    compare(cut_pyramid, draw_pyramid(torch.float32), tolerance=1e-5)


def test_cut_pyramid_is_empty_when_there_are_no_boxes() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert cut_pyramid(draw_pyramid(torch.float32), torch.zeros(0, 4), none, none, 7).shape == (0, 5, 7, 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("side", [7, 14])
def test_cut_pyramid_equals_torchvision_when_on_cuda(dtype: torch.dtype, tolerance: float, side: int) -> None:
    compare(cut_pyramid, draw_pyramid(dtype, "cuda"), tolerance=tolerance, side=side)
