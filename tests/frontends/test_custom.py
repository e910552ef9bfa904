"""Functions without an operator are kept by name, with all that a call needs."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from qcompiler.errors import UnsupportedError
from qcompiler.frontends import capture
from qcompiler.ir.graph import Node
from tests.support.functions import Function, numbers
from tests.support.running import outputs_of


def kept(function: Callable[..., object], batch: int = 2) -> Node:
    """The custom op of `function`, which computes what torch does at another batch size."""
    graph = capture(Function(function).eval(), numbers(batch, 6)).module.main
    (node,) = [node for node in graph.nodes if node.op == "custom"]
    x = numbers(5, 6)
    result = function(x.clone())
    expected = list(result) if isinstance(result, tuple | list) else [result]
    for found, wanted in zip(outputs_of(graph, [x]), expected, strict=True):
        assert torch.equal(found, wanted)  # type: ignore[arg-type]
    return node


@pytest.mark.parametrize(
    ("function", "name", "arguments"),
    [
        (lambda x: torch.logcumsumexp(x, 1), "torch.logcumsumexp", [[{"operand": 0}, 1], {}]),
        (lambda x: x.cumprod(dim=1), "torch.Tensor.cumprod", [[{"operand": 0}], {"dim": 1}]),
        (lambda x: torch.fft.fftshift(x, dim=[1]), "torch.fft.fftshift", [[{"operand": 0}], {"dim": [1]}]),
        (
            lambda x: x.prod(1, dtype=torch.int32),
            "torch.Tensor.prod",
            [[{"operand": 0}, 1], {"dtype": {"dtype": "i32"}}],
        ),
        (lambda x: torch.ops.aten.cumprod.default(x, 1), "aten::cumprod", [[{"operand": 0}, 1], {}]),
        (lambda x: x % 2, "operator.mod", [[{"operand": 0}, 2], {}]),
    ],
)
def test_a_call_is_kept_with_its_arguments(function: Callable[..., object], name: str, arguments: object) -> None:
    node = kept(function)
    assert str(node.attributes["function"]).startswith(name)
    assert json.loads(str(node.attributes["arguments"])) == arguments
    assert node.attributes["reason"] == ""


def test_several_results_are_kept() -> None:
    assert len(kept(lambda x: torch.sort(x, 1)).outputs) == 2
    assert len(kept(lambda x: torch.cummax(x, 1).indices).outputs) == 2


def test_a_size_that_depends_on_the_batch_is_written_as_an_expression() -> None:
    node = kept(lambda x: torch.roll(x, x.shape[0] * 2 + 1, 1))
    assert json.loads(str(node.attributes["arguments"]))[0][1] == {"size": "2*N + 1"}


def test_a_result_without_an_operand_gets_its_batch_from_an_input() -> None:
    graph = capture(Function(lambda x: x + torch.arange(x.shape[0])[:, None]).eval(), numbers(3, 4)).module.main
    node = next(node for node in graph.nodes if node.op == "custom")
    assert node.inputs == [graph.inputs[0]]
    x = numbers(5, 4)
    assert torch.equal(outputs_of(graph, [x])[0], x + torch.arange(5)[:, None])


def test_the_reason_of_a_rule_that_declines_is_kept() -> None:
    assert kept(lambda x: (x * x) ** (x * x)).attributes["reason"] == "a power whose exponent is a tensor"


def test_random_functions_and_functions_from_elsewhere_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'rand_like' has no operator"):
        capture(Function(lambda x: torch.rand_like(x) * x).eval(), numbers(2, 6))


def test_a_result_for_each_pair_of_samples_is_refused_in_a_float_part_too() -> None:
    x = numbers(2, 6)
    for function in (lambda x: x @ x.T, lambda x: torch.cdist(x, x), lambda x: x[:, None] + x):
        with pytest.raises(UnsupportedError, match="sizes of the batch along several axes"):
            capture(Function(function).eval(), x)
