"""A positive constant next to a product of two activations becomes its factor, which changes a scale.

mul(matmul(a, b), c)     ->  matmul(a, b) {factor = c}
matmul(mul(a, c), b)     ->  matmul(a, b) {factor = c}      also through reshapes and other views of the operand
"""

from __future__ import annotations

import math

from qcompiler.ir.events import Sentence
from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ops.quantizers import is_leaf, leaf_tensor
from qcompiler.passes.base import only_user

__all__ = ["take_factor"]

FACTOR = Sentence("factor-of-product", "times {factor:.6g}, which changes the scale of an operand")


def take_factor(node: Node, rewriter: Rewriter) -> bool:
    """Let a product take a constant after it, or before one of its operands."""
    if node.op == "mul":
        for index, value in enumerate(node.inputs):
            product, factor = value.made_by("matmul"), _factor(node.inputs[1 - index])
            if product is not None and factor is not None and only_user(product) is node:
                _multiply(product, factor, rewriter)
                rewriter.replace(node, product.output)
                return True
        return False
    if node.op != "matmul":
        return False
    return any(_from_operand(node, value, rewriter) for value in node.inputs)


def _from_operand(node: Node, value: Value, rewriter: Rewriter) -> bool:
    """Take the factor of an operand that nothing else reads."""
    reader, maker = node, value.producer
    while maker is not None and maker.definition.has(Trait.VIEW) and only_user(maker) is reader:
        reader, maker = maker, maker.inputs[0].producer
    if maker is None or maker.op != "mul" or only_user(maker) is not reader or node.inputs.count(value) > 1:
        return False
    for index, operand in enumerate(maker.inputs):
        source, factor = maker.inputs[1 - index], _factor(operand)
        if factor is not None and not is_leaf(source) and source.type == maker.output.type:
            rewriter.replace(maker, source)
            _multiply(node, factor, rewriter)
            return True
    return False


def _multiply(product: Node, factor: float, rewriter: Rewriter) -> None:
    rewriter.set_attributes(product, factor=product.number("factor") * factor)
    rewriter.note(product, FACTOR(factor=factor))


def _factor(value: Value) -> float | None:
    """A positive number of the model."""
    if not is_leaf(value) or not value.type.dtype.is_float:
        return None
    tensor = leaf_tensor(value)
    number = float(tensor) if tensor.numel() == 1 else 0.0
    return number if number > 0.0 and math.isfinite(number) else None
