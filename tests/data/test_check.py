from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_tree import write_frame, write_raster, write_tree

from cityopt.data.check import check_dataset, read_polygons
from cityopt.errors import DataError

STEM = "gtFine/train/ulm/ulm_000001_000019_gtFine"
IMAGE = "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def paint(path: Path, value: int) -> None:
    write_raster(path, np.full((24, 48), value, dtype=np.uint16))


DEFECTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing label": (f"{STEM}_instanceIds.png", Path.unlink, "has no label"),
    "truncated image": (IMAGE, cut, "whole PNG"),
    "truncated raster": (f"{STEM}_instanceIds.png", cut, "whole PNG"),
    "truncated labels": (f"{STEM}_labelIds.png", cut, "whole PNG"),
    "impossible id": (f"{STEM}_instanceIds.png", lambda path: paint(path, 35000), "holds 35000"),
    "impossible label": (f"{STEM}_labelIds.png", lambda path: paint(path, 200), "holds 200"),
    "other size": (f"{STEM}_labelIds.png", lambda path: Image.new("L", (9, 9)).save(path), "has 24 x 48 and"),
    "rubbish polygons": (f"{STEM}_polygons.json", lambda path: path.write_text("{"), "cannot be read"),
    "orphan": (IMAGE, Path.unlink, "the label has no image"),
}


def test_check_dataset_finds_nothing_when_all_is_well(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path,
        {"train": {"ulm": 2, "jena": 1}, "val": {"bonn": 1}, "test": {"berlin": 2}, "train_extra": {"graz": 1}},
    )
    write_frame(root, "train", "jena", 0, kind="gtCoarse")
    progress: list[tuple[int, int]] = []
    report = check_dataset(root, lambda done, total: progress.append((done, total)))
    counts = {name: (split["images"], split["labels"], split["problems"]) for name, split in report["splits"].items()}
    # gtCoarse/train is there for one of three frames: the others lack theirs
    missing = counts["train"][2]
    assert [problem["file"].split("/")[0] for problem in missing] == ["gtCoarse", "gtCoarse"]
    assert counts["train"][:2] == (3, 3)
    assert counts["val"] == (1, 1, [])
    assert counts["test"] == (2, 0, [])
    assert counts["train_extra"] == (1, 1, [])
    assert report["root"] == str(root)
    assert progress[-1] == (7, 7)


@pytest.mark.parametrize("defect", DEFECTS)
def test_check_dataset_names_the_file_when_it_is_broken(tmp_path: Path, defect: str) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 3}})
    file, damage, problem = DEFECTS[defect]
    damage(root / file)
    report = check_dataset(root)
    (found,) = report["splits"]["train"]["problems"]
    assert found["file"] == (f"{STEM}_instanceIds.png" if defect == "orphan" else file)
    assert problem in found["problem"]
    assert report["splits"]["train"]["images"] == 3 - (defect == "orphan")
    assert report["splits"]["train"]["labels"] == 3 - (defect in ("orphan", "missing label"))


def test_check_dataset_goes_on_when_a_split_has_labels_only(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 1}, "val": {"bonn": 1}})
    (root / "leftImg8bit/val/bonn/bonn_000000_000019_leftImg8bit.png").unlink()
    val = check_dataset(root)["splits"]["val"]
    assert (val["images"], val["labels"], len(val["problems"])) == (0, 0, 1)


def test_check_dataset_refuses_when_the_root_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Cityscapes root"):
        check_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "cannot be read"),
        ("[1, 2]", "holds a list"),
        ('{"imgHeight": 2, "imgWidth": "2"}', "imgWidth is '2'"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": {}}', "no list of objects"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [7]}', "object 0 has no label"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "cow"}]}', "unknown label 'cow'"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "car", "polygon": [[1]]}]}', "no list of"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "car", "polygon": []}]}', "no list of"),
        ('{"imgHeight": 2, "imgWidth": 2, "objects": [{"label": "car", "polygon": [["a", 1]]}]}', "no list of"),
    ],
)
def test_read_polygons_says_what_is_wrong_when_it_is_rubbish(tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "x_polygons.json"
    path.write_text(content)
    with pytest.raises(DataError, match=problem) as caught:
        read_polygons(path)
    assert str(path) in str(caught.value)


def test_read_polygons_takes_groups_and_deleted_objects_when_labels_are_official(tmp_path: Path) -> None:
    path = tmp_path / "x_polygons.json"
    path.write_text(
        '{"imgHeight": 2, "imgWidth": 3, "objects": [{"label": "persongroup", "polygon": [[0, 0.5], [1, 1]]},'
        '{"label": "license plate", "deleted": 1, "polygon": [[0, 0]]}]}'
    )
    assert [item["label"] for item in read_polygons(path)["objects"]] == ["persongroup", "license plate"]


def test_check_dataset_lists_an_image_whose_name_another_split_has(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 2}, "val": {"bonn": 2}})
    for path in sorted(root.glob("*/val/bonn/bonn_000001*")):
        path.rename(path.with_name(path.name.replace("bonn", "ulm")))
    splits = check_dataset(root)["splits"]
    (problem,) = splits["val"]["problems"]
    assert problem["file"] == "leftImg8bit/val/bonn/ulm_000001_000019_leftImg8bit.png"
    assert "train/ulm/ulm_000001" in problem["problem"] and splits["train"]["problems"] == []
