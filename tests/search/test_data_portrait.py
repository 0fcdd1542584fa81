"""The look at the data beside a sweep: once, on the parent run, and never in a trial's way."""

import threading

import pytest

from cityopt.config import DEFAULT_ANCHORS, SyntheticConfig
from cityopt.data.anchors import NamedAnchors
from cityopt.errors import CityoptError
from cityopt.search.data_portrait import FOLDER, LAST_FILE, drawing_data
from cityopt.search.observer import Observer
from cityopt.search.preparation import make_scenes
from cityopt.tracking.run_folder import RunFolder

ANCHORS = NamedAnchors(DEFAULT_ANCHORS, "anchors", (64, 128))
PATIENCE_S = 60


class Listener(Observer):
    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_scenes(SyntheticConfig(num_images=4, size=(64, 128), seed=1), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def parent(tmp_path):
    return RunFolder(tmp_path / "run", "token")


def describe(statistics, anchors):
    assert anchors is ANCHORS
    return {"count.txt": str(len(statistics.frames)).encode(), LAST_FILE: b"{}"}


def read_folder(parent):
    return {path.name: path.read_bytes() for path in (parent.folder / "artifacts" / FOLDER).glob("*")}


def test_data_is_drawn_once_for_a_parent_run(parent, root):
    calls = []

    def count(*arguments):
        calls.append(threading.current_thread())
        return describe(*arguments)

    observer = Listener()
    for _ in range(2):
        with drawing_data(parent, root, ANCHORS, count, observer):
            pass
    assert read_folder(parent) == {"count.txt": b"3", LAST_FILE: b"{}"}
    assert len(calls) == 1 and calls[0] is not threading.main_thread() and observer.said == []


def test_nothing_is_drawn_when_nobody_describes(parent, root):
    with drawing_data(parent, root, ANCHORS, None, Listener()):
        pass
    assert read_folder(parent) == {}


@pytest.mark.parametrize("error", [CityoptError("it must hold"), OSError("disk full")])
def test_foreseeable_failure_is_said_and_the_block_goes_on(parent, root, error):
    def fail(*_):
        raise error

    observer = Listener()
    with drawing_data(parent, root, ANCHORS, fail, observer):
        reached = True
    assert reached and len(observer.said) == 1 and str(error) in observer.said[0]


def test_broken_label_is_named_and_the_next_start_tries_again(parent, tmp_path):
    scenes = make_scenes(SyntheticConfig(num_images=3, size=(64, 128), seed=2), tmp_path)
    label = next(scenes.glob("gtFine/train/*/*_instanceIds.png"))
    content = label.read_bytes()
    label.write_bytes(content[:40])
    observer = Listener()
    with drawing_data(parent, scenes, ANCHORS, describe, observer):
        pass
    assert str(label) in observer.said[0] and read_folder(parent) == {}
    label.write_bytes(content)
    with drawing_data(parent, scenes, ANCHORS, describe, observer):
        pass
    assert LAST_FILE in read_folder(parent) and len(observer.said) == 1


@pytest.mark.parametrize("how", ["stopped", "interrupted"])
def test_stop_leaves_no_last_file_so_that_the_next_start_begins_anew(parent, root, how):
    asked = threading.Event()

    def wait(*arguments):
        assert asked.wait(PATIENCE_S)
        return describe(*arguments)

    def run():
        with drawing_data(parent, root, ANCHORS, wait, Listener()) as stop:
            if how == "stopped":
                stop()
            threading.Timer(0.1, asked.set).start()
            if how == "interrupted":
                raise KeyboardInterrupt

    if how == "stopped":
        run()
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
    assert LAST_FILE not in read_folder(parent)
    asked.set()
    with drawing_data(parent, root, ANCHORS, wait, Listener()):
        pass
    assert LAST_FILE in read_folder(parent)
