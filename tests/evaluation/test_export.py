"""Exports against the official scripts and pycocotools, which read nothing but the files."""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from official_scripts import score_export
from PIL import Image
from pycocotools import mask as rle_tools
from test_coco_ap import make_prediction, make_scene

from cityopt.data.cityscapes import Frame
from cityopt.errors import StoreError
from cityopt.evaluation.export import check_export, open_export
from cityopt.evaluation.protocols import PROTOCOLS, open_judges
from cityopt.labels import THING_LABELS

SIZE = (60, 90)


def make_frame(root: Path, number: int, raster) -> Frame:
    """Write the labels of a frame, whose image nobody reads."""
    name = f"bonn_{number:06d}_000019"
    stem = root / "gtFine/val/bonn" / f"{name}_gtFine"
    stem.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(raster).save(f"{stem}_instanceIds.png")
    Image.fromarray(np.where(raster < 1000, raster, raster // 1000).astype(np.uint8)).save(f"{stem}_labelIds.png")
    return Frame(name, "val", "bonn", root / f"{name}_leftImg8bit.png", Path(f"{stem}_instanceIds.png"), None, None)


@pytest.mark.parametrize("seed", range(4))
def test_scripts_find_the_protocols_numbers_in_an_export_of_random_scenes(seed, tmp_path):
    rng = np.random.default_rng(seed)
    scenes = [make_scene(rng, (150, 200), int(rng.integers(0, 12)), int(rng.integers(0, 30))) for _ in range(5)]
    judges = open_judges(tuple(PROTOCOLS))
    with open_export(tmp_path / "out") as export:
        for number, (raster, prediction) in enumerate(scenes):
            frame = make_frame(tmp_path, number, raster)
            export.add(frame, raster, prediction)
            for judge in judges:
                judge.add(frame.name, raster, prediction)
    found = {f"val/{name}": value for judge in judges for name, value in judge.summarize().items()}
    expected = score_export(tmp_path / "out", tmp_path, "val")
    assert 0 < expected["val/cityscapes/ap"] < expected["val/cityscapes/ap50"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9, nan_ok=True), name


def write(folder: Path, *scenes):
    with open_export(folder) as export:
        for number, (raster, prediction) in enumerate(scenes):
            export.add(make_frame(folder.parent / "tree", number, np.zeros(SIZE, np.uint16)), raster, prediction)
    return folder


def draw(*columns):
    masks = np.zeros((len(columns), *SIZE), bool)
    for mask, (left, right) in zip(masks, columns, strict=True):
        mask[10:50, left:right] = True
    return masks


def test_instances_are_listed_with_label_ids_all_digits_and_binary_masks(tmp_path):
    close = np.nextafter(np.float32(0.1), np.float32(1))
    prediction = make_prediction(SIZE, draw((0, 10), (20, 60)), [1, 8], [np.float32(0.1), close])
    out = write(tmp_path / "out", (None, prediction), (None, make_prediction(SIZE, [], [], [])))
    texts = sorted((out / "instances").glob("*.txt"))
    assert texts[1].read_text() == ""
    rows = [line.split(" ") for line in texts[0].read_text().splitlines()]
    assert [int(row[1]) for row in rows] == [THING_LABELS[7].id, THING_LABELS[0].id]
    assert [float(row[2]) for row in rows] == [float(close), float(np.float32(0.1))]
    for (path, _, _), mask in zip(rows, draw((20, 60), (0, 10)), strict=True):
        with Image.open(texts[0].parent / path) as picture:
            pixels = np.asarray(picture.convert("L"))
        np.testing.assert_array_equal(pixels, mask * np.uint8(255))


def test_pixels_hold_label_ids_of_sure_masks_the_best_on_top(tmp_path):
    prediction = make_prediction(SIZE, draw((0, 30), (20, 60), (50, 90)), [3, 1, 5], [0.9, 0.6, 0.49])
    (path,) = (write(tmp_path / "out", (None, prediction)) / "pixels").iterdir()
    expected = np.zeros(SIZE, np.uint8)
    expected[10:50, 20:60], expected[10:50, :30] = 24, 26
    with Image.open(path) as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_coco_files_describe_crowds_and_instances_with_annotations_from_1(tmp_path):
    raster = np.full(SIZE, 7, np.uint16)
    raster[5:25, 5:25], raster[30:50, :20], raster[:5] = 26003, 24, 29001
    prediction = make_prediction(SIZE, draw((3, 9)), [3], [0.25])
    out = write(tmp_path / "out", (np.full(SIZE, 7, np.uint16), prediction), (raster, prediction))
    truth = json.loads((out / "coco/ground_truth.json").read_text())
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert truth["images"][0]["file_name"] == "val/bonn/bonn_000000_000019_leftImg8bit.png"
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"]) for a in truth["annotations"]] == [
        (1, 2, 1, 1),
        (2, 2, 3, 0),
    ]
    assert [category["name"] for category in truth["categories"]] == [label.name for label in THING_LABELS]
    area = rle_tools.area([annotation["segmentation"] for annotation in truth["annotations"]])
    assert area.tolist() == [400, 400]
    for kind, key in (("segm", "segmentation"), ("bbox", "bbox")):
        results = json.loads((out / f"coco/{kind}.json").read_text())
        assert [(r["image_id"], r["category_id"], r["score"]) for r in results] == [(1, 3, 0.25), (2, 3, 0.25)]
        assert all(set(result) == {"image_id", "category_id", "score", key} for result in results)


def test_export_goes_into_an_empty_folder_but_not_over_files(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", (None, make_prediction(SIZE, [], [], [])))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="new or empty"):
        write(tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_export_fills_a_folder_behind_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    write(tmp_path / "out", (None, make_prediction(SIZE, [], [], [])))
    assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["coco", "instances", "pixels"]
    assert (tmp_path / "out").is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == [
        "out",
        "real",
        "tree",
    ]


def test_export_is_refused_with_the_reason_when_its_place_cannot_be_looked_into(tmp_path, monkeypatch):
    def forbid(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", forbid)
    with pytest.raises(StoreError, match=r"cannot be written.*Permission denied"):
        check_export(tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_error_stays_the_first_one_when_the_disk_is_full(tmp_path, monkeypatch):
    """What is buffered fails a second time when its file is closed."""
    whole = Path.open

    def open_full(path, *args, **options):
        return whole(Path("/dev/full") if path.suffix == ".json" else path, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(StoreError, match="No space left"), open_export(tmp_path / "out"):
        pass
    with pytest.raises(ZeroDivisionError), open_export(tmp_path / "out"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_nothing_stays_of_an_export_that_is_given_up(tmp_path, error):
    with pytest.raises(error), open_export(tmp_path / "deep/out") as export:
        export.add(make_frame(tmp_path / "tree", 0, np.zeros(SIZE, np.uint16)), None, make_prediction(SIZE, [], [], []))
        assert not (tmp_path / "deep/out").exists()
        raise error
    assert list((tmp_path / "deep").iterdir()) == []


def test_export_says_so_when_it_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"), open_export(tmp_path / "file/out"):
        pass
    prediction = make_prediction(SIZE, draw((3, 9)), [3], [0.25])

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(StoreError, match="No space left"), open_export(tmp_path / "out") as export:
        export.add(Frame("a", "val", "bonn", Path("a.png"), None, None, None), None, prediction)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
