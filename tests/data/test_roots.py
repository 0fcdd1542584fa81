import subprocess
import sys
from pathlib import Path

import pytest

from cityopt.config import SyntheticConfig
from cityopt.data.roots import choose_root, make_scenes
from cityopt.errors import DataError

SMALL = SyntheticConfig(num_images=4, size=(64, 128), seed=1)


@pytest.mark.parametrize(
    ("option", "configured", "variable", "meant"),
    [
        ("/option", "/study", "/environment", "/option"),
        (None, "/study", "/environment", "/study"),
        (None, None, "/environment", "/environment"),
        ("synthetic", "/study", "/environment", "synthetic"),
        (None, "synthetic", "/environment", "synthetic"),
    ],
)
def test_root_is_the_options_then_the_studys_then_the_environments(monkeypatch, option, configured, variable, meant):
    monkeypatch.setenv("CITYSCAPES_DATASET", variable)
    assert choose_root(option, configured) == meant


def test_root_is_absolute_when_given_relative(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert choose_root("data", None) == str(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert choose_root("~/data", None) == str(tmp_path / "data")


def test_missing_root_is_refused_with_all_ways_to_give_one(monkeypatch):
    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)
    with pytest.raises(DataError, match=r"--data.*data\.root.*CITYSCAPES_DATASET.*--data synthetic"):
        choose_root(None, None)


def test_what_a_killed_process_left_is_removed_when_scenes_are_made(tmp_path):
    root = make_scenes(SMALL, tmp_path)
    left, other = tmp_path / f".{root.name}-left", tmp_path / ".synthetic-other"
    for folder in (left, other):
        folder.mkdir()
        (folder / "half.png").write_bytes(b"half")
    assert make_scenes(SMALL, tmp_path) == root and not left.exists() and other.exists()


_MAKE = """
import sys
from pathlib import Path
from cityopt.config import SyntheticConfig
from cityopt.data.roots import make_scenes
print(make_scenes(SyntheticConfig(num_images=4, size=(64, 128), seed=1), Path(sys.argv[1])))
"""


def test_scenes_are_made_once_when_two_processes_want_them(tmp_path):
    command = [sys.executable, "-c", _MAKE, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    roots = [process.communicate(timeout=240)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and roots[0] == roots[1]
    times = {path: path.stat().st_mtime_ns for path in Path(roots[0]).rglob("*.png")}
    assert len(list((Path(roots[0]) / "leftImg8bit").rglob("*.png"))) == 4
    assert make_scenes(SMALL, tmp_path) == Path(roots[0])
    assert times == {path: path.stat().st_mtime_ns for path in Path(roots[0]).rglob("*.png")}
    other = make_scenes(SMALL.model_copy(update={"seed": 2}), tmp_path)
    assert other != Path(roots[0])


def test_scenes_with_coarse_labels_are_another_tree_with_the_same_fine_ones(tmp_path):
    plain, coarse = (make_scenes(SMALL.model_copy(update={"coarse": some}), tmp_path) for some in (False, True))
    assert plain != coarse and not (plain / "gtCoarse").exists()
    assert list(coarse.glob("gtCoarse/train_extra/*/*_instanceIds.png"))
    for path in plain.glob("*/*/*/*.png"):
        assert (coarse / path.relative_to(plain)).read_bytes() == path.read_bytes()
