"""Amount of work of a node: multiply-accumulates and elements."""

from __future__ import annotations

import math

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.interpret import LEAVES
from qcompiler.ir.registry import Trait


def multiply_accumulates(node: Node) -> int:
    """Number of products that `node` sums, for a batch of one; 0 for ops that are not sums of products.

    A call counts the products of the called graph.
    """
    if node.op == "call":
        return sum(map(multiply_accumulates, node.graph.module.graphs[node.text("graph")].nodes))
    if not node.definition.has(Trait.MAC):
        return 0
    if node.op == "matmul":
        return count(node.output) * _size(node.inputs[0].type.shape[-1])
    weight = node.inputs[1].type.shape
    # Each weight is used once per output pixel; in a transposed convolution, once per input pixel.
    pixels = node.inputs[0] if "conv_transpose" in node.op else node.output
    shape = pixels.type.shape[1:-1] if node.op.endswith("linear") else pixels.type.shape[2:]
    return math.prod(map(_size, weight)) * math.prod(map(_size, shape))


def elements(node: Node) -> int:
    """Number of elements in the results of `node`, for a batch of one; 0 for tensors of the module."""
    return 0 if node.op in LEAVES else sum(map(count, node.outputs))


def count(value: Value) -> int:
    """Number of elements of `value`, for a batch of one."""
    return math.prod(map(_size, value.type.shape))


def _size(dim: object) -> int:
    return dim if isinstance(dim, int) else 1
