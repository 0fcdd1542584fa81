"""A folder appears whole in its place, be that new, empty, a link or a mount point, or nothing of it does."""

import errno
from pathlib import Path

import pytest

from cityopt.tracking.partial_folder import PartialFolder


def fill(partial: PartialFolder) -> None:
    (partial.path / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt"):
        (partial.path / name).write_text(name)


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["new", "empty", "link", "mount point"])
def target(request, tmp_path, monkeypatch) -> Path:
    place = tmp_path / "some" / "out"
    if request.param == "new":
        return place
    place.mkdir(parents=True)
    if request.param == "link":
        (tmp_path / "link").symlink_to(place)
        return tmp_path / "link"
    if request.param == "mount point":
        whole = Path.rename

        def rename(path: Path, other: Path) -> Path:
            if Path(other) == place:
                raise OSError(errno.EBUSY, "Device or resource busy")
            if (place in path.parents) != (place in Path(other).parents):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            return whole(path, other)

        monkeypatch.setattr(Path, "rename", rename)
    return place


def test_folder_is_in_its_place_when_it_is_finished_and_not_before(target):
    partial = PartialFolder(target)
    fill(partial)
    assert not target.exists() or [path for path in target.iterdir() if path != partial.path] == []
    partial.finish()
    partial.discard()
    assert read(target) == {"a.txt": "a.txt", "deep/b.txt": "deep/b.txt"}
    assert sorted(path.name for path in target.iterdir()) == ["a.txt", "deep"]
    assert [path.name for path in target.parent.iterdir()] in (["out"], ["some", "link"], ["link", "some"])


def test_nothing_is_left_when_it_is_given_up(target):
    was_there = target.exists()
    partial = PartialFolder(target)
    fill(partial)
    partial.discard()
    assert target.exists() == was_there and (not was_there or list(target.iterdir()) == [])


def test_nothing_is_left_when_the_end_fails_half_way(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    partial = PartialFolder(tmp_path / "out")
    fill(partial)
    whole = Path.rename

    def rename(path: Path, other: Path) -> Path:
        if path.name == "deep":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, other)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space left"):
        partial.finish()
    partial.discard()
    assert list((tmp_path / "out").iterdir()) == []
