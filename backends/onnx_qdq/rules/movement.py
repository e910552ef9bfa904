"""Operators that move codes unchanged, in ONNX."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.backends.onnx_qdq.rules.windows import window_ends
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
    emitter.result(node, "Reshape", [emitter.real(node, 0), emitter.sizes(node)])


@emits("permute")
def permute(emitter: Emitter, node: Node) -> None:
    """Transpose."""
    x = emitter.real(node, 0)
    emitter.result(node, "Transpose", [x], perm=emitter.ints(node, "axes"))


@emits("concat")
def concat(emitter: Emitter, node: Node) -> None:
    """Concat."""
    parts = [emitter.real(node, index) for index in range(len(node.inputs))]
    axis = node.integer("axis")
    emitter.result(node, "Concat", parts, axis=axis)


@emits("slice")
def slice(emitter: Emitter, node: Node) -> None:
    """Slice."""
    bounds = [
        emitter.number(f"{node.name}.{key}", np.asarray([node.attributes[key]], np.int64))
        for key in ("start", "stop", "axis", "step")
    ]
    emitter.result(node, "Slice", [emitter.real(node, 0), *bounds])


@emits("gather")
def gather(emitter: Emitter, node: Node) -> None:
    """Gather."""
    indices = emitter.constant(f"{node.name}.indices", np.asarray(node.integers("indices"), np.int64))
    emitter.result(node, "Gather", [emitter.real(node, 0), indices], axis=node.integer("axis"))


@emits("pad")
def pad(emitter: Emitter, node: Node) -> None:
    """Pad, by a real number, or by an integer without a grid."""
    quant, code = node.output.type.quant, node.number("value")
    amounts = emitter.constant(f"{node.name}.pads", np.asarray(emitter.ints(node, "pad"), np.int64))
    number = (
        np.asarray(code, node.output.type.dtype.numpy)
        if quant is None
        else np.float32((code - quant.zero_point[0]) * np.float32(quant.scale[0]))
    )
    value = emitter.constant(f"{node.name}.value", number)
    emitter.result(node, "Pad", [emitter.real(node, 0), amounts, value])


@emits("embedding")
def embedding(emitter: Emitter, node: Node) -> None:
    """Gather, of ids clamped to the rows."""
    ids = node.inputs[1]
    ends = [
        emitter.constant(f"{node.name}.{end}", np.asarray(row, ids.type.dtype.numpy))
        for end, row in (("first", 0), ("last", node.inputs[0].type.size(0) - 1))
    ]
    clamped = emitter.compute(node, "Clip", [emitter.real_numbers(ids), *ends])
    emitter.result(node, "Gather", [emitter.real(node, 0), clamped], axis=0)


@emits("masked")
def masked(emitter: Emitter, node: Node) -> None:
    """Where."""
    zero = emitter.constant(f"{node.name}.zero", np.float32(0.0))
    emitter.result(node, "Where", [emitter.real_numbers(node.inputs[1]), emitter.real(node, 0), zero])


@emits("expand")
def expand(emitter: Emitter, node: Node) -> None:
    """Expand to the sizes of the result, of which the symbolic one is taken from the second operand."""
    like, sizes = node.inputs[1], node.output.type.shape
    unknown = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    parts: list[gs.Tensor] = []
    for axis, size in enumerate(sizes):
        if axis not in unknown:
            parts.append(emitter.constant(f"{node.name}.size", np.asarray([size], np.int64)))
            continue
        shape = emitter.compute(node, "Shape", [emitter.real_numbers(like)])
        place = emitter.constant(f"{node.name}.axis", np.asarray([like.type.shape.index(size)], np.int64))
        parts.append(emitter.compute(node, "Gather", [shape, place], axis=0))
    emitter.result(node, "Expand", [emitter.real(node, 0), emitter.compute(node, "Concat", parts, axis=0)])
