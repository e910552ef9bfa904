"""Operators that move codes unchanged, in ONNX."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.backends.onnx_qdq.rules.windows import window_ends
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("max_pool2d")
def max_pool2d(emitter: Emitter, node: Node) -> None:
    """Largest codes of windows."""
    x, kernel = emitter.real(node, 0), emitter.ints(node, "kernel")
    begins, ends = emitter.ints(node, "padding"), window_ends(emitter, node)
    if any(border >= size for borders in (begins, ends) for border, size in zip(borders, kernel, strict=True)):
        # Dilated windows may begin or end farther outside than the runtime's padding may reach.
        amounts = emitter.constant(f"{node.name}.pads", np.asarray([0, 0, *begins, 0, 0, *ends], np.int64))
        lowest = emitter.constant(f"{node.name}.lowest", np.float32(-np.inf))
        x, begins, ends = emitter.compute(node, "Pad", [x, amounts, lowest]), [0, 0], [0, 0]
    pooled = emitter.compute(
        node,
        "MaxPool",
        [x],
        kernel_shape=kernel,
        strides=emitter.ints(node, "stride"),
        pads=begins + ends,
        dilations=emitter.ints(node, "dilation"),
    )
    emitter.quantized(node, pooled)


@emits("reshape")
def reshape(emitter: Emitter, node: Node) -> None:
    """Reshape."""
    emitter.quantized(node, emitter.compute(node, "Reshape", [emitter.real(node, 0), emitter.sizes(node)]))


@emits("permute")
def permute(emitter: Emitter, node: Node) -> None:
    """Transpose."""
    x = emitter.real(node, 0)
    emitter.quantized(node, emitter.compute(node, "Transpose", [x], perm=emitter.ints(node, "axes")))


@emits("concat")
def concat(emitter: Emitter, node: Node) -> None:
    """Concat."""
    parts = [emitter.real(node, index) for index in range(len(node.inputs))]
    axis = node.integer("axis")
    emitter.quantized(node, emitter.compute(node, "Concat", parts, axis=axis))


@emits("slice")
def slice(emitter: Emitter, node: Node) -> None:
    """Slice."""
    bounds = [
        emitter.number(f"{node.name}.{key}", np.asarray([node.attributes[key]], np.int64))
        for key in ("start", "stop", "axis", "step")
    ]
    emitter.quantized(node, emitter.compute(node, "Slice", [emitter.real(node, 0), *bounds]))


@emits("gather")
def gather(emitter: Emitter, node: Node) -> None:
    """Gather."""
    indices = emitter.constant(f"{node.name}.indices", np.asarray(node.integers("indices"), np.int64))
    picked = emitter.compute(node, "Gather", [emitter.real(node, 0), indices], axis=node.integer("axis"))
    emitter.quantized(node, picked)


@emits("pad")
def pad(emitter: Emitter, node: Node) -> None:
    """Pad, by a real number."""
    quant = node.output.type.quant
    if quant is None:
        raise UnsupportedError("the result has no grid", where=node.where)
    code = node.number("value")
    amounts = emitter.constant(f"{node.name}.pads", np.asarray(emitter.ints(node, "pad"), np.int64))
    value = emitter.constant(
        f"{node.name}.value", np.float32((code - quant.zero_point[0]) * np.float32(quant.scale[0]))
    )
    emitter.quantized(node, emitter.compute(node, "Pad", [emitter.real(node, 0), amounts, value]))
