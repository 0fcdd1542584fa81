"""What many tests start from: a study's YAML, and a store of `tests/studies/tiny.yaml` made once."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Tests run side by side: torch's threads, one per core in each of them, would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Kernels for GPUs run in triton's interpreter where there is none; triton wants to know before it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
STORIES = ("test_sweeps.py", "test_promotions.py", "test_mlflow_in_browser.py")
TINY = Path(__file__).parent / "studies" / "tiny.yaml"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each file's tests to one of pytest's workers, and the files that look at the same stories to the same."""
    from xdist.scheduler import LoadFileScheduling

    class StoryScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path: str = super()._split_scope(nodeid)
            return "stories" if Path(path).name in STORIES else path

    return StoryScheduling(config, log)


@pytest.fixture(scope="session")
def template_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, decoded images, and both databases with tables and nothing in them. Copy it, do not write to it."""
    from cityopt.search.observer import Observer
    from cityopt.search.preparation import prepare_study
    from cityopt.search.storage import open_storage
    from cityopt.study_file import load_study
    from cityopt.tracking.mlflow_store import MlflowStore

    store = tmp_path_factory.mktemp("template") / "store"
    store.mkdir()
    prepare_study(load_study(str(TINY)), store, data=None, observer=Observer())
    open_storage(store).engine.dispose()
    MlflowStore(store).open_experiment("another study")
    return store


@pytest.fixture
def tiny_store(template_store: Path, tmp_path: Path) -> Path:
    """A store to write to."""
    return Path(shutil.copytree(template_store, tmp_path / "store"))


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., str]:
    """Write a study's YAML, from its text or its tree, and return its path."""

    def write(content: Any, name: str = "street.yaml") -> str:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; return exit code, stdout and stderr."""
    from cityopt import cli

    monkeypatch.delenv("CITYSCAPES_DATASET", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cityopt", *map(str, arguments)])
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """A real Chromium, that of the system."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_OPTIONS), timeout=120_000)
        yield running
        running.close()
