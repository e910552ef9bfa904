"""Sums, products and clamps in ONNX."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule, onnx_type
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32

emits: Table[Rule] = Table()


@emits("int_add", "int_mul")
def binary(emitter: Emitter, node: Node) -> None:
    """Add, Sub or Mul; Sum where float32 arithmetic is wanted."""
    op = "Mul" if node.op == "int_mul" else "Sub" if node.attributes["subtract"] else "Add"
    operands = [emitter.real(node, 0), emitter.real(node, 1)]
    if node.attributes["mode"] != ELEMENTWISE_FLOAT32 or op == "Sub":
        emitter.quantized(node, emitter.compute(node, op, operands))
    elif op == "Add":
        # ONNX Runtime takes an Add between quantizers, and a Mul, into kernels of other arithmetic. It has none for
        # Sub, nor for Sum.
        emitter.quantized(node, emitter.compute(node, "Sum", operands))
    else:
        emitter.quantized(node, emitter.compute(node, "Sum", [emitter.compute(node, op, operands)]))


@emits("maximum", "minimum")
def extreme(emitter: Emitter, node: Node) -> None:
    """Max or Min."""
    op = "Max" if node.op == "maximum" else "Min"
    emitter.quantized(node, emitter.compute(node, op, [emitter.real(node, 0), emitter.real(node, 1)]))


@emits("int_clamp")
def clamp(emitter: Emitter, node: Node) -> None:
    """On codes as they are, so that they have one quantizer: that of the operand, behind which this stands."""
    dtype = DType.of(node.output.type.dtype.torch)  # as in `quantized`
    shift, stored = emitter.stored(dtype)
    # ONNX Runtime has Max and Min of 8 and of 32 bits.
    computed = stored if dtype.bits == 8 else np.dtype(np.int32)
    source = emitter.codes[node.inputs[0]]
    if computed != stored:
        source = emitter.add("Cast", [source], emitter.unused(f"{node.name}.wide"), to=onnx_type(computed))
    ends = [
        emitter.constant(f"{node.name}.{end}", (codes + shift).astype(computed))
        for end, codes in zip(("least", "most"), emitter.limits(node), strict=True)
    ]
    raised = emitter.unused(f"{node.name}.raised")
    if computed == stored:
        emitter.codes[node.output] = emitter.clipped(source, ends, node.output.name, raised)
        return
    clipped = emitter.clipped(source, ends, emitter.unused(f"{node.name}.clipped"), raised)
    emitter.codes[node.output] = emitter.add("Cast", [clipped], node.output.name, to=onnx_type(stored))
