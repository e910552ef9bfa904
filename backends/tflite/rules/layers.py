"""Layers, products, averages and softmax in TensorFlow Lite."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.backends.tflite.schema import SAME, VALID
from qcompiler.backends.tflite.writer import CODES, NHWC, Rule, Writer
from qcompiler.errors import UnsupportedError
from qcompiler.ir.table import Table
from qcompiler.program.program import Instruction

emits: Table[Rule] = Table()


def _refused(item: Instruction, found: str, expected: str) -> UnsupportedError:
    return UnsupportedError(f"a TensorFlow Lite file has no {found}", where=item.where, expected=expected)


def _is_same(sizes: Sequence[int], kernel: Sequence[int], item: Instruction, padding: Sequence[int]) -> bool:
    """Whether a border is that which TensorFlow calls `same`: the result has the size / stride, the rest at the end."""
    half = len(padding) // 2
    for axis, (size, reach) in enumerate(zip(sizes, kernel, strict=True)):
        stride = item.integers("stride")[axis]
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        if (padding[axis], padding[half + axis]) != (total // 2, total - total // 2):
            return False
    return True


def _bordered(writer: Writer, item: Instruction, name: str, padding: Sequence[int], value: int) -> int:
    """An image with a border of one code."""
    place, tensor = writer.stored(name), writer.declared(name)
    if not any(padding):
        return place
    top, left, bottom, right = padding
    n, height, width, channels = writer.shape(place)
    result = writer.new(
        f"{name}.bordered", tensor.dtype, (n, height + top + bottom, width + left + right, channels), tensor
    )
    amounts = writer.constant("border", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32))
    code = writer.constant(f"{name}.border", np.array(value, CODES[tensor.dtype]), tensor)
    writer.operator("PADV2", [place, amounts, code], [result], "PadV2Options")
    return result


@emits("int_conv2d")
def conv2d(writer: Writer, item: Instruction) -> None:
    """A convolution: depthwise, or with groups, which have fewer channels in the weight."""
    name, weight_name, bias_name = item.inputs[:3]
    x, tensor = writer.declared(name), writer.declared(weight_name)
    weight = writer.files.logical(weight_name)  # [out, in / groups, h, w]
    stride, dilation, groups = item.integers("stride"), item.integers("dilation"), item.integer("groups")
    if item.attributes.get("block") is not None:
        raise _refused(item, "weights with factors of blocks", "one scale per channel")
    reach = [(size - 1) * step + 1 for size, step in zip(weight.shape[2:], dilation, strict=True)]
    padding = item.integers("padding")
    same = any(padding) and _is_same(x.shape[2:], reach, item, padding)
    source = writer.stored(name) if same else _bordered(writer, item, name, padding, x.zero_point[0])
    bias = writer.constant(bias_name, writer.files.logical(bias_name), writer.declared(bias_name))
    fields = {
        "padding": SAME if same else VALID,
        "stride_w": stride[1],
        "stride_h": stride[0],
        "dilation_w": dilation[1],
        "dilation_h": dilation[0],
    }
    depthwise = groups > 1 and weight.shape[1] == 1 and groups == x.shape[1]
    if depthwise:
        stored = weight.transpose(1, 2, 3, 0)
        held = writer.constant(weight_name, stored, tensor, axis=3)

        def emit(result: int, activation: int) -> None:
            writer.operator(
                "DEPTHWISE_CONV_2D",
                [source, held, bias],
                [result],
                "DepthwiseConv2DOptions",
                multiplier=weight.shape[0] // groups,
                activation=activation,
                **fields,
            )
    else:
        held = writer.constant(weight_name, weight.transpose(0, 2, 3, 1), tensor)

        def emit(result: int, activation: int) -> None:
            writer.operator("CONV_2D", [source, held, bias], [result], "Conv2DOptions", activation=activation, **fields)

    writer.limited(item, emit)


@emits("int_linear")
def linear(writer: Writer, item: Instruction) -> None:
    """A linear layer over the last axis."""
    name, weight_name, bias_name = item.inputs[:3]
    if item.attributes.get("block") is not None:
        raise _refused(item, "weights with factors of blocks", "one scale per channel")
    weight, rank = writer.files.logical(weight_name), len(writer.declared(name).shape)
    held = writer.constant(weight_name, weight, writer.declared(weight_name))
    bias = writer.constant(bias_name, writer.files.logical(bias_name), writer.declared(bias_name))
    source = writer.logical(name)

    def emit(result: int, activation: int) -> None:
        writer.operator(
            "FULLY_CONNECTED",
            [source, held, bias],
            [result],
            "FullyConnectedOptions",
            activation=activation,
            keep_axes=rank != 2,
        )

    if rank != 4:
        writer.limited(item, emit)
        return
    tensor = writer.declared(item.output)
    result = writer.new(f"{item.output}.nchw", tensor.dtype, tensor.shape, tensor)
    emit(result, 0)
    stored = writer.transposed(result, NHWC, f"{item.output}.free", tensor)
    writer.clamped(item, stored, item.attributes.get("qmin", -128), item.attributes.get("qmax", 127))


@emits("int_matmul")
def matmul(writer: Writer, item: Instruction) -> None:
    """A product of two activations."""
    tensor = writer.declared(item.output)
    result = writer.new(item.output, tensor.dtype, tensor.shape, tensor)
    sources = [writer.logical(name) for name in item.inputs[:2]]
    writer.operator("BATCH_MATMUL", sources, [result], "BatchMatMulOptions", transpose_a=False, transpose_b=False)
    _finished(writer, item, result)


def _finished(writer: Writer, item: Instruction, result: int) -> None:
    """Limits and order of axes of a result in logical order."""
    tensor = writer.declared(item.output)
    stored = result if len(tensor.shape) != 4 else writer.transposed(result, NHWC, f"{item.output}.free", tensor)
    writer.clamped(item, stored, item.attributes.get("qmin", -128), item.attributes.get("qmax", 127))


@emits("int_softmax")
def softmax(writer: Writer, item: Instruction) -> None:
    """A softmax without a mask along the last axis."""
    if len(item.inputs) > 2:
        raise _refused(item, "softmax with a mask", "no mask")
    tensor, rank = writer.declared(item.output), len(writer.declared(item.output).shape)
    if item.integer("axis") % rank != rank - 1:
        raise _refused(item, "softmax along another axis than the last", "the last axis")
    result = writer.new(item.output, tensor.dtype, tensor.shape, tensor)
    writer.operator("SOFTMAX", [writer.logical(item.inputs[0])], [result], "SoftmaxOptions", beta=1.0)
    _finished(writer, item, result)


@emits("int_mean")
def mean(writer: Writer, item: Instruction) -> None:
    """A mean over whole axes."""
    name = item.inputs[0]
    rank = len(writer.declared(name).shape)
    axes = [NHWC.index(axis % rank) if rank == 4 else axis % rank for axis in item.integers("axes")]
    keep = bool(item.attributes["keepdim"])
    if rank == 4 and not keep and len(axes) < 2:
        raise _refused(item, "mean over one axis of an image that removes it", "keepdim, or a mean over the image")

    def emit(result: int, activation: int) -> None:
        del activation
        writer.operator(
            "MEAN", [writer.stored(name), writer.numbers(sorted(axes))], [result], "ReducerOptions", keep_axes=keep
        )

    writer.limited(item, emit, fused=False)


@emits("int_avg_pool2d")
def average_pool(writer: Writer, item: Instruction) -> None:
    """A mean of windows, whose border does not count."""
    name = item.inputs[0]
    kernel, stride, padding = item.integers("kernel"), item.integers("stride"), item.integers("padding")
    sizes = writer.declared(name).shape[2:]
    same = any(padding) and _is_same(sizes, kernel, item, _both(padding))
    if any(padding) and (not same or item.attributes["count_include_pad"]):
        raise _refused(item, "average whose border counts", "no padding")
    if item.attributes.get("divisor_override"):
        raise _refused(item, "average with another divisor", "the number of elements")
    _check_whole(writer, item, kernel, stride, same=same)

    def emit(result: int, activation: int) -> None:
        writer.operator(
            "AVERAGE_POOL_2D",
            [writer.stored(name)],
            [result],
            "Pool2DOptions",
            padding=SAME if same else VALID,
            stride_w=stride[1],
            stride_h=stride[0],
            width=kernel[1],
            height=kernel[0],
            activation=activation,
        )

    writer.limited(item, emit)


def _both(padding: Sequence[int]) -> tuple[int, ...]:
    return (*padding, *padding)[:4]


def _check_whole(
    writer: Writer, item: Instruction, kernel: Sequence[int], stride: Sequence[int], *, same: bool
) -> None:
    """Refuse windows that reach beyond the image, as `ceil_mode` has them."""
    if same:
        return
    sizes, results = writer.declared(item.inputs[0]).shape[2:], writer.declared(item.output).shape[2:]
    for size, out, reach, step in zip(sizes, results, kernel, stride, strict=True):
        if (out - 1) * step + reach > size:
            raise _refused(item, "average over a part of a window", "ceil_mode=False")


@emits("max_pool2d")
def max_pool(writer: Writer, item: Instruction) -> None:
    """A maximum of windows; the border is the lowest code."""
    name = item.inputs[0]
    kernel, stride, dilation = item.integers("kernel"), item.integers("stride"), item.integers("dilation")
    if tuple(dilation) != (1, 1):
        raise _refused(item, "maximum of windows with gaps", "dilation=1")
    top, left, *_ = item.integers("padding")
    sizes, results = writer.declared(name).shape[2:], writer.declared(item.output).shape[2:]
    below = [
        max(0, (out - 1) * step + reach - size - before)
        for size, out, reach, step, before in zip(sizes, results, kernel, stride, (top, left), strict=True)
    ]
    source = _bordered(writer, item, name, (top, left, *below), -128)
    writer.operator(
        "MAX_POOL_2D",
        [source],
        [writer.result(item)],
        "Pool2DOptions",
        padding=VALID,
        stride_w=stride[1],
        stride_h=stride[0],
        width=kernel[1],
        height=kernel[0],
        activation=0,
    )
