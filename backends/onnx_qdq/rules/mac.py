"""Layers in ONNX: sums of products with their bias."""

from __future__ import annotations

import numpy as np

from qcompiler.backends.onnx_qdq.emitter import Emitter, Rule
from qcompiler.errors import UnsupportedError
from qcompiler.ir.graph import Node
from qcompiler.ir.table import Table

emits: Table[Rule] = Table()


@emits("int_conv1d", "int_conv2d", "int_conv3d")
def conv(emitter: Emitter, node: Node) -> None:
    """A convolution."""
    operands = [emitter.real(node, index) for index in range(3)]
    padding = emitter.ints(node, "padding")
    attributes = {
        "strides": emitter.ints(node, "stride"),
        "pads": padding,
        "dilations": emitter.ints(node, "dilation"),
        "group": node.integer("groups"),
        "kernel_shape": [int(size) for size in node.inputs[1].type.shape[2:]],
    }
    rank = len(node.inputs[1].type.shape) - 2
    emitter.quantized(node, emitter.biased(node, "Conv", operands, rank, **attributes))


@emits("int_conv_transpose1d", "int_conv_transpose2d", "int_conv_transpose3d")
def conv_transpose(emitter: Emitter, node: Node) -> None:
    """A transposed convolution."""
    operands = [emitter.real(node, index) for index in range(3)]
    stride, padding, extra = (emitter.ints(node, key) for key in ("stride", "padding", "output_padding"))
    # Less padding at the end also enlarges the output; ONNX Runtime accepts output_padding only below the stride.
    ends = [max(pad - more, 0) for pad, more in zip(padding, extra, strict=True)]
    rest = [max(more - pad, 0) for pad, more in zip(padding, extra, strict=True)]
    if any(more >= step for more, step in zip(rest, stride, strict=True)):
        raise UnsupportedError(
            f"a transposed convolution with stride {stride}, padding {padding} and output_padding {extra}",
            where=node.where,
            expected="output_padding less than stride + padding",
        )
    attributes = {
        "strides": stride,
        "pads": padding + ends,
        "output_padding": rest,
        "dilations": emitter.ints(node, "dilation"),
        "group": node.integer("groups"),
        "kernel_shape": [int(size) for size in node.inputs[1].type.shape[2:]],
    }
    rank = len(node.inputs[1].type.shape) - 2
    emitter.quantized(node, emitter.biased(node, "ConvTranspose", operands, rank, **attributes))


@emits("int_linear")
def linear(emitter: Emitter, node: Node) -> None:
    """A Gemm, between reshapes for more than two axes."""
    x, weight, bias = (emitter.real(node, index) for index in range(3))
    if node.inputs[0].type.rank == 2:
        emitter.quantized(node, emitter.biased(node, "Gemm", [x, weight, bias], 0, transB=1))
        return
    # Gemm accepts matrices. ONNX Runtime moves the reshapes and still multiplies integers.
    rows = emitter.constant(f"{node.name}.rows", np.asarray([-1, node.inputs[0].type.shape[-1]], np.int64))
    matrix = emitter.compute(node, "Reshape", [x, rows])
    product = emitter.biased(node, "Gemm", [matrix, weight, bias], 0, transB=1)
    emitter.quantized(node, emitter.compute(node, "Reshape", [product, emitter.sizes(node)]))


@emits("int_matmul")
def matmul(emitter: Emitter, node: Node) -> None:
    """A MatMul of two activations; a factor is in the scale with which the first is read."""
    operands = [emitter.real(node, 0, factor=node.number("factor")), emitter.real(node, 1)]
    emitter.quantized(node, emitter.compute(node, "MatMul", operands))
