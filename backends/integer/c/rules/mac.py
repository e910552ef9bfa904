"""Convolutions and linear layers in C: which kernel, how its weights are packed, which accumulator.

The kernel of a call is chosen by `_conv`, `_linear` and `_conv_transpose`; the packing of the weights belongs to the
kernel. A faster kernel for one machine is one more choice there, and one more template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompiler.backends.integer.c.layer import Int, Mac
from qcompiler.backends.integer.c.text import Value, sizes
from qcompiler.backends.integer.c.writer import Rule, Step, Writer
from qcompiler.ir.table import Table
from qcompiler.program.kernels import Call

emits: Table[Rule] = Table()


@emits("int_conv1d", "int_conv2d", "int_conv3d")
def conv(writer: Writer, step: Step) -> None:
    """`int_conv1d`, `int_conv2d`, `int_conv3d`."""
    layer = Mac(writer, step)
    call, (_, channels, *size) = layer.call, layer.call.inputs[0].shape
    if len(size) != 2 or writer.layout != "NHWC":
        _channels_first(layer, call.inputs[0].shape[0], size, list(call.output.shape[2:]))
    elif layer.weight.shape[1] == 1 and channels == layer.channels > 1:
        _depthwise(layer)
    else:
        _channels_last(layer)


@emits("int_conv_transpose1d", "int_conv_transpose2d", "int_conv_transpose3d")
def conv_transpose(writer: Writer, step: Step) -> None:
    """`int_conv_transpose1d` to `3d`."""
    layer = Mac(writer, step, transposed=True)
    call, types = layer.call, layer.types(folded=False)
    x, y = call.inputs[0].shape, call.output.shape
    rank = len(x) - 2

    def three(values: Sequence[int], default: int) -> list[int]:
        return [default] * (3 - rank) + [int(value) for value in values]

    members: dict[str, Value] = {
        "batch": x[0],
        "channels": x[1],
        "out_channels": layer.channels,
        "size": three(x[2:], 1),
        "out_size": three(y[2:], 1),
        "kernel": three(layer.weight.shape[2:], 1),
        "stride": three(call["stride"], 1),
        "dilation": three(call["dilation"], 1),
        "padding": three(call["padding"], 0),
        "groups": int(call["groups"]),
        "zero_point": call.zero_point(0),
    }
    for letter, tensor in (("x", step.item.inputs[0]), ("y", step.item.output)):
        distances = writer.steps(tensor)
        members |= {f"{letter}_image": distances[0], f"{letter}_channel": distances[1]}
        members[f"{letter}_step"] = three(distances[2:], 0)
    packed = np.moveaxis(layer.weight, 1, -1)
    members |= {"weight": layer.weights(packed, types, "[out][kernel][in]"), "bias": layer.biases(types, folded=False)}
    if _of_bytes(types):
        # Each phase of the stride has its own panels, with a part of the taps of the kernel.
        panels, places = -(-layer.channels // _PANEL), math.prod(int(size) for size in call["stride"])
        size = panels * _PANEL * layer.weight[0].size
        layer.finish("conv_transpose_bytes", types, members, panels=(panels * places, size))
    else:
        layer.finish("conv_transpose", types, members)


@emits("int_linear")
def linear(writer: Writer, step: Step) -> None:
    """`int_linear`: over the last axis, which is not the innermost one in memory where four axes are an image."""
    layer = Mac(writer, step)
    shape = layer.call.inputs[0].shape
    if len(shape) == 4 and writer.layout == "NHWC" and shape[1] > 1:
        # [a, b, c, in] is stored as [a][c][in][b]: one product for each a and c, over columns b.
        _channels_first(layer, shape[0] * shape[2], [shape[1]], [shape[1]])
        return
    types = layer.types(folded=True)
    layer.finish(
        "linear_bytes" if _of_bytes(types) else "linear",
        types,
        {
            "rows": math.prod(shape[:-1]),
            "inputs": shape[-1],
            "outputs": layer.channels,
            "weight": layer.weights(layer.weight, types, f"{sizes(layer.weight.shape)}"),
            "bias": layer.biases(types, folded=True),
        },
    )


def _window(call: Call) -> dict[str, Value]:
    """Members for the position of a two-dimensional window on the image."""
    x, y = call.inputs[0].shape, call.output.shape
    stride, dilation, padding = call["stride"], call["dilation"], call["padding"]
    return {
        "batch": x[0],
        "height": x[2],
        "width": x[3],
        "channels": x[1],
        "out_height": y[2],
        "out_width": y[3],
        "stride_y": stride[0],
        "stride_x": stride[1],
        "dilation_y": dilation[0],
        "dilation_x": dilation[1],
        "top": padding[0],
        "left": padding[1],
    }


def _channels_last(layer: Mac) -> None:
    call, types = layer.call, layer.types(folded=True)
    _, depth, height, width = layer.weight.shape
    x = call.inputs[0]
    outside: Value = "0"
    if any(call["padding"]):
        row = np.full(depth, x.zero_point[0], np.int64)
        note = f"what %{layer.item.output} reads outside of its input"
        outside = layer.writer.constant(f"{layer.item.output}.outside", row, types["X"], note)
    members: dict[str, Value] = {
        **_window(call),
        "out_channels": layer.channels,
        "kernel_height": height,
        "kernel_width": width,
        "groups": int(call["groups"]),
        "weight": layer.weights(layer.weight.transpose(0, 2, 3, 1), types, "[out][height][width][in]"),
        "bias": layer.biases(types, folded=True),
        "outside": outside,
    }
    if _of_bytes(types):
        groups = int(call["groups"])
        panels = groups * -(-(layer.channels // groups) // _PANEL)
        layer.finish(
            "conv_bytes", types, members, panels=(panels, panels * _PANEL * height * -(-width * depth // 4) * 4)
        )
    else:
        layer.finish("conv_channels_last", types, members)


def _of_bytes(types: dict[str, str]) -> bool:
    codes = ("int8_t", "uint8_t")
    return types["X"] in codes and types["Y"] in codes and types["W"] == "int8_t" and types["ACC"] == "int32_t"


_PANEL = 32
"""Output channels that `conv_bytes` computes at once, on the machine with the most."""


def _depthwise(layer: Mac) -> None:
    types = layer.types(folded=False)
    layer.finish(
        "depthwise_bytes" if _of_bytes(types) else "depthwise_channels_last",
        types,
        {
            **_window(layer.call),
            "kernel_height": layer.weight.shape[2],
            "kernel_width": layer.weight.shape[3],
            "zero_point": layer.call.zero_point(0),
            "weight": layer.weights(layer.weight[:, 0].transpose(1, 2, 0), types, "[height][width][channel]"),
            "bias": layer.biases(types, folded=False),
        },
    )


def _channels_first(layer: Mac, batch: int, size: Sequence[int], out_size: Sequence[int]) -> None:
    """Over up to three axes; pixels that nothing joins are one axis."""
    call, types = layer.call, layer.types(folded=False)
    kernel = layer.weight.shape[2:]
    rank = len(size)

    def over(name: str, default: int) -> list[int]:
        value = call.get(name)
        return [default] * rank if value is None else [int(item) for item in value][:rank]

    stride, dilation, padding = over("stride", 1), over("dilation", 1), over("padding", 0)
    if math.prod(kernel) == 1 and not any(padding) and set(stride) <= {1} and list(size) == list(out_size):
        size, out_size, kernel = [math.prod(size)], [math.prod(size)], (1,)
        stride, dilation, padding = [1], [1], [0]

    def three(values: Sequence[int], default: int) -> list[int]:
        return [default] * (3 - len(values)) + list(values)

    groups = int(call.get("groups") or 1)
    if layer.channels // groups < _BLOCK // 2:
        template, packed, order = "conv_channels_first", layer.weight, "[out][in][kernel]"
    else:
        template, packed, order = "conv_channels_first_blocks", _blocks(layer, groups), "[out / 16][kernel][in][16]"
    layer.finish(
        template,
        types,
        {
            "batch": batch,
            "channels": layer.weight.shape[1] * groups,
            "out_channels": layer.channels,
            "size": three(size, 1),
            "out_size": three(out_size, 1),
            "kernel": three(kernel, 1),
            "stride": three(stride, 1),
            "dilation": three(dilation, 1),
            "padding": three(padding, 0),
            "groups": groups,
            "zero_point": call.zero_point(0),
            "weight": layer.weights(packed, types, order),
            "bias": layer.biases(types, folded=False),
        },
    )


_BLOCK = 16
"""Output channels that `conv_channels_first_blocks` computes side by side; few of them are faster row by row."""


def _blocks(layer: Mac, groups: int) -> Int:
    """[out, in, kernel...] to [groups, blocks, kernel, in, 16], the last block of a group filled up with zeros."""
    rows, inputs = layer.channels // groups, layer.weight.shape[1]
    blocks = -(-rows // _BLOCK)
    split = layer.weight.reshape(groups, rows, inputs, -1)
    padded = np.pad(split, ((0, 0), (0, blocks * _BLOCK - rows), (0, 0), (0, 0)))
    return padded.reshape(groups, blocks, _BLOCK, inputs, -1).transpose(0, 1, 4, 3, 2)
