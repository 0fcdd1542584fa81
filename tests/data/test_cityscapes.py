import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from PIL import Image
from tiny_tree import paint_raster, write_frame, write_raster, write_tree

from cityopt.data import cityscapes
from cityopt.data.cityscapes import (
    fingerprint,
    index_split,
    list_frames,
    read_image,
    read_instance_ids,
    scan_frames,
)
from cityopt.errors import DataError, StoreError
from cityopt.labels import CLASS_OF_ID, EVALUATED_LABELS


def test_index_split_lists_frames_by_name_when_cities_differ(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 2, "aachen": 1}, "val": {"jena": 1}})
    frames = index_split(root, "train")
    assert [frame.name for frame in frames] == ["aachen_000000_000019", "ulm_000000_000019", "ulm_000001_000019"]
    assert [frame.city for frame in frames] == ["aachen", "ulm", "ulm"]
    assert {frame.split for frame in frames} == {"train"}
    first = root / "gtFine/train/aachen/aachen_000000_000019_gtFine"
    assert [str(path) for path in (frames[0].instance_ids, frames[0].label_ids, frames[0].polygons)] == [
        f"{first}_instanceIds.png",
        f"{first}_labelIds.png",
        f"{first}_polygons.json",
    ]


def test_index_split_names_both_files_when_two_cities_share_a_name(tmp_path: Path) -> None:
    for city in ("bonn", "ulm"):
        write_frame(tmp_path, "test", city, 0)
    for path in sorted(tmp_path.glob("*/test/ulm/*")):
        path.rename(path.with_name(path.name.replace("ulm", "bonn")))
    with pytest.raises(DataError, match=r"test/bonn/bonn_000000_.* and .*test/ulm/bonn_000000_.* share one"):
        index_split(tmp_path, "test")


def test_index_split_reads_coarse_labels_when_asked(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train_extra": {"bonn": 2}})
    (frame, _) = index_split(root, "train_extra", "coarse")
    assert frame.instance_ids == root / "gtCoarse/train_extra/bonn/bonn_000000_000019_gtCoarse_instanceIds.png"


def test_index_split_gives_test_no_labels_when_only_dummies_are_there(tmp_path: Path) -> None:
    write_frame(tmp_path, "test", "berlin", 0)
    write_frame(tmp_path, "test", "berlin", 1, labelled=False)
    assert [frame.instance_ids for frame in index_split(tmp_path, "test")] == [None, None]


def test_index_split_skips_other_files_when_the_system_left_some(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 1}})
    folder = root / "leftImg8bit/train/ulm"
    (folder / "._ulm_000000_000019_leftImg8bit.png").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    assert len(index_split(root, "train")) == 1


def test_list_frames_is_empty_when_the_split_is_absent(tmp_path: Path) -> None:
    assert list_frames(write_tree(tmp_path, {"train": {"ulm": 1}}), "val", "fine") == []


def test_index_split_says_what_is_wrong_when_the_root_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*--data"):
        index_split(tmp_path / "nowhere", "train")


def test_index_split_names_the_right_folder_when_the_root_is_one_too_high_or_low(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "cityscapes", {"train": {"ulm": 1}})
    for wrong in (root.parent, root / "gtFine"):
        with pytest.raises(DataError, match=f"no leftImg8bit/. Did you mean {root}"):
            index_split(wrong, "train")


def test_index_split_says_what_is_wrong_when_the_folder_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Unpack the official archives"):
        index_split(tmp_path, "train")


def test_index_split_says_what_is_wrong_when_the_split_has_no_images(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 1}})
    with pytest.raises(DataError, match=r"leftImg8bit/val must hold"):
        index_split(root, "val")
    with pytest.raises(DataError, match="one of train, val, test, but got 'trian'"):
        index_split(root, "trian")


def test_index_split_names_image_and_label_when_a_label_is_missing(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"train": {"ulm": 3}})
    lost = root / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    lost.unlink()
    with pytest.raises(DataError, match=rf"1 of 3 .*ulm_000001_000019_leftImg8bit.png, lacks {lost}"):
        index_split(root, "train")


def test_read_instance_ids_equals_the_official_raster_when_polygons_are_drawn(tmp_path: Path) -> None:
    things = ["car", "car", "cargroup", "person", "caravan", "license plate", "trailergroup", "bicycle"]
    objects = [
        {"label": label, "polygon": [[5 * i, 2 * i], [5 * i + 9, 2 * i], [5 * i + 9, 2 * i + 8], [5 * i, 2 * i + 8]]}
        for i, label in enumerate(["road", *things])
    ]
    annotation = Annotation()
    annotation.fromJsonText(json.dumps({"imgHeight": 32, "imgWidth": 64, "objects": objects}))
    official = np.asarray(createInstanceImage(annotation, "ids"))
    assert {26000, 26001, 26, 24000, 29000, 30, 33000} <= set(np.unique(official))
    write_raster(tmp_path / "raster.png", official)
    found = read_instance_ids(tmp_path / "raster.png")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, official)


