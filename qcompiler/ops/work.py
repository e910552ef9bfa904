"""How much a node computes."""

from __future__ import annotations

import math

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.registry import Trait


def multiply_accumulates(node: Node) -> int:
    """Products that `node` sums up, for a batch of one; 0 for anything but convolutions, linear layers and the like.

    A call counts what the called graph does.
    """
    if node.op == "call":
        return sum(map(multiply_accumulates, node.graph.module.graphs[str(node.attributes["graph"])].nodes))
    if not node.definition.has(Trait.MAC):
        return 0
    if node.op == "matmul":
        return count(node.output) * _size(node.inputs[0].type.shape[-1])
    weight = node.inputs[1].type.shape
    # The weight meets each pixel of the result once; where it is transposed, each pixel of the input.
    pixels = node.inputs[0] if "conv_transpose" in node.op else node.output
    shape = pixels.type.shape[1:-1] if node.op.endswith("linear") else pixels.type.shape[2:]
    return math.prod(map(_size, weight)) * math.prod(map(_size, shape))


def elements(node: Node) -> int:
    """Elements of the results of `node`, for a batch of one; 0 for tensors of the module."""
    return 0 if node.op in LEAVES else sum(map(count, node.outputs))


def count(value: Value) -> int:
    """Elements of `value`, for a batch of one."""
    return math.prod(map(_size, value.type.shape))


def _size(dim: object) -> int:
    return dim if isinstance(dim, int) else 1
