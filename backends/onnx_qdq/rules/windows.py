"""Padding with which ONNX has the same number of windows as torch."""

from __future__ import annotations

from qcompiler.backends.onnx_qdq.emitter import Emitter
from qcompiler.ir.graph import Node


def window_ends(emitter: Emitter, node: Node) -> list[int]:
    """Padding at the end of each axis with which the number of windows equals torch's, which may be rounded up."""
    ends = []
    dilation = emitter.ints(node, "dilation") if "dilation" in node.attributes else [1, 1]
    for axis in range(2):
        size, count = node.inputs[0].type.shape[2 + axis], node.output.type.shape[2 + axis]
        stride, begin = emitter.ints(node, "stride")[axis], emitter.ints(node, "padding")[axis]
        if not isinstance(size, int) or not isinstance(count, int):
            ends.append(begin)
            continue
        span = dilation[axis] * (emitter.ints(node, "kernel")[axis] - 1) + 1
        ends.append(max(0, (count - 1) * stride + span - begin - size))
    return ends
