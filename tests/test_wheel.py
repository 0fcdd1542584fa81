"""What `pip install` from a wheel gives: studies by name in any directory, with nothing of the checkout at hand."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_LOAD = """
import sys, cityopt
from cityopt.study_file import load_study
assert cityopt.__file__.startswith(sys.argv[1]), cityopt.__file__
print(load_study("demo").name, load_study("maskrcnn").search.trials)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds what a wheel would install."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_studies_are_found_by_name_when_installed_from_a_wheel(site, tmp_path):
    command = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(site), *sys.path]!r}\n{_LOAD}", str(site)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "demo 40\n"), done.stderr


def test_wheel_holds_the_package_its_studies_and_its_licence_alone(site):
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert {f"cityopt/sweeps/{path.name}" for path in (ROOT / "sweeps").glob("*.yaml")} <= names
    assert {path.split("/")[0] for path in names} == {"cityopt", "cityopt-0.1.0.dist-info"}
    assert any(name.endswith("/LICENSE") for name in names)
    own = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "cityopt").rglob("*")
        if path.suffix in (".py", ".css", ".js")
    }
    assert own <= names
