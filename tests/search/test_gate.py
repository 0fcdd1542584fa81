"""The gate before the champion: who passes a paired test, what is named, what stops it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cityopt.config import ModelConfig
from cityopt.data.synthetic import write_synthetic
from cityopt.errors import DataError, StoreError, TrainingError, WeightsError
from cityopt.evaluation.image_scores import SemanticScores
from cityopt.evaluation.paired import MIN_IMAGES, PairedDifference
from cityopt.search import gate, registration
from cityopt.search.gate import Contest, describe_origins, hold_contest
from cityopt.search.observer import Observer
from cityopt.search.registration import describe_loss, judge_challenger, register_result
from cityopt.tracking.mlflow_registry import ModelVersion
from cityopt.training.dataset import survey_dataset

TAGS = {
    "cityopt.metric": "val/loss/total",
    "cityopt.value": 0.3,
    "cityopt.fingerprint": "f",
    "cityopt.split": "val",
    "cityopt.size": "64x128",
    "cityopt.run_id": "new",
}
OLD_TAGS = {key: str(value) for key, value in TAGS.items()} | {"cityopt.value": "0.4"}
CHAMPION = ModelVersion("cityopt-small", 4, "old", OLD_TAGS, (), "")


class Losses(SemanticScores):
    """Images of which only the loss is known."""

    def __init__(self, losses):
        super().__init__()
        self.names = [f"image-{number}" for number in range(len(losses))]
        self._losses = [{"total": float(loss)} for loss in losses]


@pytest.fixture
def contest(monkeypatch):
    """Return a function that holds a contest between two models with these losses."""

    def hold(old, new, metric="val/loss/total"):
        found = {"old.pt": Losses(old), "new.pt": Losses(new)}
        monkeypatch.setattr(gate, "resolve_checkpoint", lambda _, reference: Path("old.pt"))
        monkeypatch.setattr("cityopt.training.scoring.judge_images", lambda path, *_, **__: found[path.name])
        run = SimpleNamespace(validation_set=None)
        return hold_contest(SimpleNamespace(store=Path()), run, Path("new.pt"), CHAMPION, metric, Observer())

    return hold


def draw(lead, count=60, noise=0.1):
    random = np.random.default_rng(0)
    old = random.gamma(2.0, 0.2, count)
    return old, old - lead + noise * random.standard_normal(count)


def judge(hold, direction="minimize"):
    return judge_challenger(CHAMPION, TAGS, direction, lambda: hold)


def test_clear_lead_passes_and_its_numbers_stand_in_the_verdict(contest):
    old, new = draw(0.1)
    alias, reason = judge(contest(old, new))
    assert alias == "champion" and "it beats the champion (version 4)" in reason
    assert f"val/loss/total {new.mean():.4f} against {old.mean():.4f}" in reason
    assert "paired bootstrap over 60 images" in reason


@pytest.mark.parametrize("lead", [0.0, -0.1, 0.005])
def test_twin_worse_model_and_lucky_lead_do_not_pass(contest, lead):
    old, new = draw(lead, noise=0.0 if lead == 0 else 0.1)
    alias, reason = judge(contest(old, new))
    assert alias == "challenger" and "may be chance" in reason


def test_lead_on_few_images_proves_nothing(contest):
    few = MIN_IMAGES - 1
    found = contest(np.full(few, 0.4), np.full(few, 0.3))
    assert found.paired.difference < 0 and not found.is_won("minimize")  # a difference below zero is a lower loss
    assert judge(found)[0] == "challenger" and "too few images" in str(found)
    assert "nan" not in str(found)
    assert contest(np.full(MIN_IMAGES, 0.4), np.full(MIN_IMAGES, 0.3)).is_won("minimize")


def test_direction_says_which_side_of_zero_wins():
    found = Contest("m", 0.2, 0.3, PairedDifference(0.1, 0.05, 0.15, 0.01, 0.01, 50))
    assert found.is_won("maximize") and not found.is_won("minimize")


def test_no_contest_is_held_for_a_value_that_is_no_better_or_on_other_ground():
    def never():
        raise AssertionError("nothing to test")

    for tags in ({**TAGS, "cityopt.value": 0.5}, {**TAGS, "cityopt.fingerprint": "g"}):
        assert judge_challenger(CHAMPION, tags, "minimize", never)[0] == "challenger"


@pytest.mark.parametrize(
    "error", [StoreError("it is gone"), WeightsError("it is gone"), TrainingError("oom", "it is gone")]
)
def test_champion_that_cannot_be_judged_stays_unless_forced_and_the_verdict_says_why(
    contest, monkeypatch, make_run, tmp_path, error
):
    def fail(*_):
        raise error

    alias, reason = judge_challenger(CHAMPION, TAGS, "minimize", fail)
    assert alias == "challenger" and "no contest" in reason and "it is gone" in reason
    run = make_run()
    meet_champion(monkeypatch, run)
    registry = Registry(monkeypatch, None)
    monkeypatch.setattr(registration, "hold_contest", fail)
    assert "@challenger" in register(run, tmp_path).model
    assert "@champion" in register(run, tmp_path, force=True).model
    assert "forced, where the gate said challenger: no contest" in registry.given["description"]


def test_changed_dataset_stops_the_contest_and_untested_metrics_are_named(contest):
    def change():
        raise DataError("it changed")

    with pytest.raises(DataError):
        judge_challenger(CHAMPION, TAGS, "minimize", change)
    with pytest.raises(StoreError, match="no paired test is known for val/semantic/mean"):
        contest([0.1] * 8, [0.1] * 8, metric="val/semantic/mean")


def test_uncommitted_code_and_another_environment_are_named():
    mine = {"environment.git_commit": "a" * 40, "environment.git_dirty": "true", "environment.torch": "2.15.0"}
    theirs = {"environment.git_dirty": "false", "environment.torch": "2.14.0", "environment.python": "3.11.2"}
    found = describe_origins(mine, theirs)
    assert found == [
        "this model was trained from uncommitted code (on aaaaaaaa; see git.diff)",
        "the champion was trained with another torch: 2.14.0, not 2.15.0",
    ]
    assert describe_origins({}, {}) == describe_origins(theirs, theirs) == []


class Registry:
    """Takes what is registered."""

    def __init__(self, monkeypatch, contest):
        self.said, self.alias = [], None
        monkeypatch.setattr(registration, "find_champion", lambda *_: CHAMPION)
        monkeypatch.setattr(registration, "hold_contest", lambda *_: contest)
        monkeypatch.setattr(registration, "register_model", self._register)
        monkeypatch.setattr(registration, "set_alias", self._set_alias)
        monkeypatch.setattr("cityopt.training.checkpoint.load_model", lambda _: (None, None))

    def _register(self, *_, **given):
        self.given = given
        return ModelVersion("cityopt-small", 5, "new", {}, (), "")

    def _set_alias(self, *given):
        self.alias = given[2]


@pytest.fixture
def make_run(tmp_path):
    write_synthetic(tmp_path / "data", num_images=6, size=(32, 64), seed=0)
    fingerprint = survey_dataset(tmp_path / "data", tmp_path / "cache").fingerprint

    def make(root="data"):
        data = SimpleNamespace(root=str(tmp_path / root), size=(64, 128))
        val = SimpleNamespace(describe=lambda: "val")
        cache = str(tmp_path / "cache")
        model, ground = ModelConfig(family="semantic_fpn"), {"fingerprint": fingerprint, "validation_set": val}
        return SimpleNamespace(study="small", data=data, cache=cache, model=model, **ground)

    return make


def meet_champion(monkeypatch, run):
    """Let the champion have been judged on the ground of a run."""
    monkeypatch.setitem(CHAMPION.tags, "cityopt.fingerprint", run.fingerprint)
    monkeypatch.setitem(CHAMPION.tags, "cityopt.loss", describe_loss(run.model))


def register(run, tmp_path, **options):
    tags = {"metric": "val/loss/total", "direction": "minimize", "value": 0.3, "origin": "Trained.", "tags": {}}
    mlflow = SimpleNamespace(store=tmp_path, read_params=lambda _: {})
    return register_result(mlflow, run, "new", checkpoint=tmp_path / "x.pt", observer=Observer(), **tags, **options)


def test_force_overrides_the_gate_and_stays_on_record(monkeypatch, make_run, tmp_path):
    lost = Contest("val/loss/total", 0.4, 0.39, PairedDifference(-0.01, -0.1, 0.1, 0.5, 0.5, 50))
    run = make_run()
    meet_champion(monkeypatch, run)
    registry = Registry(monkeypatch, lost)
    assert "@challenger" in register(run, tmp_path).model and registry.alias == "challenger"
    assert "cityopt.forced" not in registry.given["tags"] and "may be chance" in registry.given["description"]
    assert "@champion" in register(run, tmp_path, force=True).model and registry.alias == "champion"
    assert registry.given["tags"]["cityopt.forced"] is True
    assert "forced, where the gate said challenger: its lead" in registry.given["description"]


def test_verdict_of_a_champion_stays_when_its_own_registration_is_repeated(monkeypatch, make_run, tmp_path):
    registry = Registry(monkeypatch, None)
    own = ModelVersion("cityopt-small", 5, "new", {}, ("champion",), "Trained. champion: forced, where the gate said …")
    monkeypatch.setattr(registration, "find_champion", lambda *_: own)
    found = register(make_run(), tmp_path)
    assert (found.model, found.version) == ("models:/cityopt-small@champion", 5)
    assert not hasattr(registry, "given") and registry.alias is None


def test_missing_or_changed_dataset_stops_the_gate(monkeypatch, make_run, tmp_path):
    registry = Registry(monkeypatch, None)
    next((tmp_path / "data").glob("gtFine/val/*/*instanceIds.png")).unlink()
    for root in ("data", "nowhere"):
        with pytest.raises(DataError):
            register(make_run(root), tmp_path)
    shutil.rmtree(tmp_path / "data")
    write_synthetic(tmp_path / "data", num_images=6, size=(32, 64), seed=1)
    with pytest.raises(DataError, match="must be the one the study began with"):
        register(make_run(), tmp_path)
    assert registry.alias is None
