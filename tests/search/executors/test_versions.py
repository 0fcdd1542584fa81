import importlib.metadata
import shutil
from pathlib import Path

import cityopt
from cityopt.search.executors.versions import describe_versions, list_mismatches


def test_mismatch_names_what_differs_and_both_versions():
    here = describe_versions()
    assert here["torch"] == importlib.metadata.version("torch") and list_mismatches(here, here) == []
    there = {name: version for name, version in here.items() if name != "numpy"} | {"torch": "2.1"}
    assert list_mismatches(there, here) == [
        f"torch 2.1 where the coordinator has {here['torch']}",
        f"numpy of no version where the coordinator has {here['numpy']}",
    ]


def test_edited_source_is_another_cityopt(tmp_path, monkeypatch):
    copy = Path(shutil.copytree(Path(cityopt.__file__).parent, tmp_path / "cityopt"))
    here = describe_versions()
    monkeypatch.setattr(cityopt, "__file__", str(copy / "__init__.py"))
    assert describe_versions() == here
    (copy / "runtime.py").write_text((copy / "runtime.py").read_text() + "\n")
    assert [line.split()[0] for line in list_mismatches(describe_versions(), here)] == ["cityopt"]
