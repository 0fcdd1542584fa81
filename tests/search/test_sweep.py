"""What a sweep says and refuses before its first trial."""

from types import SimpleNamespace

import optuna
import pytest
from scripted_executor import ScriptedExecutor
from small_studies import DEPTH, FACTS, FLAT, make_config
from test_ledger import refuse

from cityopt.errors import ConfigError, StoppedError, StoreError, StudyError
from cityopt.search import sweep
from cityopt.search.leased_owner import LeasedOwner
from cityopt.search.observer import Observer
from cityopt.search.storage import open_storage
from cityopt.search.study import open_study
from cityopt.search.sweep import run_sweep, warn_of_crowding, warn_of_frozen_noise, warn_of_ignored
from cityopt.services import parse_services, remember_services
from cityopt.settings import replace_settings

RATE_ALONE = {key: FLAT[key] for key in FLAT if key != DEPTH}


@pytest.fixture
def said():
    return []


@pytest.fixture
def observer(said):
    observer = Observer()
    observer.say = said.append
    return observer


@pytest.mark.parametrize(
    ("model", "space", "deepest"),
    [
        ({"weights": "none", "freeze_depth": 3}, RATE_ALONE, 3),
        ({"weights": "none", "freeze_depth": 0}, FLAT, 5),
        ({"weights": "none", "freeze_depth": 0}, RATE_ALONE, None),
        ({"weights": "imagenet", "freeze_depth": 3}, FLAT, None),
    ],
)
def test_frozen_layers_are_warned_of_only_when_they_may_be_random(model, space, deepest, observer, said):
    warn_of_frozen_noise(make_config(model=model, space=space), observer)
    if deepest is None:
        assert said == []
    else:
        (line,) = said
        assert line.startswith(f"Warning: up to {deepest} backbone stages are frozen at random values")
        assert "model.freeze_depth=0" in line


@pytest.mark.parametrize(
    ("model", "space", "ignored"),
    [
        ({"family": "unet", "depth": 3, "norm": "group", "class_weights": "balanced"}, {}, []),
        ({"family": "unet", "loss": "dice", "class_weights": "balanced"}, {}, ["class_weights"]),
        ({"family": "unet", "loss": "cross_entropy+dice", "focal_gamma": 1.0}, {}, ["focal_gamma"]),
        ({"family": "unet_resnet34", "norm": "group", "depth": 3}, {}, ["depth", "norm"]),
        ({"loss": "dice", "class_weights": "balanced"}, {}, ["class_weights", "loss"]),
        ({"family": "unet_resnet34"}, {"model.depth": {"type": "int", "low": 1, "high": 3}}, ["depth"]),
        (
            {"family": "unet", "focal_gamma": 1.0},
            {"model.loss": {"type": "categorical", "choices": ["dice", "focal"]}},
            [],
        ),
    ],
)
def test_settings_that_change_nothing_are_warned_of(model, space, ignored, observer, said):
    plain = {"weights": "none", "freeze_depth": 0}
    metric = "val/semantic/miou" if "family" in model else "val/coco/segm/ap"
    config = make_config(model=plain | model, space=RATE_ALONE | space, metric=metric)
    warn_of_ignored(config, observer)
    assert [line.split("`")[1].removeprefix("model.") for line in said] == ignored


