"""Pictures: every kind that people have is read upright as RGB, names never collide, labels are found."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cityopt.data.pictures import find_label, find_pictures, fit_size, read_picture, read_truth
from cityopt.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, pixels=RGB, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_picture_is_read_as_it_is_when_nothing_is_lost(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    np.testing.assert_array_equal(read_picture(save(tmp_path / f"a.{suffix}", **options)), RGB)


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_picture_stands_upright_when_exif_says_that_it_was_turned(tmp_path, orientation, quarters):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", exif=exif)), np.rot90(RGB, quarters))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_become_eight_over_the_full_range(tmp_path, suffix):
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    expected = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    np.testing.assert_array_equal(read_picture(save(tmp_path / f"a.{suffix}", grey)), expected)


def test_grey_palette_and_alpha_become_rgb(tmp_path):
    grey = read_picture(save(tmp_path / "grey.png", RGB[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(RGB[..., :1], 3, axis=2))
    Image.fromarray(RGB[..., 0] % 2 * np.uint8(255)).convert("P").save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "palette.png")[..., 1], RGB[..., 0] % 2 * 255)
    alpha = np.zeros((20, 30, 1), np.uint8)
    alpha[:10] = 255
    shown = read_picture(save(tmp_path / "alpha.png", np.concatenate((RGB, alpha), axis=2)))
    np.testing.assert_array_equal(shown[:10], RGB[:10])
    assert (shown[10:] == 255).all()
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "print.jpg", quality=100, subsampling=0)
    assert np.abs(read_picture(tmp_path / "print.jpg").astype(int) - RGB).mean() < 10


@pytest.mark.parametrize("name", ["empty.png", "cut.png", "text.jpg", "float.tif", "nowhere.png", "folder.png"])
def test_picture_is_refused_with_its_name_when_it_cannot_be_read(tmp_path, name):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    whole = save(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(tmp_path / "float.tif", RGB[..., 0].astype(np.float32))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        read_picture(tmp_path / name)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(inputs, **options):
    pictures, problems = find_pictures(inputs, **options)
    assert len({picture.name for picture in pictures}) == len(pictures)
    return [picture.name for picture in pictures], problems


def test_folder_is_searched_to_its_depth_for_pictures_alone(tmp_path):
    touch(tmp_path, "b.PNG", "a/c.jpeg", "a/d/e.webp", "f.tiff", "g.txt", ".h.png", ".i/j.png", "out/overlays/k.jpg")
    touch(tmp_path, "x_gtFine_instanceIds.png", "x_gtCoarse_color.png", "x_disparity.png", "x_leftImg8bit.png")
    found, problems = names_of([tmp_path], outside=(tmp_path / "out").resolve())
    assert sorted(found) == ["a/c", "a/d/e", "b", "f", "x_leftImg8bit"] and not problems


def test_names_stay_apart_when_stems_are_alike(tmp_path, monkeypatch):
    touch(tmp_path, "one/x.png", "two/x.png", "two/y.jpg", "z.png")
    assert names_of([tmp_path / "one", tmp_path / "two"])[0] == ["one/x", "two/x", "two/y"]
    assert names_of([tmp_path / "two" / "x.png"])[0] == ["x"]
    touch(tmp_path, "two/x.jpg")
    assert names_of([tmp_path / "two"])[0] == ["x.jpg", "x.png", "y.jpg"]
    monkeypatch.chdir(tmp_path / "one")
    assert names_of([Path("../two/y.jpg"), Path("x.png"), Path("../one")])[0] == ["two/y", "one/x"]


def test_picture_comes_once_when_it_is_meant_twice(tmp_path):
    touch(tmp_path, "a.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert names_of([tmp_path / "a.png", tmp_path, tmp_path / "link.png"])[0] == ["a"]


def test_inputs_without_a_picture_are_named_with_the_reason(tmp_path):
    touch(tmp_path, "empty/readme.txt", "a.bmp")
    found, problems = names_of([tmp_path / "empty", tmp_path / "nowhere.png", tmp_path / "a.bmp"])
    assert found == ["a"]  # a file that is named is taken as it is
    assert "holds no picture" in problems[tmp_path / "empty"] and problems[tmp_path / "nowhere.png"] == "is not there"


def test_label_is_found_when_the_picture_lies_in_a_cityscapes_tree(tmp_path, monkeypatch):
    raster = np.full((20, 30), 26001, np.uint16)
    for split in ("val", "test"):
        save(tmp_path / "leftImg8bit" / split / "ulm" / "ulm_0_1_leftImg8bit.png")
        save(tmp_path / "gtFine" / split / "ulm" / "ulm_0_1_gtFine_instanceIds.png", raster)
    image = tmp_path / "leftImg8bit/val/ulm/ulm_0_1_leftImg8bit.png"
    np.testing.assert_array_equal(read_truth(image, (20, 30)), raster)
    monkeypatch.chdir(image.parent)
    assert find_label(Path(image.name)).is_file()
    assert find_label(tmp_path / "leftImg8bit/test/ulm/ulm_0_1_leftImg8bit.png") is None  # dummies
    assert read_truth(save(tmp_path / "ulm_0_1_leftImg8bit.png"), (20, 30)) is None
    with pytest.raises(DataError, match=r"must have the picture's size \(10, 30\)"):
        read_truth(image, (10, 30))


@pytest.mark.parametrize("size", [(1024, 2048), (360, 480), (4032, 3024), (1, 1), (10, 10_000), (10_000, 7)])
def test_picture_fits_into_the_size_with_its_aspect_kept(size):
    limits = (512, 1024)
    height, width = fit_size(size, limits)
    assert 1 <= height <= limits[0] and 1 <= width <= limits[1] and (height == limits[0] or width == limits[1])
    assert (
        abs(height - width * size[0] / size[1]) <= max(0.5, 0.5 * size[0] / size[1]) + 1e-9 or min(height, width) == 1
    )


def test_search_follows_no_circle(tmp_path):
    touch(tmp_path, "a/b.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert names_of([tmp_path])[0] == ["a/b"]


def test_folders_that_cannot_be_read_are_named_and_the_others_searched(tmp_path, monkeypatch):
    """Tests may run as root, whom no folder's rights keep out."""
    touch(tmp_path, "a.png", "closed/b.png", "open/c.png")
    whole = os.scandir

    def forbid(path):
        if str(path) == str(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", forbid)
    pictures, problems = find_pictures([tmp_path])
    assert [picture.path.name for picture in pictures] == ["a.png", "c.png"]
    assert problems == {tmp_path / "closed": "cannot be searched: Permission denied"}


def test_input_that_cannot_be_looked_at_is_named(tmp_path, monkeypatch):
    """Python 3.11 lets the error of a closed parent folder through."""
    touch(tmp_path, "a.png", "b.png")
    whole = Path.is_dir

    def forbid(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(Path, "is_dir", forbid)
    pictures, problems = find_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    assert [picture.path.name for picture in pictures] == ["b.png"]
    assert problems == {tmp_path / "a.png": "cannot be searched: Permission denied"}
