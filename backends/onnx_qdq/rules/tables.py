"""Functions of one number in ONNX, in place of lookup tables."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.backends.onnx_qdq.functions import FUNCTIONS
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("lookup")
def lookup(emitter: Emitter, node: Node) -> None:
    """The function that a table holds."""
    function = node.text("function")
    if function == "prelu":
        slopes = np.asarray(node.attributes["parameters"], np.float32)
        if node.attributes["axis"] is not None:
            slopes = slopes.reshape(-1, *[1] * (node.inputs[0].type.rank - 2))
        operands = [emitter.real(node, 0), emitter.constant(f"{node.name}.slopes", slopes)]
        emitter.quantized(node, emitter.compute(node, "PRelu", operands))
        return
    rule = FUNCTIONS.get(function)
    if rule is None:
        raise UnsupportedError(f"the function {function} has no ONNX form", where=node.where)
    parameters = cast("tuple[float | str, ...]", node.attributes["parameters"])

    def compute(op: str, *operands: gs.Tensor | float, **attributes: float) -> gs.Tensor:
        inputs = [
            emitter.constant(f"{node.name}.number", np.float32(item)) if isinstance(item, float) else item
            for item in operands
        ]
        return emitter.compute(node, op, inputs, **attributes)

    x, scales = emitter.real(node, 0), np.asarray(node.attributes["scales"], np.float32)
    if not scales.size:
        emitter.quantized(node, rule(compute, x, *parameters))
        return
    inner = node.inputs[0].type.rank - 1 - node.integer("axis")
    scale = emitter.constant(f"{node.name}.scales", scales.reshape(-1, *[1] * inner))
    result = rule(compute, emitter.compute(node, "Mul", [x, scale]), *parameters)
    emitter.quantized(node, emitter.compute(node, "Div", [result, scale]))