def test_read_instance_ids_takes_8_bits_when_there_are_no_instances(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 6), 23, dtype=np.uint8)).save(tmp_path / "raster.png")
    assert read_instance_ids(tmp_path / "raster.png").tolist() == [[23] * 6] * 4


@pytest.mark.parametrize("value", [0, 33, 24000, 24999, 29000, 30999, 33999])
def test_read_instance_ids_takes_an_id_when_it_is_official(tmp_path: Path, value: int) -> None:
    write_raster(tmp_path / "raster.png", np.full((2, 2), value, dtype=np.uint16))
    assert read_instance_ids(tmp_path / "raster.png").max() == value


@pytest.mark.parametrize("value", [34, 255, 999, 7000, 23000, 34000, 65535])
def test_read_instance_ids_names_file_and_id_when_the_id_is_impossible(tmp_path: Path, value: int) -> None:
    raster = np.full((2, 2), 7, dtype=np.uint16)
    raster[1, 1] = value
    write_raster(tmp_path / "raster.png", raster)
    with pytest.raises(DataError, match=rf"raster.png holds {value}\."):
        read_instance_ids(tmp_path / "raster.png")


def test_readers_name_the_file_when_it_is_cut_anywhere(tmp_path: Path) -> None:
    write_frame(tmp_path, "train", "ulm", 0)
    (frame,) = index_split(tmp_path, "train")
    assert frame.instance_ids is not None
    for path, read in ((frame.image, read_image), (frame.instance_ids, read_instance_ids)):
        content = path.read_bytes()
        # the last 20 bytes are checksums and the end mark: no pixel is lost with them
        for length in range(0, len(content) - 20, max(1, len(content) // 60)):
            path.write_bytes(content[:length])
            with pytest.raises(DataError, match=f"{path} must be a whole PNG"):
                read(path)


def test_read_image_gives_rgb_when_the_file_has_another_mode(tmp_path: Path) -> None:
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png"), np.stack([gray] * 3, axis=-1))
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="mode must be RGB"):
        read_image(tmp_path / "deep.png")


def test_scan_frames_counts_like_a_slow_loop_when_rasters_are_random(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 5, "jena": 3}}, size=(40, 80))
    frames = index_split(root, "train")
    progress: list[tuple[int, int]] = []
    facts = scan_frames(frames, tmp_path / "memo.json", lambda done, total: progress.append((done, total)))
    assert progress == [(done, 8) for done in range(1, 9)]
    for frame, fact in zip(frames, facts, strict=True):
        assert frame.instance_ids is not None
        values = set(np.asarray(Image.open(frame.instance_ids)).ravel().tolist())
        assert (fact.name, fact.split, fact.city, fact.size) == (frame.name, "train", frame.city, (40, 80))
        assert fact.class_counts == tuple(len([v for v in values if v // 1000 == label]) for label in CLASS_OF_ID)
        assert fact.num_crowds == len(values & set(CLASS_OF_ID))
        ids = {value // 1000 if value >= 1000 else value for value in values}
        assert fact.train_ids == tuple(label.train_id for label in EVALUATED_LABELS if label.id in ids)
        assert fact.image_bytes == frame.image.stat().st_size
    assert sum(map(sum, (fact.class_counts for fact in facts))) > 0
    assert sum(fact.num_crowds for fact in facts) > 0


def test_scan_frames_knows_no_classes_when_a_frame_has_no_label(tmp_path: Path) -> None:
    write_frame(tmp_path, "test", "berlin", 0, labelled=False)
    (fact,) = scan_frames(index_split(tmp_path, "test"), tmp_path / "memo.json")
    assert (fact.class_counts, fact.num_crowds, fact.label_sha256, fact.train_ids) == ((0,) * 8, 0, None, ())


def test_scan_frames_looks_only_at_changed_files_when_it_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 4}})
    frames = index_split(root, "train")
    memo = tmp_path / "store" / "memo.json"
    before = scan_frames(frames, memo)
    looked: list[Path] = []
    real = cityscapes.list_ids
    monkeypatch.setattr(cityscapes, "list_ids", lambda raster, path: looked.append(path) or real(raster, path))
    assert scan_frames(frames, memo) == before
    assert looked == []
    changed = frames[2].instance_ids
    assert changed is not None
    write_raster(changed, paint_raster((24, 48), np.random.default_rng(99), 9))
    after = scan_frames(frames, memo)
    assert looked == [changed]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, True]


