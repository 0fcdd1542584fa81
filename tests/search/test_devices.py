"""`--devices`: what it means, and what every training of a promotion gets of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_studies import FACTS, make_config

from cityopt import runtime
from cityopt.config import StudyConfig
from cityopt.errors import ConfigError
from cityopt.promotion import PromotionConfig
from cityopt.search import devices
from cityopt.search.devices import check_devices, count_devices, share_out
from cityopt.search.observer import Observer
from cityopt.search.plan import plan_promotion
from cityopt.search.single import strip_place
from cityopt.search.status import TrialStatus
from cityopt.settings import replace_section

WINNER = TrialStatus(3, "complete", None, 0.2, {}, "run-3", 1.0)


class Told(Observer):
    def __init__(self):
        super().__init__()
        self.said = []

    def say(self, text):
        self.said.append(text)


def make_plan(batch_size=8, stages=None, threads=4):
    config = make_config(training={"batch_size": batch_size})
    if stages:
        config = StudyConfig.model_validate({**config.model_dump(), "promotion": PromotionConfig(stages=stages)})
    facts = replace(FACTS, threads=threads)
    return plan_promotion(config, facts, WINNER, {}, root=Path("/data"), device="cpu", store=Path("/store"))


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that makes it look as if there were so many GPUs."""

    def set_number(number):
        monkeypatch.setattr(devices, "count_gpus", lambda: number)
        place = torch.device("cuda", 0) if number else torch.device("cpu")
        monkeypatch.setattr(devices, "resolve_device", lambda text: torch.device("cpu") if text == "cpu" else place)

    return set_number


@pytest.mark.parametrize(
    ("text", "device", "num_gpus", "expected"),
    [
        ("1", "auto", 8, 1),
        ("8", "auto", 8, 8),
        ("2", "cuda", 8, 2),
        ("2", "cpu", 8, 2),
        ("2", "auto", 0, 2),
        ("auto", "auto", 8, 8),
        ("auto", "auto", 0, 1),
        ("auto", "cpu", 8, 1),
        ("auto", "cuda:1", 8, 1),
    ],
)
def test_devices_are_gpus_or_else_processes(gpus, text, device, num_gpus, expected):
    gpus(num_gpus)
    assert count_devices(text, device) == expected


@pytest.mark.parametrize(
    ("text", "device", "message"),
    [
        ("0", "auto", "a number of at least 1, or auto, but got '0'"),
        ("-1", "auto", "but got '-1'"),
        ("all", "auto", "but got 'all'"),
        ("3", "auto", "`--devices 3` needs as many GPUs, but found 2. Use --devices 2."),
        ("2", "cuda:1", "got --device cuda:1"),
    ],
)
def test_devices_are_refused_when_they_cannot_be(gpus, text, device, message):
    gpus(2)
    with pytest.raises(ConfigError) as error:
        count_devices(text, device)
    assert message in str(error.value)


def test_plan_stays_as_it_is_on_one_device():
    plan, told = make_plan(), Told()
    assert share_out(plan, 1, told) is plan and told.said == []


def test_every_stage_is_shared_out_and_the_rule_is_said(monkeypatch):
    monkeypatch.setattr(runtime, "count_cores", lambda: 4)
    stages = [
        {"name": "heads", "epochs": 2},
        {"name": "all", "start_from": "heads", "overrides": {"training.batch_size": 12}},
    ]
    told = Told()
    shared = share_out(make_plan(stages=stages), 4, told)
    assert [stage.run.devices for stage in shared] == [4, 4]
    assert [stage.run.threads for stage in shared] == [1, 1]
    assert [line.partition(":")[2].split(";")[0] for line in told.said] == [
        " 4 devices train on 2 images each of every batch of 8",
        " 4 devices train on 3 images each of every batch of 12",
    ]
    assert all("the learning rate is that of a batch of" in line for line in told.said)


def test_promotion_is_refused_with_the_numbers_when_three_devices_share_a_batch_of_eight():
    with pytest.raises(
        ConfigError, match=r"batch_size=8, devices=3, accumulation=1 \(promotion\)\. Use another --devices"
    ):
        share_out(make_plan(), 3, Told())


def test_devices_are_checked_for_each_that_may_win():
    check_devices(make_plan(), 4, "trial 3, which may win")
    with pytest.raises(ConfigError, match=r"^trial 3, which may win: .*batch_size=6, devices=4"):
        check_devices(make_plan(batch_size=6), 4, "trial 3, which may win")


def test_promotion_is_the_same_training_on_any_number_of_devices():
    """So that the same command with another number goes on where it was."""
    (stage,) = make_plan()
    (shared,) = share_out((stage,), 2, Told())
    alone, together = (strip_place(run.model_dump(mode="json")) for run in (stage.run, shared.run))
    assert alone == together
    assert strip_place(replace_section(shared.run, seed=99).model_dump(mode="json")) != alone
