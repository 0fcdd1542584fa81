"""The report's files: all there, readable by other tools, and never among somebody else's."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_statistics import make_statistics

from cityopt.config import DEFAULT_ANCHORS
from cityopt.data.anchors import NamedAnchors
from cityopt.errors import ConfigError
from cityopt.report.data_report import (
    build_data_report,
    build_tables,
    check_report_folder,
    describe_data_report,
    write_data_report,
)

ANCHORS = NamedAnchors(DEFAULT_ANCHORS, "torchvision's default anchors", None)


@pytest.fixture(scope="module")
def files():
    return build_data_report(make_statistics(), ANCHORS)


def read_csv(content):
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_summary_lists_the_files_and_is_the_last(files):
    summary = json.loads(files["stats.json"])
    assert list(files)[-1] == "stats.json" and set(summary["files"]) == set(files)
    assert summary == json.loads(json.dumps(describe_data_report(make_statistics(), ANCHORS)))
    assert summary["anchors"]["sizes"][0] == [32.0] * 3
    linked = re.findall(r"\]\(([^)]+)\)", files["README.md"].decode())
    assert set(linked) == set(files) - {"README.md"} and "test (1 images)" in files["README.md"].decode()


def test_tables_agree_with_each_other(files):
    tables = {name: read_csv(content) for name, content in files.items() if name.endswith(".csv")}
    total = len(tables.pop("objects.csv"))
    for name in ("classes.csv", "areas.csv", "ratios.csv", "cities.csv"):
        assert sum(int(row["objects"]) for row in tables[name]) == total > 0
    per_image = tables["objects_per_image.csv"]
    assert sum(int(row["objects"]) * int(row["images"]) for row in per_image) == total
    assert sum(int(row["pixels"]) for row in tables["labels.csv"]) == 7 * 60 * 90


def test_tables_keep_their_headings_when_there_is_no_object():
    empty, full = (build_tables(make_statistics(num_objects=count)) for count in (0, 1))
    for name in full:
        assert empty[name].splitlines()[0] == full[name].splitlines()[0], name
    assert not read_csv(empty["objects.csv"])


def test_folder_appears_whole_and_is_replaced_by_the_next_report(tmp_path, files):
    out = tmp_path / "deep" / "stats"
    write_data_report(out, files)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == files
    (out / "notes.txt").write_text("mine")
    other = {name: content + b"\n" for name, content in files.items()}
    write_data_report(out, other)
    assert (out / "notes.txt").read_text() == "mine"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.name != "notes.txt"} == other
    assert [path.name for path in out.parent.iterdir()] == ["stats"]


def test_empty_folder_is_taken(tmp_path, files):
    (tmp_path / "stats").mkdir()
    write_data_report(tmp_path / "stats", files)
    assert (tmp_path / "stats" / "stats.json").is_file()


def test_folder_behind_a_link_is_filled(tmp_path, files):
    (tmp_path / "real").mkdir()
    (tmp_path / "stats").symlink_to("real")
    write_data_report(tmp_path / "stats", files)
    assert {path.name: path.read_bytes() for path in (tmp_path / "real").iterdir()} == files


def test_folder_that_cannot_be_looked_into_is_refused(tmp_path, monkeypatch):
    def forbid(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbid)
    with pytest.raises(ConfigError, match=r"must be writable.*Permission denied"):
        check_report_folder(tmp_path / "stats")


@pytest.mark.parametrize(
    ("name", "content"), [("README.md", "# Mine"), ("stats.json", "{"), ("stats.json", '{"kind": "else"}')]
)
def test_folder_of_other_files_is_refused_and_left_alone(tmp_path, files, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match="holds other files"):
        write_data_report(tmp_path, files)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_file_in_place_of_the_folder_is_refused(tmp_path, files):
    (tmp_path / "stats").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        write_data_report(tmp_path / "stats", files)


@pytest.mark.slow
def test_matplotlib_waits_until_a_picture_is_drawn_and_pyplot_for_ever():
    code = (
        "import sys\n"
        "import cityopt.report.data_report, cityopt.search.sweep\n"
        "print('matplotlib' in sys.modules)\n"
        "import cityopt.report.data_figures, cityopt.report.object_figures\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
