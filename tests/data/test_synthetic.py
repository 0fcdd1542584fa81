"""Synthetic trees against cityscapesScripts' own rasterisation, and against the promises of their docstrings."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from cityopt.data import synthetic
from cityopt.data.scenery.casting import Casting
from cityopt.data.scenery.rasters import rasterise_instances
from cityopt.data.scenery.scene import paint_scene
from cityopt.data.synthetic import split_counts, write_synthetic
from cityopt.errors import DataError

SIZE = (96, 192)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "tree"
    write_synthetic(out, num_images=40, size=SIZE, seed=5, with_coarse=True)
    return out


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def tree_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def frames(root: Path, kind: str, split: str, suffix: str) -> list[str]:
    return sorted(path.name.removesuffix(suffix) for path in (root / kind / split).rglob(f"*{suffix}"))


def test_rasters_equal_the_official_rasterisation_of_the_polygons(tree: Path) -> None:
    documents = sorted(tree.rglob("*_polygons.json"))
    assert len(documents) == 40 + 38 + 20  # fine for all, coarse for train and val, coarse for train_extra
    for document in documents:
        annotation = Annotation()
        annotation.fromJsonFile(str(document))
        stem = str(document).removesuffix("_polygons.json")
        instances = np.asarray(createInstanceImage(annotation, "ids"))
        assert np.array_equal(read(Path(f"{stem}_instanceIds.png")), instances), document
        assert np.array_equal(read(Path(f"{stem}_labelIds.png")), np.asarray(createLabelImage(annotation, "ids")))


def test_files_have_the_official_formats(tree: Path) -> None:
    formats = Counter()
    for path in tree.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (SIZE[1], SIZE[0])
            formats[path.stem.rsplit("_", 1)[1], image.mode] += 1
    assert formats == {("leftImg8bit", "RGB"): 60, ("instanceIds", "I;16"): 98, ("labelIds", "L"): 98}


def test_layout_pairs_every_image_with_its_labels_in_several_cities(tree: Path) -> None:
    assert split_counts(40) == {"train": 30, "val": 8, "test": 2}
    for split, count, num_cities in (("train", 30, 6), ("val", 8, 2), ("test", 2, 1)):
        images = frames(tree, "leftImg8bit", split, "_leftImg8bit.png")
        assert len(images) == len(set(images)) == count
        assert images == frames(tree, "gtFine", split, "_gtFine_instanceIds.png")
        assert len({path.name for path in (tree / "leftImg8bit" / split).iterdir()}) == num_cities
    for name in frames(tree, "leftImg8bit", "train", "_leftImg8bit.png"):
        city, sequence, frame = name.split("_")
        assert (tree / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png").is_file()
        assert len(sequence) == len(frame) == 6 and (sequence + frame).isdigit()


def test_cities_of_the_splits_are_disjoint(tree: Path) -> None:
    cities = [path.name for split in (tree / "leftImg8bit").iterdir() for path in split.iterdir()]
    assert len(cities) == len(set(cities))


def test_all_eight_classes_groups_and_surroundings_appear(tree: Path) -> None:
    singles, plain = Counter(), Counter()
    for path in tree.glob("gtFine/train/*/*_instanceIds.png"):
        values = np.unique(read(path))
        singles.update({int(value) // 1000 for value in values if value >= 1000})
        plain.update(int(value) for value in values if value < 1000)
    evaluated = {label.id for label in official_labels if label.hasInstances and not label.ignoreInEval}
    assert evaluated <= set(singles)
    assert singles[26] >= 20 and singles[24] >= 15  # cars and persons are in most of the 30 images
    assert singles[31] <= 10  # trams are rare
    assert {24, 26, 33} & set(plain), "no group region in 30 images"
    assert {1, 2, 7, 8, 11, 17, 19, 20, 21, 23} <= set(plain)


def test_pixels_are_nearly_all_labelled_in_fine_annotations(tree: Path) -> None:
    rasters = [read(path) for path in tree.glob("gtFine/train/*/*_labelIds.png")]
    assert np.mean(np.stack(rasters) == 0) < 0.005


def test_test_split_has_dummy_labels_only(tree: Path) -> None:
    for path in tree.glob("gtFine/test/*/*_instanceIds.png"):
        assert set(np.unique(read(path)).tolist()) <= {1, 2, 3}


def test_coarse_labels_are_true_where_given_and_leave_void_between(tree: Path) -> None:
    shares, points = [], np.zeros(2)
    for path in tree.glob("gtCoarse/train/*/*_labelIds.png"):
        coarse = read(path)
        fine = read(Path(str(path).replace("gtCoarse", "gtFine")))
        given = coarse > 0
        shares.append(given.mean())
        assert np.mean(coarse[given] == fine[given]) > 0.97
        points += np.array([num_points(path), num_points(Path(str(path).replace("gtCoarse", "gtFine")))])
    assert 0.4 < np.mean(shares) < 0.95
    assert points[0] < points[1] / 2
    assert frames(tree, "leftImg8bit", "train_extra", "_leftImg8bit.png") == frames(
        tree, "gtCoarse", "train_extra", "_gtCoarse_labelIds.png"
    )
    assert not (tree / "gtFine" / "train_extra").exists()


def num_points(label_path: Path) -> int:
    document = json.loads(Path(str(label_path).replace("labelIds.png", "polygons.json")).read_text())
    return sum(len(item["polygon"]) for item in document["objects"])


def test_same_arguments_give_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_synthetic(tmp_path / name, num_images=3, size=(64, 128), seed=seed, with_coarse=True)
    a, b, c = (tree_bytes(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a if name.endswith("leftImg8bit.png"))


def test_scene_does_not_depend_on_the_number_of_images_before_it(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "few", num_images=10, size=(32, 64), seed=1)
    write_synthetic(tmp_path / "more", num_images=20, size=(32, 64), seed=1)
    few, more = (
        tree_bytes(tmp_path / "few" / "leftImg8bit" / "train"),
        tree_bytes(tmp_path / "more" / "leftImg8bit" / "train"),
    )
    assert few.items() <= more.items()


def test_several_processes_write_the_bytes_that_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, cores in (("one", 1), ("two", 2)):
        monkeypatch.setattr(synthetic, "count_cores", lambda cores=cores: cores)
        write_synthetic(tmp_path / name, num_images=64, size=(32, 64), seed=5)
    assert len(tree_bytes(tmp_path / "one")) > 64 and tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_scene_without_anybody_has_no_instances() -> None:
    scene = paint_scene(64, 128, 9, Casting(frozenset({"nobody", "bus"})))
    assert scene.instances_HW.max() < 24
    assert np.array_equal(rasterise_instances([], 4, 6), np.zeros((4, 6)))


@pytest.mark.parametrize("size", [(32, 32), (120, 64), (97, 211)])
def test_scenes_of_other_shapes_are_painted_and_rasterised(size: tuple[int, int]) -> None:
    scene = paint_scene(*size, 2, Casting(frozenset({"bus", "bicycle"})))
    assert scene.image_HW3.shape == (*size, 3) and scene.instances_HW.shape == size
    assert all(0 <= x < size[1] and 0 <= y < size[0] for _, polygon in scene.objects for x, y in polygon)


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_synthetic(
        tmp_path / "t", num_images=4, size=(32, 64), seed=0, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("num_images", "size", "message"),
    [(2, SIZE, "num_images=2"), (5, (31, 64), "size=31x64"), (5, (64, 16), "size=64x16")],
)
def test_write_synthetic_refuses_impossible_requests(
    tmp_path: Path, num_images: int, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_synthetic(tmp_path / "t", num_images=num_images, size=size, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_write_synthetic_refuses_a_directory_with_other_content(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match=r"must be empty or missing, but holds other files"):
        write_synthetic(tmp_path / "t", num_images=3, size=(32, 64), seed=0)
    assert tree_bytes(tmp_path) == {"t/thesis.tex": b"precious"}


def test_write_synthetic_keeps_its_own_tree_and_refuses_another_recipe(tmp_path: Path) -> None:
    out = tmp_path / "t"
    out.mkdir()  # an empty directory is welcome
    write_synthetic(out, num_images=3, size=(32, 64), seed=0)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    write_synthetic(out, num_images=3, size=(32, 64), seed=0)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(DataError, match="another synthetic tree"):
        write_synthetic(out, num_images=3, size=(32, 64), seed=1)


def test_write_synthetic_leaves_nothing_behind_when_interrupted(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "t", num_images=3, size=(32, 64), seed=0, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_write_synthetic_keeps_the_tree_of_a_faster_process(tmp_path: Path) -> None:
    out = tmp_path / "t"

    def write(progress: Callable[[int, int], None] | None) -> None:
        write_synthetic(out, num_images=3, size=(32, 64), seed=0, progress=progress)

    write(lambda done, total: write(None) if done == 1 else None)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
    assert len(list(out.rglob("*_leftImg8bit.png"))) == 3


def test_write_synthetic_refuses_a_place_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="must be writable"):
        write_synthetic(tmp_path / "file" / "t", num_images=3, size=(32, 64), seed=0)
