"""Amount of work of a node: multiply-accumulates and elements."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qcompiler.ir.dims import Shape
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import OpDef, Trait


def multiply_accumulates(node: Node) -> int:
    """Number of products that `node` sums, for a batch of one; 0 for ops that are not sums of products.

    A call counts the products of the called graph.
    """
    if node.callee is not None:
        return sum(map(multiply_accumulates, node.callee.nodes))
    if node.definition.has(Trait.CONTRACTION):
        return layer_products(node.definition, _sizes(node.inputs[0].type.shape), (), _sizes(node.output.type.shape))
    if not node.definition.has(Trait.WEIGHTED):
        return 0
    x, weight, y = (_sizes(value.type.shape) for value in (*node.inputs[:2], node.output))
    return layer_products(node.definition, (1, *x[1:]), weight, (1, *y[1:]))


def layer_products(layer: OpDef, x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> int:
    """Number of products that a layer sums.

    Args:
        layer: The operator on real numbers or on codes: a weighted one, or a product of two activations.
        x: Sizes of the input.
        weight: Sizes of the weight, or of the second operand of a product of two activations.
        y: Sizes of the result.
    """
    if layer.has(Trait.CONTRACTION):
        return math.prod(y) * x[-1]
    # Each weight is used once per output pixel; in a transposed convolution, once per input pixel.
    pixels = x if layer.has(Trait.TRANSPOSED) else y
    positions = (pixels[0], *pixels[2:]) if layer.has(Trait.CONVOLUTION) else pixels[:-1]
    return math.prod(weight) * math.prod(positions)


def elements(node: Node) -> int:
    """Number of elements in the results of `node`, for a batch of one; 0 for tensors of the module."""
    return 0 if node.definition.has(Trait.LEAF) else sum(map(count, node.outputs))


def count(value: Value) -> int:
    """Number of elements of `value`, for a batch of one."""
    return math.prod(_sizes(value.type.shape))


def _sizes(shape: Shape) -> tuple[int, ...]:
    return tuple(map(_size, shape))


def _size(dim: object) -> int:
    return dim if isinstance(dim, int) else 1
