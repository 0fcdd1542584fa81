import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cityopt.models.points import (
    enlarge,
    measure_uncertainty,
    place_grid,
    place_points,
    sample_maps,
    select_cells,
    select_points,
    subdivide,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read_slowly(grid: list[list[float]], x: float, y: float) -> float:
    """Interpolate between the centres of cells, zero outside, one position at a time."""
    total = 0.0
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            near = max(0.0, 1 - abs(x - column - 0.5)) * max(0.0, 1 - abs(y - row - 0.5))
            total += near * value
    return total


def test_maps_are_read_as_a_slow_loop_reads_them() -> None:
    maps = draw(2, 3, 4, 6)
    positions = torch.tensor([[0.5, 0.5], [3.2, 1.9], [0.0, 0.0], [6.0, 4.0], [5.9, 0.1], [-0.4, 2.0], [-3.0, 9.0]])
    rows = torch.tensor([0, 1, 0, 1, 1, 0, 1])
    found = sample_maps(maps, positions, rows)
    assert found.shape == (7, 3)
    for (x, y), row, values in zip(positions.tolist(), rows.tolist(), found.tolist(), strict=True):
        for channel, value in enumerate(values):
            assert value == pytest.approx(read_slowly(maps[row, channel].tolist(), x, y), abs=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_a_read_map_equals_that_of_grid_sample(memory_format: torch.memory_format) -> None:
    maps = draw(1, 5, 8, 9).to(memory_format=memory_format).requires_grad_()
    positions, weights = torch.rand(40, 2, generator=torch.Generator().manual_seed(1)) * 10 - 0.5, draw(40, 5, seed=2)
    (ours,) = torch.autograd.grad((sample_maps(maps, positions, torch.zeros(40).long()) * weights).sum(), maps)
    grid = (2 * positions / torch.tensor([9, 8]) - 1)[None, None]
    (theirs,) = torch.autograd.grad((F.grid_sample(maps, grid, align_corners=False)[0, :, 0].T * weights).sum(), maps)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_grid_lies_at_the_centres_of_cells_row_by_row() -> None:
    assert place_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    placed = place_points(place_grid(2)[None], torch.tensor([[10.0, 20.0, 14.0, 40.0]]))
    assert placed.tolist() == [[[11, 25], [13, 25], [11, 35], [13, 35]]]


def test_selected_points_are_the_most_uncertain_first() -> None:
    logits, candidates = draw(3, 20), torch.rand(3, 20, 2)
    found = select_points(candidates, measure_uncertainty(logits), 6)
    for row in range(3):
        order = sorted(range(20), key=lambda point, row=row: abs(float(logits[row, point])))
        assert torch.equal(found[row], candidates[row, order[:6]])


@pytest.mark.parametrize("count", [5, 36, 50])
def test_selected_cells_are_the_most_uncertain_and_know_where_they_are(count: int) -> None:
    logits = draw(2, 6, 6)
    index, points = select_cells(logits, count)
    assert index.shape == (2, min(count, 36))
    for row in range(2):
        order = sorted(range(36), key=lambda cell, row=row: abs(float(logits[row].flatten()[cell])))
        assert set(index[row].tolist()) == set(order[:count])
        for cell, (x, y) in zip(index[row].tolist(), points[row].tolist(), strict=True):
            assert (math.floor(y * 6) * 6 + math.floor(x * 6)) == cell
            assert x * 6 % 1 == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize(("start", "steps", "count"), [(4, 3, 10), (28, 3, 784), (4, 2, 1000), (3, 0, 5)])
def test_subdivision_decides_as_many_points_as_it_should(start: int, steps: int, count: int) -> None:
    asked: list[Tensor] = []

    def classify(points: Tensor) -> Tensor:
        asked.append(points)
        return torch.full(points.shape[:2], 9.0)

    refined = subdivide(draw(2, start, start), classify, steps=steps, count=count)
    sides = [start * 2 ** (step + 1) for step in range(steps)]
    assert [tuple(points.shape) for points in asked] == [(2, min(count, side**2), 2) for side in sides]
    for points, side in zip(asked, sides, strict=True):
        cells = (points * side).floor()
        assert all(len({tuple(cell) for cell in row.tolist()}) == min(count, side**2) for row in cells)
    side = start * 2**steps
    assert refined.shape == (2, side, side)
    if steps:
        assert ((refined == 9).flatten(1).sum(dim=1) >= min(count, side**2)).all()


def test_subdivision_leaves_all_other_cells_as_they_were_enlarged() -> None:
    logits = draw(1, 5, 5)
    doubled = F.interpolate(logits[None], scale_factor=2, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(enlarge(logits), doubled)
    refined = subdivide(logits, lambda points: torch.full(points.shape[:2], 50.0), steps=1, count=7)
    assert (refined == 50).sum() == 7
    assert torch.equal(refined[refined != 50], doubled[refined != 50])
    assert doubled[refined == 50].abs().max() <= doubled[refined != 50].abs().min()


def test_subdivision_finds_a_circle_far_finer_than_its_first_grid() -> None:
    """The truth is asked at points; what is left to chance is only what lies far from the border."""

    def classify(points: Tensor) -> Tensor:
        return (0.4 - (points - 0.5).norm(dim=-1)) * 50

    start = classify(place_grid(28)[None]).reshape(1, 28, 28)
    refined = subdivide(start, classify, steps=3, count=784)
    truth = classify(place_grid(224)[None]).reshape(1, 224, 224)
    coarse = F.interpolate(start[None], size=(224, 224), mode="nearest")[0]
    assert ((refined > 0) != (truth > 0)).sum() == 0
    assert ((coarse > 0) != (truth > 0)).sum() > 500


def test_nothing_fails_when_there_is_no_box() -> None:
    assert sample_maps(draw(1, 3, 4, 4), torch.zeros(0, 2), torch.zeros(0).long()).shape == (0, 3)
    assert subdivide(torch.zeros(0, 4, 4), lambda points: points[..., 0], steps=2, count=9).shape == (0, 16, 16)
