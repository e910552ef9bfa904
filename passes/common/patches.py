"""Input patches of each output of a layer, which make the layer a product of two matrices.

    layer(x)[position, channel] = rows[channel] . patches[position] + bias

A position is a pixel of an image, or a row of the input of a linear layer. A patch is ordered by kernel position and
then by input channel of a group, so that the channels are contiguous in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.ir.graph import Node
from qcompiler.ops.layers import Layer
from qcompiler.ops.mac import pad_amounts


def rows_of(node: Node, weight: Tensor) -> Tensor:
    """A weight, or another tensor of its shape, as [groups, outputs per group, K]."""
    return Layer(node).rows(weight).transpose(2, 3).flatten(2)


def weight_of(node: Node, rows: Tensor) -> Tensor:
    """The inverse of `rows_of`, in the shape of the weight of `node`."""
    layer = Layer(node)
    groups, outputs, inputs, taps = layer.rows().shape
    return layer.from_rows(rows.reshape(groups, outputs, taps, inputs).transpose(2, 3))


def positions(node: Node, x: Tensor) -> int:
    """Number of positions of the layer's result for the input `x`."""
    if Layer(node).is_linear:
        return x.numel() // x.shape[-1]
    return len(x) * math.prod(_output_size(node, x))


def patches(node: Node, x: Tensor, chosen: Tensor) -> Tensor:
    """The input patches of some positions.

    Args:
        node: A convolution, transposed or not, or a linear layer.
        x: Input of the layer.
        chosen: int64 [S]: positions in the order N, D, H, W.

    Returns:
        [groups, S, K] in the type of `x`.
    """
    if Layer(node).is_linear:
        return x.reshape(-1, x.shape[-1])[chosen].unsqueeze(0)
    size, groups = _output_size(node, x), Layer(node).groups
    padded = _prepared(node, x)
    kernel, stride, dilation = _geometry(node)
    taps = torch.stack(torch.meshgrid(*(torch.arange(k) for k in kernel), indexing="ij")).flatten(1)  # [rank, T]
    if Layer(node).transposed:
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
    layer = Layer(node)
    steps = [1] * len(layer.kernel) if layer.transposed else list(layer.stride)
    return list(layer.kernel), steps, list(layer.dilation)


def _padding(node: Node) -> tuple[list[int], list[int]]:
    """The padding at both ends of the input, or of the spread input of a transposed convolution."""
    padding = Layer(node).padding
    kernel, _, dilation = _geometry(node)
    if not Layer(node).transposed:
        return list(padding[: len(kernel)]), list(padding[len(kernel) :])
    extra = node.integers("output_padding")
    begins = [d * (k - 1) - p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return begins, [begin + more for begin, more in zip(begins, extra, strict=True)]


def _prepared_size(node: Node, x: Tensor) -> list[int]:
    begins, ends = _padding(node)
    steps = Layer(node).stride if Layer(node).transposed else [1] * len(begins)
    sizes = zip(x.shape[2:], steps, begins, ends, strict=True)
    return [(size - 1) * step + 1 + begin + end for size, step, begin, end in sizes]


def _prepared(node: Node, x: Tensor) -> Tensor:
    """The padded input; for a transposed convolution with zeros in between, as an ordinary convolution reads it."""
    if Layer(node).transposed:
        stride = Layer(node).stride
        sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *sizes)
        spread[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
        x = spread
    begins, ends = _padding(node)
    return functional.pad(x, pad_amounts(begins, ends)) if any(begins) or any(ends) else x
