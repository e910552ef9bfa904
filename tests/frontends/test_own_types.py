"""A model in other floating-point types is captured in float32; its ends keep their types."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.frontends import capture
from qcompiler.ir import tree
from qcompiler.ir.graph import Graph
from tests.support.functions import Function, numbers
from tests.support.running import outputs_of

TELLS = "it is compiled in float32, and inputs and outputs keep their types."


def ends(graph: Graph, x: Tensor) -> Tensor:
    """The result of a graph on `x`, in the types that its trees record."""
    result = tree.unflatten(graph.output_tree, outputs_of(graph, tree.match(graph.input_tree, (x,))))
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_and_ends_of_another_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU()).to(dtype).eval(), numbers(2, 3).to(dtype)
    found = capture(model, x)
    assert [*map(str, found.diagnostics)] == [f"The model computes in {str(dtype).removeprefix('torch.')}; {TELLS}"]
    assert {tensor.dtype for tensor in found.module.tensors.values()} == {torch.float32}
    result = ends(found.module.main, x)
    assert result.dtype == dtype
    torch.testing.assert_close(result, model(x))
    assert model[0].weight.dtype == dtype


def test_types_to_which_a_forward_converts_are_told() -> None:
    found = capture(Function(lambda x: (x.double() * 2).float()).eval(), numbers(2, 3))
    assert [*map(str, found.diagnostics)] == [f"The model computes in float64; {TELLS}"]
    assert found.module.main.outputs[0].type.dtype.torch == torch.float32
    assert ends(found.module.main, numbers(2, 3)).dtype == torch.float32
    result = capture(Function(lambda x: x.double() * 2).eval(), numbers(2, 3))
    assert ends(result.module.main, numbers(2, 3)).dtype == torch.float64


def test_a_float32_model_has_no_note() -> None:
    assert capture(nn.Linear(3, 2).eval(), numbers(2, 3)).diagnostics == []


def test_types_may_be_kept_for_comparisons() -> None:
    model, x = nn.Linear(3, 2).double().eval(), numbers(2, 3).double()
    found = capture(model, x, precision="own")
    assert found.diagnostics == []
    assert found.module.tensors["weight"].dtype == torch.float64
    assert torch.equal(outputs_of(found.module.main, [x])[0], model(x))
