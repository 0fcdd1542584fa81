import pytest

from cityopt.models.ceiling import measure_ceiling


@pytest.mark.parametrize("side_px", [12, 16, 24, 32, 64, 96, 128])
def test_masks_lose_little_at_any_size_and_less_than_torchvisions(side_px: int) -> None:
    (row,) = measure_ceiling([side_px], num_objects=12, seed=1)
    assert row.ours >= 0.965
    assert row.ours > row.torchvision


def test_masks_lose_little_when_objects_are_large() -> None:
    (row,) = measure_ceiling([512], num_objects=3)
    assert row.ours >= 0.96
