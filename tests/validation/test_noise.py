"""Squared errors of the integer results against the float model, and the sensitivities that predict them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from qcompiler.frontends import capture
from qcompiler.ir.graph import Graph
from qcompiler.validation.noise import float_outputs, sensitivities, squared_errors
from tests.support.exact import ARITHMETIC
from tests.support.quantized import linear

X = torch.tensor([[1.1, 2.0], [1.0, 2.0]])
WANTED = torch.tensor([[5.1, 0.0], [5.0, 0.0]])


def test_without_quantizers_the_graph_is_the_float_model() -> None:
    module = linear()
    (found,) = float_outputs(module.main, [X], module.tensors)
    torch.testing.assert_close(found, WANTED)


def test_errors_are_summed_over_the_elements_of_an_output() -> None:
    module = linear()
    assert squared_errors(module.main, [X], module.tensors, [WANTED], ARITHMETIC) == pytest.approx([0.01], rel=1e-4)
    far = WANTED + torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    assert squared_errors(module.main, [X], module.tensors, [far], ARITHMETIC) == pytest.approx([9.01], rel=1e-4)


def test_elements_that_are_not_finite_and_integers_count_nothing() -> None:
    module = linear()
    holed = WANTED.clone()
    holed[0, 0] = math.inf
    assert squared_errors(module.main, [X], module.tensors, [holed], ARITHMETIC) == [0.0]
    assert squared_errors(module.main, [X], module.tensors, [holed.nan_to_num().long()], ARITHMETIC) == [0.0]


def _graph(model: nn.Module, x: torch.Tensor) -> Graph:
    return capture(model.eval(), x).module.main


def test_values_without_further_axes_have_sensitivities() -> None:
    x = torch.arange(6.0).reshape(1, 6)
    graph = _graph(nn.Sequential(nn.Linear(6, 2), nn.Flatten(0)), x)
    generator = torch.Generator().manual_seed(0)
    found = sensitivities(graph, [x], graph.module.tensors, {graph.outputs[0]: 0}, [], {}, generator)
    assert found is not None
    assert found.values[graph.outputs[0]].shape == (2,)


def test_sensitivities_of_a_linear_model_are_the_squares_of_its_weights() -> None:
    """y = W2 W1 x: the expectation over signs of (v^T W2)_i^2 is the sum of the squares of column i of W2."""
    torch.manual_seed(0)
    second = nn.Linear(4, 5, bias=False)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), second)
    x = torch.randn(1, 3)
    graph = _graph(model, x)
    first = next(node for node in graph.nodes if node.op == "linear")
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        item = sensitivities(graph, [x], graph.module.tensors, {first.output: 1}, ["0.weight"], {}, generator)
        assert item is not None
        found.append((item.values[first.output], item.tensors["0.weight"]))
    with torch.no_grad():
        power = model(x).double().square().sum()
        squares = second.weight.double().square().sum(0) / power
    values, weights = (torch.stack(parts).mean(0) for parts in zip(*found, strict=True))
    torch.testing.assert_close(values, squares, rtol=0.1, atol=0.0)
    # The error of W1[i, k] changes element i by x_k times as much.
    torch.testing.assert_close(weights, squares[:, None] * x.double().square(), rtol=0.1, atol=0.0)


def test_the_sensitivity_to_a_limit_sums_over_the_positions_at_it() -> None:
    """All positions of channel 0 are at the limit 6, none of channel 1: their gradients add up before they are squared."""
    model = nn.Sequential(nn.ReLU6(), nn.AdaptiveAvgPool2d(1))
    x = torch.cat([torch.full((1, 1, 4, 4), 9.0), torch.full((1, 1, 4, 4), 1.0)], 1)
    graph = _graph(model, x)
    clamp = next(node for node in graph.nodes if node.op == "clamp")
    generator = torch.Generator().manual_seed(0)
    high = torch.full((2,), 6.0)
    found = sensitivities(graph, [x], graph.module.tensors, {clamp.output: 1}, [], {clamp.output: (1, high)}, generator)
    assert found is not None
    power = 6.0**2 + 1.0**2
    torch.testing.assert_close(found.limits[clamp.output], torch.tensor([1.0, 0.0]).double() / power)
    torch.testing.assert_close(found.values[clamp.output], torch.full((2,), 1.0 / 16 / power).double())


def test_outputs_without_gradients_have_no_sensitivity() -> None:
    x = torch.randn(1, 3)
    graph = _graph(Largest(), x)
    assert sensitivities(graph, [x], graph.module.tensors, {}, ["layer.weight"], {}, torch.Generator()) is None


class Largest(nn.Module):
    """The index of the largest result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x).argmax(1)
        return found
