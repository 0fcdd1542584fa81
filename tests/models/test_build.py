import logging

import pytest
import torch
from small_models import SMALL

from cityopt.config import AnchorTable
from cityopt.errors import ConfigError, WeightsError
from cityopt.models.build import build_model


def test_build_refuses_anchors_that_are_not_resolved() -> None:
    with pytest.raises(ConfigError, match="'kmeans'"):
        build_model(SMALL.model_copy(update={"anchors": "kmeans"}))


def test_build_gives_the_same_values_when_the_seed_is_the_same() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(build_model(SMALL).state_dict()["backbone.body.conv1.weight"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_build_warns_when_random_layers_are_frozen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_model(SMALL.model_copy(update={"freeze_depth": 2}))
    assert "freezes random layers" in caplog.text
    caplog.clear()
    model = build_model(SMALL)
    build_model(SMALL.model_copy(update={"freeze_depth": 2}), state=model.state_dict())
    assert not caplog.text


def test_build_from_a_state_needs_no_pretrained_weights() -> None:
    settings = SMALL.model_copy(update={"weights": "/nowhere/start.pt"})
    state = build_model(SMALL).state_dict()
    again = build_model(settings, state=state).state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)


def test_build_lists_what_differs_when_the_state_is_of_another_network() -> None:
    state = build_model(SMALL.model_copy(update={"mask_head_layers": 2})).state_dict()
    with pytest.raises(WeightsError) as caught:
        build_model(SMALL, state=state)
    assert "roi_heads.mask_head.1.0.weight: unknown" in str(caught.value)


def test_anchors_are_in_the_config_and_not_in_the_state() -> None:
    table = AnchorTable(sizes=((8.0, 9.0, 10.0),) * 5, ratios=((0.5, 1.0, 2.0),) * 5)
    model = build_model(SMALL.model_copy(update={"anchors": "explicit", "anchor_table": table}))
    assert not [key for key in model.state_dict() if "cell" in key or "anchor" in key]