def test_scan_frames_looks_again_when_a_label_changed_but_not_its_size(tmp_path: Path) -> None:
    write_frame(tmp_path, "train", "ulm", 0)
    (frame,) = index_split(tmp_path, "train")
    assert frame.instance_ids is not None
    counts = []
    for time, value in enumerate((24000, 26000), start=10**9):
        Image.fromarray(np.full((24, 48), value, dtype=np.uint16)).save(frame.instance_ids, compress_level=0)
        os.utime(frame.instance_ids, (time, time))
        counts.append(
            (frame.instance_ids.stat().st_size, *scan_frames([frame], tmp_path / "memo.json")[0].class_counts)
        )
    assert counts[0][0] == counts[1][0]
    assert [row[1:4] for row in counts] == [(1, 0, 0), (0, 0, 1)]


def test_scan_frames_remembers_the_frames_before_when_one_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 3}})
    frames = index_split(root, "train")
    assert frames[2].instance_ids is not None
    frames[2].instance_ids.write_bytes(frames[2].instance_ids.read_bytes()[:80])
    with pytest.raises(DataError, match=r"ulm_000002_000019_gtFine_instanceIds.png must be a whole PNG"):
        scan_frames(frames, tmp_path / "memo.json", workers=1)
    monkeypatch.setattr(cityscapes, "list_ids", lambda raster, path: pytest.fail(f"{path} was read again"))
    assert len(scan_frames(frames[:2], tmp_path / "memo.json")) == 2


def test_scan_frames_names_both_files_when_image_and_label_differ_in_size(tmp_path: Path) -> None:
    write_frame(tmp_path, "train", "ulm", 0, size=(24, 48), raster=np.full((48, 24), 7, dtype=np.uint16))
    with pytest.raises(DataError, match=r"ulm_000000_000019_leftImg8bit.png has 24 x 48 and .*Ids.png has 48 x 24"):
        scan_frames(index_split(tmp_path, "train"), tmp_path / "memo.json")


def test_scan_frames_names_the_image_when_it_is_truncated(tmp_path: Path) -> None:
    write_frame(tmp_path, "train", "ulm", 0)
    frames = index_split(tmp_path, "train")
    frames[0].image.write_bytes(frames[0].image.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"leftImg8bit.png must be a whole PNG"):
        scan_frames(frames, tmp_path / "memo.json")


@pytest.mark.parametrize("what", ["image", "instance_ids"])
def test_scan_frames_names_a_file_that_is_gone(tmp_path: Path, what: str) -> None:
    write_frame(tmp_path, "train", "ulm", 0)
    frames = index_split(tmp_path, "train")
    path = getattr(frames[0], what)
    path.unlink()
    path.symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=rf"{path.name} must be a whole PNG, but cannot be read"):
        scan_frames(frames, tmp_path / "memo.json")


def test_scan_frames_ends_with_a_whole_memo_when_processes_scan_at_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 12}})
    code = (
        "import sys, pathlib; from cityopt.data.cityscapes import *; root, memo = sys.argv[1:]\n"
        "frames = index_split(root, 'train')\n"
        "for frame in frames: scan_frames([frame], pathlib.Path(memo))\n"
        "print(fingerprint(scan_frames(frames, pathlib.Path(memo))))"
    )
    memo = tmp_path / "memo.json"
    command = [sys.executable, "-c", code, str(root), str(memo)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert printed == {fingerprint(scan_frames(index_split(root, "train"), tmp_path / "other.json")) + "\n"}
    assert len(json.loads(memo.read_text())["entries"]) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "memo.json", "other.json"]


def test_scan_frames_says_where_when_the_memo_cannot_be_written(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 1}})
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match=r"memo.json is not"):
        scan_frames(index_split(root, "train"), tmp_path / "file" / "memo.json")


def test_fingerprint_stays_when_the_tree_moves_and_the_order_changes(tmp_path: Path) -> None:
    first = write_tree(tmp_path / "first", {"train": {"ulm": 3}})
    second = tmp_path / "second"
    shutil.copytree(first, second)
    memo = tmp_path / "memo.json"
    here, there = (scan_frames(index_split(root, "train"), memo) for root in (first, second))
    assert fingerprint(here) == fingerprint(reversed(there))


def test_fingerprint_changes_when_a_name_an_image_or_a_label_changes(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", {"train": {"ulm": 3}})
    memo = tmp_path / "memo.json"
    frames = index_split(root, "train")
    facts = scan_frames(frames, memo)
    seen = {fingerprint(facts), fingerprint(facts[:2])}
    assert frames[0].instance_ids is not None
    write_raster(frames[0].instance_ids, np.full((24, 48), 11, dtype=np.uint16))
    seen.add(fingerprint(scan_frames(frames, memo)))
    Image.new("RGB", (48, 24)).save(frames[1].image)
    seen.add(fingerprint(scan_frames(frames, memo)))
    assert len(seen) == 4
