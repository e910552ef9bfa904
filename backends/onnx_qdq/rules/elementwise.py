"""Sums, products and clamps in ONNX."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule, onnx_type
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ir.types import DType
from qcompiler.quant.arithmetic import ELEMENTWISE_FLOAT32

emits: Table[Rule] = Table()


@emits("int_add")
def add(emitter: Emitter, node: Node) -> None:
    """Add or Sub; Sum where float32 arithmetic is wanted.

    ONNX Runtime takes an Add between quantizers, and a Mul, into kernels of other arithmetic. It has none for Sub, nor
    for Sum.
    """
    plain = "Sum" if node.text("mode") == ELEMENTWISE_FLOAT32 else "Add"
    _combined(emitter, node, "Sub" if node.flag("subtract") else plain)


@emits("int_mul")
def mul(emitter: Emitter, node: Node) -> None:
    """Mul, and a Sum of it alone where float32 arithmetic is wanted."""
    if node.text("mode") != ELEMENTWISE_FLOAT32:
        _combined(emitter, node, "Mul")
        return
    product = emitter.compute(node, "Mul", [emitter.real(node, 0), emitter.real(node, 1)])
    emitter.quantized(node, emitter.compute(node, "Sum", [product]))


@emits("maximum")
def maximum(emitter: Emitter, node: Node) -> None:
    """Max."""
    _combined(emitter, node, "Max")


@emits("minimum")
def minimum(emitter: Emitter, node: Node) -> None:
    """Min."""
    _combined(emitter, node, "Min")


def _combined(emitter: Emitter, node: Node, op: str) -> None:
    emitter.quantized(node, emitter.compute(node, op, [emitter.real(node, 0), emitter.real(node, 1)]))


@emits("int_clamp")
def clamp(emitter: Emitter, node: Node) -> None:
    """Clamp codes directly after the quantizer of the operand, so that only one quantizer is needed."""
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
