"""Adaptive rounding by the paper's descent: its parts against the formulas, and what it wins."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.adaptive_rounding.sgd import GAMMA, ZETA, Descent, rectified_sigmoid
from tests.passes.adaptive_rounding.test_adaround import BY_ERROR, noise, quantized
from tests.support.equalized import Net, depthwise, measured

SHORT = AdaRound(method="sgd", iterations=300, learning_rate=1e-2)


def test_beta_falls_along_a_cosine_behind_the_warm_start() -> None:
    descent = Descent(iterations=1000, warm_start=0.2)
    assert descent.beta(200) == pytest.approx(20.0)
    assert descent.beta(600) == pytest.approx(11.0)
    assert descent.beta(1000) == pytest.approx(2.0)
    assert descent.beta(400) == pytest.approx(2 + 9 * (1 + math.cos(math.pi / 4)))


def test_the_rectified_sigmoid_reaches_its_ends_and_begins_at_the_fraction() -> None:
    v = torch.tensor([-10.0, -2.5, 0.0, 2.5, 10.0])
    assert rectified_sigmoid(v).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]
    fraction = torch.linspace(0.01, 0.99, 50)
    begin = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1.0)
    torch.testing.assert_close(rectified_sigmoid(begin), fraction)


def test_a_network_comes_nearer_to_the_float_one() -> None:
    net, x = depthwise(), torch.randn(32, 3, 8, 8)
    plain, _ = quantized(net, x, *BY_ERROR, weight_bits=3)
    found, records = quantized(net, x, *BY_ERROR, SHORT, weight_bits=3)
    unseen = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    assert noise(found, net, unseen) < 0.8 * noise(plain, net, unseen)
    assert measured(records[-1], "layers") == 5
    for index in range(5):
        name = f"c{index}.weight"
        scale = plain.tensors[f"{name}.scale"]
        steps = found.tensors[name] / scale
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert float(((plain.tensors[name] / scale).clamp(-3, 3) - steps).abs().max()) < 1 + 1e-4
        assert torch.equal(found.tensors[f"c{index}.bias"], plain.tensors[f"c{index}.bias"]), "no bias changes"


def test_two_runs_give_the_same_bits() -> None:
    net = Net(lambda m, x: m.a(x), a=nn.Conv2d(3, 8, 3))
    x = torch.randn(64, 3, 6, 6)
    short = AdaRound(method="sgd", iterations=60, learning_rate=1e-2)
    first, second = (quantized(net, x, *BY_ERROR, short, weight_bits=2)[0] for _ in range(2))
    assert torch.equal(first.tensors["a.weight"], second.tensors["a.weight"])


def test_the_loss_is_that_behind_the_activation() -> None:
    """Asymmetric, after the activation: if all of it is closed, nothing can be gained, and nothing changes."""
    net = Net(lambda m, x: torch.relu(m.a(x)), a=nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        net.a.bias.fill_(-100.0)
    x = torch.randn(32, 3, 6, 6)
    module, records = quantized(net, x, *BY_ERROR, SHORT, weight_bits=3)
    assert measured(records[-1], "error_over_nearest") == 1.0
    scale = module.tensors["a.weight.scale"]
    steps = (net.a.weight.detach() / scale).clamp(-3, 3)
    torch.testing.assert_close(module.tensors["a.weight"] / scale, steps.round(), rtol=0, atol=1e-4)
