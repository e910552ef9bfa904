"""Arithmetic of shapes that depend on the batch size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import NodeProto, helper

from qcompiler.errors import QCompilerError
from qcompiler.frontends import capture
from qcompiler.frontends.onnx.source import OnnxModel
from qcompiler.ir.interpret import interpret
from tests.frontends.onnx.files import graph_of, model_of


def node(op: str, inputs: str, output: str, **attributes: int) -> NodeProto:
    found: NodeProto = helper.make_node(op, inputs.split(), output.split(), None, None, None, None, **attributes)
    return found


SHAPE = node("Shape", "x", "s")
INTS = {name: np.array(value) for name, value in {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4}.items()}
LISTS = {
    "l0": np.array([0]),
    "l1": np.array([1]),
    "l2": np.array([2]),
    "minus": np.array([-1]),
    "ones": np.array([1, 1]),
    "pair": np.array([0, 1]),
    "target": np.array([-1, 1]),
    "lengths": np.array([1, 2]),
    "both": np.array([1, 12]),
}
BATCH = node("Gather", "s zero", "n")
COLUMN = node("Unsqueeze", "n l0", "nn")
WAYS: dict[str, list[NodeProto]] = {
    "gather and concat": [BATCH, COLUMN, node("Concat", "nn minus", "r", axis=0)],
    "slice": [node("Slice", "s l0 l1", "nn"), node("Concat", "nn minus", "r", axis=0)],
    "split": [node("Split", "s lengths", "nn rest"), node("Concat", "nn minus", "r", axis=0)],
    "products": [
        node("ReduceProd", "s", "all", keepdims=1),
        node("Div", "all l2", "half"),
        node("Concat", "half l2", "r", axis=0),
    ],
    "sums and differences": [
        BATCH,
        node("Add", "n two", "more"),
        node("Sub", "more two", "again"),
        node("Mul", "again three", "rows"),
        node("Unsqueeze", "rows l0", "rr"),
        node("Concat", "rr minus", "r", axis=0),
    ],
    "a cast and a squeeze": [
        node("Cast", "s", "t", to=7),
        node("Slice", "t l0 l1", "nn"),
        node("Squeeze", "nn l0", "n"),
        node("Reshape", "n l1", "again"),
        node("Concat", "again minus", "r", axis=0),
    ],
    "where and equal": [
        BATCH,
        COLUMN,
        node("Concat", "nn l1", "b", axis=0),
        node("Equal", "target minus", "open"),
        node("Where", "open b both", "r"),
    ],
    "extremes": [
        BATCH,
        node("Max", "n zero", "a"),
        node("Min", "a n", "b"),
        node("Mod", "b b", "m"),
        node("Add", "m b", "c"),
        node("Unsqueeze", "c l0", "nn"),
        node("Expand", "nn l1", "e"),
        node("Concat", "e minus", "r", axis=0),
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_reshape_is_valid_at_every_batch_size(way: str) -> None:
    nodes = [SHAPE, *WAYS[way], node("Reshape", "x r", "y"), node("Relu", "y", "z")]
    model = model_of(graph_of(nodes, {"x": ["N", 3, 4]}, ["z"], {**INTS, **LISTS}))
    module = capture(OnnxModel(model), torch.randn(2, 3, 4)).module
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 4)
        (found,), _ = interpret(module.main, [x], module.tensors)
        assert found.shape[0] * found.shape[1] == batch * 12
        assert torch.equal(found.reshape(-1), x.relu().reshape(-1))


def test_an_order_that_depends_on_the_batch_size_is_refused() -> None:
    nodes = [SHAPE, BATCH, node("Min", "n three", "m"), node("Unsqueeze", "m l0", "mm")]
    nodes += [node("Concat", "mm minus", "r", axis=0), node("Reshape", "x r", "y")]
    model = model_of(graph_of(nodes, {"x": ["N", 3, 4]}, ["y"], {**INTS, **LISTS}))
    with pytest.raises(QCompilerError, match="order of two sizes"):
        capture(OnnxModel(model), torch.randn(3, 3, 4))