def test_loss_of_an_instance_study_is_heeded_when_a_stage_is_semantic(observer, said):
    stages = [{"name": "pretrain", "model": "semantic_fpn"}, {"name": "tune", "start_from": "pretrain"}]
    config = make_config(model={"loss": "focal", "focal_gamma": 1.0, "class_weights": "balanced"}, space=RATE_ALONE)
    warn_of_ignored(replace_settings(config, {"promotion.stages": stages}), observer)
    assert said == []
    warn_of_ignored(config, observer)
    assert len(said) == 3


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a sweep begins to cost anything."""

    def refuse(*_, **__):
        pytest.fail("work was begun")

    for name in ("open_executor", "prepare_study", "fetch_weights", "PatientStore"):
        monkeypatch.setattr(sweep, name, refuse)


def test_other_settings_are_refused_before_any_work_is_begun(tmp_path, observer, no_work):
    config = make_config()
    open_study(open_storage(tmp_path), config, FACTS)
    other = replace_settings(config, {"training.epochs": 7})
    with pytest.raises(StudyError, match=r"training.epochs: was 6, now 7"):
        run_sweep(other, store=tmp_path, data="synthetic", device="cpu", observer=observer)


def test_objective_is_refused_before_a_store_is_made(tmp_path, observer, no_work):
    with pytest.raises(ConfigError, match=r"`search.metric`.*'val/ap'.*val/coco/segm/ap"):
        run_sweep(
            make_config(metric="val/ap"), store=tmp_path / "store", data="synthetic", device="cpu", observer=observer
        )
    assert list(tmp_path.iterdir()) == []


def test_database_that_goes_away_is_explained_wherever_the_sweep_is(tmp_path, observer, monkeypatch):
    """Here where it takes its leases, before there is a coordinator to wait."""
    config = make_config()
    monkeypatch.setattr(sweep, "open_executor", lambda *_, **__: ScriptedExecutor(lambda *_: pytest.fail("no trial")))
    monkeypatch.setattr(sweep, "prepare_study", lambda *_, **__: SimpleNamespace(config=config))
    monkeypatch.setattr(sweep, "build_facts", lambda *_: FACTS)
    monkeypatch.setattr(LeasedOwner, "__enter__", lambda _: refuse())
    monkeypatch.setattr(sweep, "open_ownership", LeasedOwner)
    with pytest.raises(
        StoreError, match=r"does not answer: connection refused\. Nothing is lost.*same command goes on"
    ):
        run_sweep(config, store=tmp_path, data="synthetic", device="cpu", observer=observer)


def test_interrupt_says_how_to_go_on_when_it_comes_in_the_preparation(tmp_path, observer, monkeypatch):
    executor = ScriptedExecutor(lambda config, attempt: pytest.fail("a trial was begun"))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "open_executor", lambda *_, **__: executor)
    monkeypatch.setattr(sweep, "prepare_study", interrupt)
    with pytest.raises(StoppedError, match="same command goes on"):
        run_sweep(make_config(), store=tmp_path, data="synthetic", device="cpu", observer=observer)
    assert executor.is_closed and optuna.get_all_study_names(open_storage(tmp_path)) == []


@pytest.mark.parametrize(("workers", "threads", "is_warned"), [(1, 8, False), (2, 2, False), (2, 3, True)])
def test_crowding_is_warned_of_when_workers_have_more_threads_than_cores(
    workers, threads, is_warned, observer, said, monkeypatch
):
    monkeypatch.setattr(sweep, "count_cores", lambda: 4)
    warn_of_crowding(workers, threads, observer)
    assert [line.startswith("Warning: 2 workers with 3 threads each share 4 cores") for line in said] == (
        [True] if is_warned else []
    )


@pytest.mark.parametrize(
    ("storage", "advice"), [("postgresql://db/x", "Others that are at work"), (None, "The same command")]
)
def test_stopped_sweep_says_who_goes_on(storage, advice, tmp_path):
    remember_services(tmp_path, parse_services(storage, None))
    stopped = SimpleNamespace(agenda=SimpleNamespace(elsewhere=[1]), interrupt=SimpleNamespace(is_set=True))
    found = sweep._sum_up(tmp_path, make_config(), stopped)
    assert found.exit_code == 130 and advice in found.advice and not found.is_over


@pytest.mark.parametrize(("elsewhere", "told"), [([], "Next: "), ([1], "a trial is at work"), ([1, 2], "2 trials are")])
def test_sweep_is_over_when_nothing_is_at_work_elsewhere(elsewhere, told, tmp_path):
    ended = SimpleNamespace(
        agenda=SimpleNamespace(elsewhere=elsewhere),
        interrupt=SimpleNamespace(is_set=False),
        standing=SimpleNamespace(best_value=0.5),
    )
    found = sweep._sum_up(tmp_path, make_config(), ended)
    assert told in found.advice and found.is_over == (not elsewhere)
