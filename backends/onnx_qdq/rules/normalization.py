"""Normalizations in ONNX."""

from __future__ import annotations

import math

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ops.normalization import normalized_axes

emits: Table[Rule] = Table()


LEAST_EPS = float(np.finfo(np.float32).tiny)
"""Smallest epsilon, which keeps a normalization of equal elements from dividing by zero."""


@emits("int_layer_norm")
def layer_norm(emitter: Emitter, node: Node) -> None:
    """A normalization in operators of opset 13, with weight and bias as real numbers."""
    x, weight, bias = emitter.real(node, 0), emitter.numbers(node, 1), emitter.numbers(node, 2)
    axes = list(normalized_axes(node))
    quant, count = node.inputs[0].type.quant, math.prod(node.inputs[0].type.size(axis) for axis in axes)
    if quant is None:
        raise UnsupportedError("the operand has no grid", where=node.where)
    eps = node.integer("epsilon") * quant.scale[0] ** 2 / count**2
    distance = x
    if node.flag("centered"):
        distance = emitter.compute(node, "Sub", [x, emitter.mean_over(node, x, axes, keepdim=True)])
    square = emitter.compute(node, "Mul", [distance, distance])
    variance = emitter.mean_over(node, square, axes, keepdim=True)
    # The smallest normal number replaces an eps of 0, with which equal elements would give 0 / 0.
    guarded = emitter.compute(
        node, "Add", [variance, emitter.constant(f"{node.name}.eps", np.float32(max(eps, LEAST_EPS)))]
    )
    normalized = emitter.compute(node, "Div", [distance, emitter.compute(node, "Sqrt", [guarded])])
    scaled = emitter.compute(node, "Mul", [normalized, weight])
    emitter.quantized(node, emitter.compute(node, "Add", [scaled, bias]))
