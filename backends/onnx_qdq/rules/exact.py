"""Integers and booleans without a grid in ONNX: the operators of ONNX on these types."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule, onnx_type
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()

FUNCTIONS: Mapping[str, str] = {
    "add": "Add",
    "subtract": "Sub",
    "multiply": "Mul",
    "minimum": "Min",
    "maximum": "Max",
    "equal": "Equal",
    "not_equal": "Equal",
    "less": "Less",
    "less_equal": "LessOrEqual",
    "greater": "Greater",
    "greater_equal": "GreaterOrEqual",
    "and": "And",
    "or": "Or",
    "xor": "Xor",
}


@emits("exact")
def exact(emitter: Emitter, node: Node) -> None:
    """A function of two operands; ONNX has no NotEqual."""
    operands = [emitter.real_numbers(value) for value in node.inputs]
    compute = node.text("compute")
    if compute == "not_equal":
        emitter.result(node, "Not", [emitter.compute(node, "Equal", operands)])
    else:
        emitter.result(node, FUNCTIONS[compute], operands)


@emits("not")
def not_(emitter: Emitter, node: Node) -> None:
    """Not."""
    emitter.result(node, "Not", [emitter.real_numbers(node.inputs[0])])


@emits("cast")
def cast(emitter: Emitter, node: Node) -> None:
    """Cast."""
    emitter.result(node, "Cast", [emitter.real_numbers(node.inputs[0])], to=onnx_type(node.output.type.dtype.numpy))


@emits("cumsum")
def cumsum(emitter: Emitter, node: Node) -> None:
    """CumSum."""
    axis = emitter.constant(f"{node.name}.axis", np.asarray(node.integer("axis"), np.int64))
    emitter.result(node, "CumSum", [emitter.real_numbers(node.inputs[0]), axis])
