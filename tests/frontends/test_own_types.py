"""A model in other floating-point types is captured in float32; its ends keep their types."""

from __future__ import annotations

from collections.abc import Callable

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


def bytes_of_pictures() -> Tensor:
    return torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)


@pytest.mark.parametrize(
    "spelled",
    [
        lambda x: x.float() / 255,
        lambda x: x / 255.0,
        lambda x: x.to(torch.float32).sub(3.0),
        lambda x: x.type(torch.float32).permute(0, 2, 3, 1),
        lambda x: x[:, 1:].flip(1).to(torch.float16) * 0.5,
    ],
)
def test_bytes_that_are_used_as_real_numbers_are_real_numbers_of_the_graph(spelled: Callable[[Tensor], Tensor]) -> None:
    x = bytes_of_pictures()
    found = capture(Function(spelled).eval(), x)
    graph = found.module.main
    assert graph.inputs[0].type.dtype.is_float
    assert graph.input_tree == ("tuple", [("u8", 0)])
    result = ends(graph, x)
    assert result.dtype == spelled(x).dtype
    torch.testing.assert_close(result, spelled(x))
    assert not [item for item in found.diagnostics if "uint8" in str(item)]


@pytest.mark.parametrize("spelled", [lambda x: (x * 2).float(), lambda x: x + 200])
def test_bytes_that_wrap_around_stay_integers(spelled: Callable[[Tensor], Tensor]) -> None:
    """Small bytes do not wrap, so the example alone would not tell."""
    x = bytes_of_pictures() % 5
    assert not capture(Function(spelled).eval(), x).module.main.inputs[0].type.dtype.is_float


def test_of_several_inputs_of_bytes_only_those_used_as_numbers_are_numbers() -> None:
    table = torch.arange(10.0)
    model = Function(lambda x, index: x.float() + table[index.long()].reshape(-1, 1, 1, 1))
    index = torch.tensor([3, 1], dtype=torch.uint8)
    graph = capture(model.eval(), (bytes_of_pictures(), index)).module.main
    assert [value.type.dtype.is_float for value in graph.inputs] == [True, False]


def test_exported_programs_of_bytes_compare_no_types() -> None:
    x = bytes_of_pictures()
    program = torch.export.export(Function(lambda x: x.float() / 255).eval(), (x,))
    for model in (program, program.module()):
        graph = capture(model, x).module.main
        assert graph.inputs[0].type.dtype.is_float
        torch.testing.assert_close(ends(graph, x), x / 255)
    with pytest.raises(RuntimeError, match="dtype mismatch"):
        program.module()(x.float())  # the program of the user still compares them
