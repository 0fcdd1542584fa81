"""Weights of a study: paths and contents that it keeps, downloads before the first trial."""

import hashlib
from dataclasses import replace

import pytest
from small_studies import FACTS, FLAT, make_config

from cityopt.errors import StudyError, WeightsError
from cityopt.models import weights
from cityopt.search.observer import Observer
from cityopt.search.pretrained import fetch_weights, hash_files, settle_paths
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study, refuse_other_settings

CHOICES = {"model.weights": {"type": "categorical", "choices": ["none", "a.pt"]}}


def test_paths_are_absolute_wherever_a_study_names_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config(
        model={"weights": "b.pt", "freeze_depth": 2}, space={**FLAT, **CHOICES}, baselines=[{"model.weights": "a.pt"}]
    )
    settled = settle_paths(config)
    a, b = str(tmp_path / "a.pt"), str(tmp_path / "b.pt")
    assert settled.model.weights == b and settled.model.freeze_depth == 2
    assert settled.search.space["model.weights"].choices == ("none", a)
    assert settled.search.baselines == ({"model.weights": a},)
    assert settle_paths(settled) == settled
    named = make_config(model={"weights": "coco"})
    assert settle_paths(named) == named


def test_study_is_refused_when_a_file_of_weights_has_changed(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(b"first")
    config = settle_paths(make_config(model={"weights": str(path)}))
    hashes = hash_files(config)
    assert hashes == {str(path): hashlib.sha256(b"first").hexdigest()}
    (tmp_path / "store").mkdir()
    storage = open_storage(tmp_path / "store")
    facts = replace(FACTS, weights=hashes)
    open_study(storage, config, facts)
    refuse_other_settings(storage, config, hash_files(config))
    path.write_bytes(b"second")
    with pytest.raises(StudyError, match=rf"content of {path}: was {hashes[str(path)][:12]}, now "):
        refuse_other_settings(storage, config, hash_files(config))
    path.unlink()
    with pytest.raises(WeightsError, match=rf"`model.weights` must be .*{path} cannot be read"):
        hash_files(config)


class Watcher(Observer):
    def __init__(self):
        self.shown = []

    def show_preparation(self, what, done, total):
        self.shown.append((what, done, total))


@pytest.fixture
def fetched(monkeypatch):
    urls = []

    def fetch(url, on_count):
        urls.append(url.rsplit("/", 1)[-1].split("-")[0])
        on_count(3, 3)

    monkeypatch.setattr(weights, "fetch_file", fetch)
    return urls


def test_download_is_shown_when_weights_are_named(fetched):
    watcher = Watcher()
    fetch_weights(make_config(model={"weights": "imagenet"}), watcher)
    assert fetched == ["resnet50"]
    ((what, done, total),) = watcher.shown
    assert what.startswith("downloading resnet50-") and (done, total) == (3, 3)
    fetch_weights(make_config(model={"weights": "none"}), watcher)
    assert len(watcher.shown) == 1


def test_all_weights_that_trials_may_want_are_fetched_when_they_are_searched(fetched):
    space = {
        "model.weights": {"type": "categorical", "choices": ["none", "coco", "imagenet"]},
        "model.backbone": {"type": "categorical", "choices": ["resnet50", "resnet101"]},
    }
    fetch_weights(make_config(space=space), Observer())
    assert fetched == ["maskrcnn_resnet50_fpn_coco", "resnet50", "resnet101"]  # coco is there for one backbone alone


def test_weights_that_do_not_exist_are_refused_when_nothing_is_searched(fetched):
    with pytest.raises(WeightsError, match="coco"):
        fetch_weights(make_config(model={"weights": "coco", "backbone": "resnet101"}), Observer())
    assert fetched == []
