import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from cityopt.config import TrainingConfig
from cityopt.training.optim import build_optimizer, find_learning_rate, group_parameters, scale_learning_rate


def rates(num_steps: int, **settings: object) -> list[float]:
    training = TrainingConfig.model_validate({"batch_size": 8, "learning_rate": 1.0, **settings})
    return [find_learning_rate(step, num_steps, training) for step in range(num_steps)]


def test_group_parameters_spares_norms_and_biases_and_leaves_out_the_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[2].weight.requires_grad_(False)
    decaying, spared = group_parameters(model, 0.1)
    assert (decaying["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)]
    expected = [model[0].bias, model[1].weight, model[1].bias, model[2].bias, model[3].weight, model[3].bias]
    assert [id(p) for p in spared["params"]] == [id(p) for p in expected]


@pytest.mark.parametrize(("name", "kind"), [("sgd", SGD), ("adam", Adam), ("adamw", AdamW)])
def test_build_optimizer_moves_spared_parameters_by_gradient_alone_when_decay_is_huge(name: str, kind: type) -> None:
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(model, TrainingConfig.model_validate({"optimizer": name, "weight_decay": 0.9}))
    assert type(optimizer) is kind
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.bias, before["bias"])
    assert not torch.equal(model.weight, before["weight"])


def test_build_optimizer_passes_momentum_when_sgd() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2), TrainingConfig(momentum=0.7))
    assert {group["momentum"] for group in optimizer.param_groups} == {0.7}


def test_scale_learning_rate_is_linear_in_the_batch() -> None:
    assert scale_learning_rate(TrainingConfig(batch_size=2, learning_rate=0.02)) == pytest.approx(0.005)
    assert scale_learning_rate(TrainingConfig(batch_size=32, learning_rate=0.02)) == pytest.approx(0.08)


def test_find_learning_rate_rises_from_a_hundredth_when_warming_up() -> None:
    found = rates(100, schedule="constant", warmup_fraction=0.1)
    assert found[:3] == pytest.approx([0.01, 0.109, 0.208])
    assert found[5] == pytest.approx((0.01 + 1) / 2)
    assert found[10:] == [1.0] * 90


def test_find_learning_rate_falls_tenfold_at_each_milestone_when_stepping() -> None:
    found = rates(20, schedule="step", milestones=(0.5, 0.75), warmup_fraction=0.0)
    assert found == pytest.approx([1.0] * 10 + [0.1] * 5 + [0.01] * 5)


def test_find_learning_rate_is_half_a_cosine_after_warmup() -> None:
    found = rates(110, schedule="cosine", warmup_fraction=1 / 11)
    assert found[10] == 1.0
    assert found[60] == pytest.approx(0.5)
    assert found[109] == pytest.approx((1 + math.cos(math.pi * 99 / 100)) / 2)
    assert sorted(found[10:], reverse=True) == found[10:]


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_find_learning_rate_stays_in_range_when_training_is_short(schedule: str, warmup: float, num_steps: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(num_steps, schedule=schedule, warmup_fraction=warmup))
