"""Windows as rows or channels, and back: unfold and fold."""

from __future__ import annotations

import torch

from qcompiler.frontends.builder import Builder, Operand
from qcompiler.frontends.rules_indexing import picked
from qcompiler.frontends.table import Ints, as_tuple, axis_of, rule
from qcompiler.frontends.trace import Leaf
from qcompiler.ir.dims import Dim, as_dim
from qcompiler.ir.graph import Value


@rule("unfold")
def _unfold(b: Builder, input: Operand, *arguments: object, **keywords: object) -> Operand:
    """`x.unfold(dimension, size, step)` adds an axis; `functional.unfold(x, kernel, ...)` does not."""
    rule = _windows_of_axis if len(b.shape) == input.type.rank + 1 else _columns
    return rule(b, input, *arguments, **keywords)  # type: ignore[arg-type]


def _windows_of_axis(b: Builder, input: Operand, dimension: int, size: int, step: int) -> Operand:
    axis, shape = axis_of(input, dimension), input.type.shape
    length = shape[axis]
    if not isinstance(length, int):
        raise b.unsupported("unfold along the batch", "Use an axis of fixed size.")
    count = (length - size) // step + 1
    indices = [window * step + tap for window in range(count) for tap in range(size)]
    apart = b.node("reshape", [picked(b, input, axis, indices)], shape=(*shape[:axis], count, size, *shape[axis + 1 :]))
    order = [place for place in range(len(shape) + 1) if place != axis + 1]
    return b.node("permute", [apart], axes=(*order, axis + 1))


@rule("im2col")
def _columns(
    b: Builder, input: Operand, kernel_size: Ints, dilation: Ints = 1, padding: Ints = 0, stride: Ints = 1
) -> Operand:
    """[N, C, H, W] as [N, C kh kw, windows]: rows and columns of all windows, each picked along its axis."""
    if input.type.rank != 4:
        raise b.unsupported(f"unfold of a tensor with {input.type.rank} axes", "Add the axis of the batch.")
    kernels, dilations, pads, strides = (as_tuple(item, 2) for item in (kernel_size, dilation, padding, stride))
    result = input
    if any(pads):
        result = b.node("pad", [input], pad=(0, 0, *pads, 0, 0, *pads), value=0.0)
    counts = []
    for axis in (2, 3):
        size, k, d, s = result.type.shape[axis], kernels[axis - 2], dilations[axis - 2], strides[axis - 2]
        if not isinstance(size, int):
            raise b.unsupported("unfold along an axis of symbolic size", "Use images of fixed size.")
        count = (size - d * (k - 1) - 1) // s + 1
        result = picked(b, result, axis, [tap * d + window * s for tap in range(k) for window in range(count)])
        counts.append(count)
    batch, channels = input.type.shape[:2]
    split: tuple[Dim, ...] = (batch, channels, kernels[0], counts[0], kernels[1], counts[1])
    moved = b.node("permute", [b.node("reshape", [result], shape=split)], axes=(0, 1, 2, 4, 3, 5))
    rows = as_dim(channels * kernels[0] * kernels[1])
    return b.node("reshape", [moved], shape=(batch, rows, counts[0] * counts[1]))


@rule("fold", "col2im")
def _fold(
    b: Builder,
    input: Operand,
    output_size: Ints,
    kernel_size: Ints,
    dilation: Ints = 1,
    padding: Ints = 0,
    stride: Ints = 1,
) -> Value:
    """[N, C kh kw, windows] as [N, C, H, W], a transposed convolution with one weight of 1 for each tap."""
    sizes, kernels, dilations, pads, strides = (
        as_tuple(item, 2) for item in (output_size, kernel_size, dilation, padding, stride)
    )
    if input.type.rank != 3 or not isinstance(input.type.shape[1], int):
        raise b.unsupported(f"fold of a tensor with {input.type.rank} axes", "Add the axis of the batch.")
    spans = list(zip(sizes, pads, dilations, kernels, strides, strict=True))
    counts = [(size + 2 * pad - d * (k - 1) - 1) // s + 1 for size, pad, d, k, s in spans]
    extra = [(size + 2 * pad - d * (k - 1) - 1) % s for size, pad, d, k, s in spans]
    taps = kernels[0] * kernels[1]
    image = b.node("reshape", [input], shape=(*input.type.shape[:2], *counts))
    weight = torch.eye(taps, device=b.device).reshape(taps, 1, *kernels).repeat(input.type.shape[1] // taps, 1, 1, 1)
    return b.node(
        "conv_transpose2d",
        [image, Leaf("constant", "", weight)],
        stride=strides,
        padding=pads,
        output_padding=tuple(extra),
        dilation=dilations,
        groups=input.type.shape[1] // taps,
    )
