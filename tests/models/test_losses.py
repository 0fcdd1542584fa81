"""Losses of semantic segmentation against slow loops over pixels."""

import math

import numpy as np
import pytest
import torch

from cityopt.models.losses import cross_entropy, dice, focal, weigh_classes

B, C, H, W = 2, 5, 4, 6


@pytest.fixture(params=[0.0, 0.4, 1.0], ids=["full", "some void", "all void"], name="case")
def _case(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 3, (B, C, H, W)).astype(np.float32)).requires_grad_()
    target = rng.integers(0, C - 1, (B, H, W))  # the last class never occurs
    target[rng.random((B, H, W)) < request.param] = 255
    return logits, torch.from_numpy(target)


def loop(logits, target, term, weights=None):
    """Mean of `term(probability of the true class)` over known pixels, weighted by class."""
    total = mass = 0.0
    for b in range(B):
        for y in range(H):
            for x in range(W):
                label = int(target[b, y, x])
                if label == 255:
                    continue
                scores = logits[b, :, y, x].detach().double().numpy()
                probability = np.exp(scores[label] - scores.max()) / np.exp(scores - scores.max()).sum()
                weight = 1.0 if weights is None else float(weights[label])
                total, mass = total + weight * term(probability), mass + weight
    return total / mass if mass else 0.0


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 4.0, 9.0])])
def test_cross_entropy_equals_a_slow_loop(case, weights) -> None:
    expected = loop(*case, lambda p: -math.log(p), weights)
    assert cross_entropy(*case, weights).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 4.0, 9.0])])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_a_slow_loop(case, weights, gamma) -> None:
    expected = loop(*case, lambda p: -((1 - p) ** gamma) * math.log(p), weights)
    assert focal(*case, weights, gamma=gamma).item() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_dice_equals_a_slow_loop(case) -> None:
    logits, target = case
    probability = logits.detach().double().softmax(dim=1).numpy()
    scores = []
    for label in range(C):
        truth, known = (target == label).numpy(), (target != 255).numpy()
        if truth.any():
            p = np.where(known, probability[:, label], 0)
            scores.append(2 * p[truth].sum() / ((p**2).sum() + truth.sum()))
    expected = 1 - np.mean(scores) if scores else 0.0
    assert dice(logits, target).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("function", [cross_entropy, focal, dice])
def test_void_gets_no_gradient_and_nothing_becomes_nan(case, function) -> None:
    logits, target = case
    function(logits, target).backward()
    assert logits.grad.isfinite().all()
    void = (target == 255)[:, None].expand_as(logits)
    assert (logits.grad[void] == 0).all()


def test_class_weights_rise_with_rarity_and_stay_bounded() -> None:
    weights = weigh_classes(torch.tensor([900, 90, 10, 0]))
    expected = [1 / math.log(1.02 + share) for share in (0.9, 0.09, 0.01, 0.0)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6) and weights[3].item() == pytest.approx(
        1 / math.log(1.02)
    )
    assert weigh_classes(torch.zeros(3, dtype=torch.int64)).isfinite().all()
