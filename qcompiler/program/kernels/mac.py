"""Kernels of layers: sums of products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qcompiler.errors import ArtifactError
from qcompiler.ir.table import Table
from qcompiler.program.arithmetic import Int
from qcompiler.program.kernels.call import (
    FLOAT32_EXACT,
    FLOAT64_EXACT,
    Array,
    Call,
    Kernels,
    Sums,
    largest_step,
    multiplier_of,
    steps_of,
)

kernel = Kernels()
sums: Table[Sums] = Table()


def _weight(call: Call, arrays: Sequence[Array]) -> Int:
    """The second operand with zero points removed, per tensor or per channel, times the factors of its blocks."""
    tensor = call.inputs[1]
    shape = [1] * arrays[1].ndim
    shape[tensor.axis or 0] = -1
    result: Int = arrays[1].astype(np.int64) - np.array(tensor.zero_point, np.int64).reshape(shape)
    block = call.get("block")
    if block is not None:
        channels, inputs = (0, 1) if (tensor.axis or 0) == 0 else (1, 0)
        rows = np.moveaxis(result, (channels, inputs), (0, 1))
        for begin in range(0, rows.shape[1], block):
            factor = arrays[-1][:, begin // block].astype(np.int64)
            rows[:, begin : begin + block] *= factor.reshape(-1, 1, *[1] * (rows.ndim - 2))
    return result


def _exact_type(weight: Int, largest: int, where: str) -> type[np.floating[Any]]:
    """The fastest float type in which every partial sum of weight x codes is exact. `weight`: [out, K]."""
    bound = int(np.abs(weight).sum(axis=1).max(initial=0)) * largest
    if bound < FLOAT32_EXACT:
        return np.float32
    if bound < FLOAT64_EXACT:
        return np.float64
    raise ArtifactError(f"partial sums can reach {bound}", where=where, expected=f"less than {FLOAT64_EXACT}")


def layer_multiplier(call: Call, arrays: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """Multiplier and exponent of a layer; block factors of the weight may follow the other operands."""
    if call.instruction.op in CONTRACTIONS:
        return multiplier_of(arrays, 2)
    return multiplier_of(arrays if call.get("block") is None else arrays[:-1], 3)


def layer_reach(call: Call, arrays: Sequence[Array]) -> tuple[int, int]:
    """Number of terms in each sum of a layer, bias included, and a bound on the sum of their magnitudes."""
    if call.instruction.op in CONTRACTIONS:
        terms = arrays[0].shape[-1]
        a, b = (int(np.abs(steps_of(call, arrays, i)).max(initial=0)) for i in range(2))
        return terms, terms * a * b
    weight, bias = _weight(call, arrays), np.abs(arrays[2].astype(np.int64))
    terms = weight.size // max(1, bias.size)
    largest = [int(np.abs(item).max(initial=0)) for item in (weight, steps_of(call, arrays, 0), bias)]
    return terms + 1, terms * largest[0] * largest[1] + largest[2]


@sums("int_conv1d", "int_conv2d", "int_conv3d")
def conv(call: Call, arrays: Sequence[Array]) -> Int:
    """Convolution over one to three axes: one matrix product per tap and group; depthwise by taps alone."""
    weight = _weight(call, arrays)
    out_channels, per_group, *kernel = weight.shape
    rank = len(kernel)
    groups, stride, dilation, padding = (call[name] for name in ("groups", "stride", "dilation", "padding"))
    dtype = _exact_type(weight.reshape(out_channels, -1), largest_step(call.inputs[0]), call.instruction.output)
    x = np.moveaxis(steps_of(call, arrays, 0).astype(dtype), 1, -1)
    x = np.pad(x, ((0, 0), *zip(padding[:rank], padding[rank:], strict=True), (0, 0)))
    sizes = [(x.shape[1 + i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(rank)]
    acc = np.zeros((x.shape[0], *sizes, out_channels), dtype)
    matrices = weight.astype(dtype)
    rows = out_channels // groups
    for tap in np.ndindex(*kernel):
        begins = [step * index for step, index in zip(dilation, tap, strict=True)]
        window = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(begins, stride, sizes, strict=True)]
        part, matrix = x[(slice(None), *window)], matrices[(slice(None), slice(None), *tap)]
        if per_group == 1 and out_channels == groups:
            acc += part * matrix[:, 0]
            continue
        for group in range(groups):
            channels = slice(group * per_group, (group + 1) * per_group)
            outputs = slice(group * rows, (group + 1) * rows)
            acc[..., outputs] += part[..., channels] @ matrix[outputs].T
    total: Int = acc.astype(np.int64) + arrays[2].astype(np.int64)
    return total


@sums("int_conv_transpose1d", "int_conv_transpose2d", "int_conv_transpose3d")
def conv_transpose(call: Call, arrays: Sequence[Array]) -> Int:
    """Transposed convolution over one to three axes: each tap adds a scaled copy of the input to the output."""
    weight = _weight(call, arrays)
    in_channels, per_group, *kernel = weight.shape
    groups, stride, dilation, padding, extra = (
        call[name] for name in ("groups", "stride", "dilation", "padding", "output_padding")
    )
    columns = weight.reshape(groups, in_channels // groups, per_group, -1).transpose(0, 2, 1, 3)
    dtype = _exact_type(columns.reshape(groups * per_group, -1), largest_step(call.inputs[0]), call.instruction.output)
    x = np.moveaxis(steps_of(call, arrays, 0).astype(dtype), 1, -1)
    matrices = weight.astype(dtype)
    # The full range of the taps; the padding is cropped afterwards.
    reach = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(x.shape[1:-1], stride, dilation, kernel, extra, strict=True)
    ]
    acc = np.zeros((x.shape[0], *reach, groups * per_group), dtype)
    for tap in np.ndindex(*kernel):
        begins = [step * index for step, index in zip(dilation, tap, strict=True)]
        window = [slice(b, b + s * (n - 1) + 1, s) for b, s, n in zip(begins, stride, x.shape[1:-1], strict=True)]
        matrix = matrices[(slice(None), slice(None), *tap)]
        for group in range(groups):
            inputs = slice(group * in_channels // groups, (group + 1) * in_channels // groups)
            outputs = slice(group * per_group, (group + 1) * per_group)
            acc[(slice(None), *window, outputs)] += x[..., inputs] @ matrix[inputs]
    inner = [slice(p, length - p) for p, length in zip(padding, reach, strict=True)]
    total: Int = acc[(slice(None), *inner)].astype(np.int64) + arrays[2].astype(np.int64)
    return total


@sums("int_linear")
def linear(call: Call, arrays: Sequence[Array]) -> Int:
    """x W^T."""
    weight = _weight(call, arrays)
    dtype = _exact_type(weight, largest_step(call.inputs[0]), call.instruction.output)
    acc = steps_of(call, arrays, 0).astype(dtype) @ weight.astype(dtype).T
    total: Int = acc.astype(np.int64) + arrays[2].astype(np.int64)
    return total


@sums("int_matmul")
def matmul(call: Call, arrays: Sequence[Array]) -> Int:
    """[..., m, k] times [..., k, n] over the last two axes, zero points removed."""
    bound = arrays[0].shape[-1] * largest_step(call.inputs[0]) * largest_step(call.inputs[1])
    if bound >= FLOAT64_EXACT:
        raise ArtifactError(
            f"partial sums can reach {bound}", where=call.instruction.output, expected=f"less than {FLOAT64_EXACT}"
        )
    dtype = np.float32 if bound < FLOAT32_EXACT else np.float64
    total: Int = (steps_of(call, arrays, 0).astype(dtype) @ steps_of(call, arrays, 1).astype(dtype)).astype(np.int64)
    return total


CONTRACTIONS = ("int_matmul",)
"""Products of two activations, which have neither weight nor bias."""


@kernel(*CONTRACTIONS, steps=(0, 1), requantizes=True)
def contraction(call: Call, arrays: Sequence[Array]) -> Array:
    """A product of two activations: its sums of products, requantized."""
    return call.requantize(sums[call.instruction.op](call, arrays), *layer_multiplier(call, arrays))


@kernel(*(name for name in sums if name not in CONTRACTIONS), steps=(0,), requantizes=True)
def layer(call: Call, arrays: Sequence[Array]) -> Array:
    """A layer: its sums of products, requantized."""
    total = sums[call.instruction.op](call, arrays)
    return channels_second(call, call.requantize(total, *layer_multiplier(call, arrays)))


def channels_second(call: Call, array: Array) -> Array:
    """The result of a layer, moved from channels last to logical order."""
    return array if call.instruction.op in ("int_linear", *CONTRACTIONS) else np.moveaxis(array, -1, 1)
