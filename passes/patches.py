"""What each output of a layer reads, so that the layer is a product of two matrices.

    layer(x)[position, channel] = rows[channel] . patches[position] + bias

A position is a pixel of an image, or a row of what a linear layer gets. A patch holds kernel positions first and, for
each of them, the input channels of a group: channels lie side by side in memory then, and are read in one go.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.ir.graph import Node
from qcompiler.ops.mac import pad_amounts
from qcompiler.ops.quantizers import leaf_tensor
from qcompiler.passes.equalization import by_channels, groups_of, is_transposed, leaf_of


def rows_of(node: Node, weight: Tensor) -> Tensor:
    """A weight, or something else in its shape, as [groups, outputs per group, K]."""
    return by_channels(node, weight).transpose(2, 3).flatten(2)


def weight_of(node: Node, rows: Tensor) -> Tensor:
    """The inverse of `rows_of`, in the shape of the weight of `node`."""
    weight = leaf_tensor(leaf_of(node.inputs[1]))
    groups, outputs, inputs, taps = by_channels(node, weight).shape
    split = rows.reshape(groups, outputs, taps, inputs).transpose(2, 3)
    return (split.transpose(1, 2) if is_transposed(node) else split).reshape(weight.shape)


def positions(node: Node, x: Tensor) -> int:
    """Number of positions of what the layer gives for the input `x`."""
    if node.op == "linear":
        return x.numel() // x.shape[-1]
    return len(x) * math.prod(_output_size(node, x))


def patches(node: Node, x: Tensor, chosen: Tensor) -> Tensor:
    """What some positions read.

    Args:
        node: A convolution, transposed or not, or a linear layer.
        x: Its input.
        chosen: int64 [S]: positions in the order N, D, H, W.

    Returns:
        [groups, S, K] in the type of `x`.
    """
    if node.op == "linear":
        return x.reshape(-1, x.shape[-1])[chosen].unsqueeze(0)
    size, groups = _output_size(node, x), groups_of(node)
    padded = _prepared(node, x)
    kernel, stride, dilation = _geometry(node)
    taps = torch.stack(torch.meshgrid(*(torch.arange(k) for k in kernel), indexing="ij")).flatten(1)  # [rank, T]
    if is_transposed(node):
        taps = torch.tensor(kernel).unsqueeze(1) - 1 - taps
    pixels = math.prod(size)
    at, place = (chosen // pixels).unsqueeze(1), (chosen % pixels).unsqueeze(1)
    for axis in range(len(size)):
        index = place // math.prod(size[axis + 1 :]) % size[axis]
        at = at * padded.shape[2 + axis] + index * stride[axis] + taps[axis] * dilation[axis]  # [S, T]
    pixelwise = padded.movedim(1, -1).reshape(-1, padded.shape[1])
    read = pixelwise[at.flatten()].reshape(len(chosen), taps.shape[1], groups, -1)
    return read.permute(2, 0, 1, 3).flatten(2)


def _output_size(node: Node, x: Tensor) -> list[int]:
    return [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(_prepared_size(node, x), *_geometry(node), strict=True)
    ]


def _geometry(node: Node) -> tuple[list[int], list[int], list[int]]:
    """Kernel, stride and dilation of the convolution over the prepared input."""
    kernel = [int(size) for size in leaf_tensor(leaf_of(node.inputs[1])).shape[2:]]
    stride, dilation = (list(cast("tuple[int, ...]", node.attributes[key])) for key in ("stride", "dilation"))
    return kernel, [1] * len(kernel) if is_transposed(node) else stride, dilation


def _padding(node: Node) -> tuple[list[int], list[int]]:
    """What is put around the input, or around the spread input of a transposed convolution, at both ends."""
    padding = cast("tuple[int, ...]", node.attributes["padding"])
    kernel, _, dilation = _geometry(node)
    if not is_transposed(node):
        return list(padding[: len(kernel)]), list(padding[len(kernel) :])
    extra = cast("tuple[int, ...]", node.attributes["output_padding"])
    begins = [d * (k - 1) - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return begins, [begin + more for begin, more in zip(begins, extra, strict=True)]


def _prepared_size(node: Node, x: Tensor) -> list[int]:
    begins, ends = _padding(node)
    steps = cast("tuple[int, ...]", node.attributes["stride"]) if is_transposed(node) else [1] * len(begins)
    sizes = zip(x.shape[2:], steps, begins, ends, strict=True)
    return [(size - 1) * step + 1 + begin + end for size, step, begin, end in sizes]


def _prepared(node: Node, x: Tensor) -> Tensor:
    """The input with its padding; that of a transposed convolution as an ordinary one reads it, zeros in between."""
    if is_transposed(node):
        stride = cast("tuple[int, ...]", node.attributes["stride"])
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
        x = spread
    begins, ends = _padding(node)
    return functional.pad(x, pad_amounts(begins, ends)) if any(begins) or any(ends) else x
