"""Means over axes and windows in ONNX, which counts averages and sizes differently from torch."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import onnx_graphsurgeon as gs

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.backends.onnx_qdq.leaves import leaf_array
from qcompiler.backends.onnx_qdq.rules.windows import window_ends
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table
from qcompiler.ops.integer import window_counts

emits: Table[Rule] = Table()


@emits("int_mean")
def mean(emitter: Emitter, node: Node) -> None:
    """GlobalAveragePool, or ReduceMean."""
    axes = emitter.ints(node, "axes")
    x = emitter.real(node, 0)
    if axes == [2, 3] and node.inputs[0].type.rank == 4 and node.attributes["keepdim"]:
        emitter.quantized(node, emitter.compute(node, "GlobalAveragePool", [x]))
        return
    emitter.quantized(node, emitter.mean_over(node, x, axes, node.flag("keepdim")))


@emits("int_avg_pool2d")
def avg_pool2d(emitter: Emitter, node: Node) -> None:
    """Means of windows, counted as torch does."""
    if node.attributes["divisor_override"] is not None or node.attributes["ceil_mode"]:
        emitter.quantized(node, _window_sums(emitter, node))
        return
    pooled = emitter.compute(
        node,
        "AveragePool",
        [emitter.real(node, 0)],
        kernel_shape=emitter.ints(node, "kernel"),
        strides=emitter.ints(node, "stride"),
        pads=emitter.ints(node, "padding") * 2,
        count_include_pad=int(node.flag("count_include_pad")),
    )
    emitter.quantized(node, pooled)


@emits("int_resample2d")
def resample2d(emitter: Emitter, node: Node) -> None:
    """Adaptive pooling, or a resized image."""
    x = emitter.real(node, 0)
    if node.attributes["function"] == "adaptive_avg_pool2d":
        rows, columns = (leaf_array(value).astype(np.float64) for value in node.inputs[1:3])
        left, right = (
            emitter.constant(f"{node.name}.{name}", (weights / weights.sum(1, keepdims=True)).astype(np.float32))
            for name, weights in (("rows", rows), ("columns", columns))
        )
        # Not MatMul: ONNX Runtime would quantize its constant operand.
        emitter.quantized(node, emitter.compute(node, "Einsum", [left, x, right], equation="ih,nchw,jw->ncij"))
        return
    mode, corners = cast("tuple[str, bool]", node.attributes["parameters"])
    # The batch is unknown, and float32 factors may lose a pixel, so the sizes are computed at run time.
    shape = emitter.compute(node, "Shape", [x])
    bounds = [emitter.constant(f"{node.name}.bound", np.asarray([bound], np.int64)) for bound in (0, 2)]
    outer = emitter.compute(node, "Slice", [shape, *bounds])
    inner = emitter.constant(f"{node.name}.size", np.asarray(node.output.type.shape[2:], np.int64))
    sizes = emitter.compute(node, "Concat", [outer, inner], axis=0)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    linear = {"mode": "linear", "coordinate_transformation_mode": "align_corners" if corners else "half_pixel"}
    operands = [x, gs.Variable.empty(), gs.Variable.empty(), sizes]
    emitter.quantized(node, emitter.compute(node, "Resize", operands, **(nearest if mode == "nearest" else linear)))


def _window_sums(emitter: Emitter, node: Node) -> gs.Tensor:
    """Averages that ONNX counts differently: means of whole windows over a border of zeros, each times a factor."""
    kernel, stride = emitter.ints(node, "kernel"), emitter.ints(node, "stride")
    height, width = node.inputs[0].type.shape[2:]
    if not isinstance(height, int) or not isinstance(width, int):
        raise UnsupportedError("average pooling with divisor_override of images of any size", where=node.where)
    begins, ends = emitter.ints(node, "padding"), window_ends(emitter, node)
    amounts = emitter.constant(f"{node.name}.pads", np.asarray([0, 0, *begins, 0, 0, *ends], np.int64))
    bordered = emitter.compute(node, "Pad", [emitter.real(node, 0), amounts])
    means = emitter.compute(node, "AveragePool", [bordered], kernel_shape=kernel, strides=stride)
    counts = window_counts((height, width), node.attributes).numpy()
    factors = (math.prod(kernel) / counts.astype(np.float64)).astype(np.float32)
    factor = emitter.constant(f"{node.name}.factor", factors.reshape(1, 1, *factors.shape[-2:]))
    return emitter.compute(node, "Mul", [means, factor])
