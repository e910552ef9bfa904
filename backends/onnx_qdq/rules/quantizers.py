"""Quantizers in ONNX."""

from __future__ import annotations

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("quantize")
def quantize(emitter: Emitter, node: Node) -> None:
    """QuantizeLinear."""
    emitter.quantized(node, emitter.codes[node.inputs[0]])


@emits("dequantize")
def dequantize(emitter: Emitter, node: Node) -> None:
    """DequantizeLinear."""
    quant = node.inputs[0].type.quant
    if quant is None:
        raise UnsupportedError("the operand has no grid", where=node.where)
    grid = emitter.activation_grid(node.name, quant, node.inputs[0].type.dtype)
    emitter.codes[node.output] = emitter.add("DequantizeLinear", [emitter.codes[node.inputs[0]], *grid], node.name)


@emits("rescale")
def rescale(emitter: Emitter, node: Node) -> None:
    """DequantizeLinear and QuantizeLinear."""
    emitter.quantized(node, emitter.real(node, 0))
