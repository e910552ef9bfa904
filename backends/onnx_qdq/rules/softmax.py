"""Softmax and its logarithm in ONNX."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.quant.modes import SoftmaxMode

emits: Table[Rule] = Table()

MASKED = float(np.finfo(np.float32).min)
"""Number in place of elements that take no part."""


@emits("int_softmax")
def softmax(emitter: Emitter, node: Node) -> None:
    """Softmax between quantizers; elements that take no part are the lowest number before it, and 0 after it.

    ONNX Runtime has a kernel on codes, QLinearSoftmax. Only the mode `f32` computes what it does, so that other modes
    keep it from being used: an operator without an effect stands between Softmax and its quantizer.
    """
    x = emitter.real(node, 0)
    if len(node.inputs) < 3:
        result = emitter.compute(node, "Softmax", [x], axis=node.integer("axis"))
        if node.text("mode") != SoftmaxMode.FLOAT32:
            result = emitter.compute(node, "Sum", [result])
        emitter.quantized(node, result)
        return
    mask = emitter.real_numbers(node.inputs[2])
    lowest = emitter.constant(f"{node.name}.lowest", np.float32(MASKED))
    result = emitter.compute(
        node, "Softmax", [emitter.compute(node, "Where", [mask, x, lowest])], axis=node.integer("axis")
    )
    zero = emitter.constant(f"{node.name}.zero", np.float32(0.0))
    emitter.quantized(node, emitter.compute(node, "Where", [mask, result, zero]))


@emits("int_log_softmax")
def log_softmax(emitter: Emitter, node: Node) -> None:
    """LogSoftmax between quantizers; no runtime has a kernel on codes with any grid for its result."""
    result = emitter.compute(node, "LogSoftmax", [emitter.real(node, 0)], axis=node.integer("axis"))
    emitter.quantized(node, result)
