"""Elements of an axis are found through movements along it, and assembled tensors hold the same elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from qcompiler.frontends.assembly import MOST_RUNS, assembled, cut, elements
from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import symbol
from qcompiler.ir.graph import Graph, Module, Value
from qcompiler.ir.types import DType, Stage, TensorType
from tests.support.running import outputs_of


def graph_of(make: Callable[[Builder, Value], Operand]) -> tuple[Graph, Tensor, Tensor]:
    """A graph of [N, 6, 2], an input, and its result."""
    graph = Module().add(Graph("main", Stage.FLOAT))
    graph.bounds["N"] = (1, 9)
    x = graph.add_input("x", TensorType(DType.F32, (symbol("N"), 6, 2)))
    builder = Builder(graph, frozenset(), torch.device("cpu"))
    graph.set_outputs([builder.value(make(builder, x))])
    image = torch.arange(24.0).reshape(2, 6, 2)
    return graph, image, outputs_of(graph, [image])[0]


def moved(b: Builder, x: Value) -> Value:
    """A slice of a gather of a padding of x, joined with a part of x."""
    padded = b.node("pad", [x], pad=(0, 1, 0, 0, 2, 0), value=-1.0)
    picked = b.node("gather", [padded], axis=1, indices=(0, 3, 2, 1, 8, 7, 6, 5, 4))
    part = b.node("slice", [picked], axis=1, start=1, stop=8, step=2)
    return b.node("concat", [part, b.node("slice", [x], axis=1, start=0, stop=2, step=1)], axis=1)


def test_elements_are_those_of_the_sources() -> None:
    def reassembled(b: Builder, x: Value) -> Operand:
        value = moved(b, x)
        found = elements(b, value, 1)
        assert [index for source, index in found if source is x] == [2, 0, 4, 0, 1]
        assert [float(source.tensor.min()) for source, _ in found if isinstance(source, Leaf)] == [-1.0]
        return assembled(b, found, 1)

    _, _, wanted = graph_of(moved)
    graph, _, result = graph_of(reassembled)
    assert torch.equal(result, wanted)
    assert graph.outputs[0].producer is not None


@pytest.mark.parametrize(
    ("indices", "op"), [([0, 1, 2, 4, 5], "concat"), ([4, 3, 2, 1, 0, 5, 4, 3, 2, 1], "gather"), ([2, 3, 4], "slice")]
)
def test_many_runs_are_a_gather(indices: Sequence[int], op: str) -> None:
    def picked(b: Builder, x: Value) -> Operand:
        return assembled(b, [(x, index) for index in indices], 1)

    graph, x, result = graph_of(picked)
    assert torch.equal(result, x[:, indices])
    assert graph.outputs[0].producer is not None
    assert graph.outputs[0].producer.op == op
    assert (op == "gather") is (len(indices) > MOST_RUNS)


def test_constants_stay_constants() -> None:
    b = Builder(Module().add(Graph("main", Stage.FLOAT)), frozenset(), torch.device("cpu"))
    leaf = Leaf("constant", "", torch.arange(6.0).reshape(1, 6))
    found = assembled(b, [(leaf, 4), (leaf, 1)], 1)
    assert isinstance(found, Leaf)
    assert found.tensor.tolist() == [[4.0, 1.0]]
    assert cut(b, leaf, 1, 0, 6) is leaf
    strided = cut(b, leaf, 1, 1, 6, 2)
    assert isinstance(strided, Leaf)
    assert strided.tensor.tolist() == [[1.0, 3.0, 5.0]]
    assert not list(b.graph.nodes)
