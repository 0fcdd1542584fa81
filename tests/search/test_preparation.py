"""Which dataset is meant, and scenes that are made once however many want them."""

from pathlib import Path

from cityopt.search.observer import Observer
from cityopt.search.preparation import prepare_study
from cityopt.settings import replace_settings
from cityopt.study_file import load_study

TINY = Path(__file__).parents[1] / "studies" / "tiny.yaml"


def test_study_gets_disjoint_cities_and_repeats_itself_when_prepared(template_store):
    class Counting(Observer):
        def __init__(self):
            self.said = []

        def show_preparation(self, what, done, total):
            self.said.append((what, done, total))

    study = load_study(str(TINY))
    observer = Counting()
    first, again = (prepare_study(study, template_store, data=None, observer=observer) for _ in range(2))
    assert first == again and first.subset_hash == again.subset_hash
    cities = [{name.split("_")[0] for name in names} for names in (first.subset, first.holdout)]
    assert not cities[0] & cities[1] and all(cities)
    assert first.config.data.root == "synthetic" and first.root.is_dir()
    nested = prepare_study(
        replace_settings(study, {"data.num_images": 6}), template_store, data=None, observer=observer
    )
    assert set(nested.subset) < set(first.subset) and nested.holdout == first.holdout
    assert nested.subset_hash != first.subset_hash and nested.fingerprint == first.fingerprint


def test_anchors_are_not_fitted_again_when_the_study_has_them(template_store, monkeypatch):
    study = load_study(str(TINY))
    first = prepare_study(study, template_store, data=None, observer=Observer())
    monkeypatch.setattr("cityopt.search.preparation.choose_anchors", None)
    kept = prepare_study(study, template_store, data=None, observer=Observer(), fitted=first.anchor_report)
    assert kept == first


def test_images_of_a_semantic_study_are_left_alone_when_nobody_trains_on_them_yet(tiny_store):
    study = replace_settings(load_study(str(TINY.with_name("tiny_unet.yaml"))), {"data.size": [32, 64]})
    caches = [
        (prepare_study(study, tiny_store, data=None, observer=Observer(), decode=decode), count_caches(tiny_store))
        for decode in (False, True)
    ]
    assert caches[0][0] == caches[1][0]
    assert (caches[0][1], caches[1][1]) == (0, 2)


def count_caches(store):
    return len(list((store / "cache").glob("32x64-*/images.npy")))
