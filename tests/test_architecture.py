"""The floors and doors of the package: import-linter's contracts, and modules of a size that one can read."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "cityopt").rglob("*.py"))


def test_floors_and_doors_hold_when_imports_are_linted():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: " in done.stdout and " 0 broken" in done.stdout


def test_coordinator_leaves_torch_to_the_workers():
    """It would cost each start of a sweep seconds and memory."""
    code = (
        "import sys, cityopt.search.sweep\n"
        "print([name for name in ('torch', 'sklearn', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("module", ["optuna", "mlflow", "typer", "ray"])
def test_door_is_the_only_place_that_imports_a_library(module):
    """Read from the source, apart from import-linter: also imports inside functions count."""
    doors = {
        "optuna": ("cityopt/search/", "cityopt/report/"),
        "mlflow": ("cityopt/tracking/mlflow_",),
        "typer": ("cityopt/cli.py", "cityopt/commands/"),
        "ray": ("cityopt/search/executors/ray.py",),
    }
    for path in MODULES:
        name = path.relative_to(ROOT).as_posix()
        if module in _imports(path):
            assert name.startswith(doors[module]), f"{name} imports {module}"


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_modules_can_be_read_in_one_go():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    too_long = {name: lines for name, lines in lengths.items() if lines > 400}
    assert not too_long


def test_every_module_says_what_it_is_and_every_package_marker_is_empty():
    for path in MODULES:
        if path.name == "__init__.py" and path.parent.name != "cityopt":
            assert path.read_text() == "", f"{path} re-exports something"
        else:
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_no_module_is_a_drawer_of_odds_and_ends():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert not [path for path in MODULES if path.stem in drawers or path.parent.name in drawers]


def test_checks_have_no_exceptions_parked_in_the_project_file():
    text = (ROOT / "pyproject.toml").read_text()
    assert "ignore_imports" not in text and "ignore_errors" not in text
