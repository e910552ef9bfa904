"""Kernels that move codes unchanged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.program.kernels.call import Array, Call, Kernels

kernel = Kernels()


@kernel("max_pool2d", moves=True)
def max_pool2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Largest code of each window; padding is never selected."""
    x = arrays[0]
    out_h, out_w = call.output.shape[2:]
    (kernel_h, kernel_w), (stride_h, stride_w), (pad_h, pad_w) = call["kernel"], call["stride"], call["padding"]
    step_h, step_w = call["dilation"]
    need_h = stride_h * (out_h - 1) + step_h * (kernel_h - 1) + 1 - x.shape[2] - pad_h
    need_w = stride_w * (out_w - 1) + step_w * (kernel_w - 1) + 1 - x.shape[3] - pad_w
    lowest = np.iinfo(x.dtype).min
    x = np.pad(x, ((0, 0), (0, 0), (pad_h, max(need_h, 0)), (pad_w, max(need_w, 0))), constant_values=lowest)
    result = np.full((*x.shape[:2], out_h, out_w), lowest, x.dtype)
    for i in range(0, step_h * kernel_h, step_h):
        for j in range(0, step_w * kernel_w, step_w):
            part = x[:, :, i : i + stride_h * (out_h - 1) + 1 : stride_h, j : j + stride_w * (out_w - 1) + 1 : stride_w]
            np.maximum(result, part, out=result)
    return result


@kernel("reshape", moves=True)
def reshape(call: Call, arrays: Sequence[Array]) -> Array:
    """Other sizes, row-major in logical order."""
    return arrays[0].reshape(call.output.shape)


@kernel("permute", moves=True)
def permute(call: Call, arrays: Sequence[Array]) -> Array:
    """Axes in another order."""
    return arrays[0].transpose(call["axes"])


@kernel("concat", moves=True)
def concat(call: Call, arrays: Sequence[Array]) -> Array:
    """Join operands along one axis."""
    return np.concatenate(arrays, axis=call["axis"])


@kernel("slice", moves=True)
def slice_(call: Call, arrays: Sequence[Array]) -> Array:
    """Part of one axis."""
    index = [slice(None)] * int(call["axis"]) + [slice(call["start"], call["stop"], call["step"])]
    return arrays[0][tuple(index)]


@kernel("gather", moves=True)
def gather(call: Call, arrays: Sequence[Array]) -> Array:
    """Elements of one axis at given indices."""
    codes: Array = np.take(arrays[0], call["indices"], axis=call["axis"])
    return codes


@kernel("embedding", moves=True)
def embedding(call: Call, arrays: Sequence[Array]) -> Array:
    """Rows of a matrix; an integer outside of it reads the nearest row."""
    rows, ids = arrays
    found: Array = rows[np.clip(ids, 0, len(rows) - 1)]
    return found


@kernel("masked", moves=True)
def masked(call: Call, arrays: Sequence[Array]) -> Array:
    """Codes, or that of 0 where the mask is false."""
    codes, mask = arrays
    zero = call.output.zero_point[0] if call.output.zero_point else 0
    return np.where(mask, codes, np.asarray(zero, codes.dtype))


@kernel("expand", moves=True)
def expand(call: Call, arrays: Sequence[Array]) -> Array:
    """Axes of one element repeated; the batch is that of the second operand."""
    x, like = arrays
    batch = like.shape[call.inputs[1].shape.index(-1)] if -1 in call.output.shape else 1
    return np.broadcast_to(x, [batch if size == -1 else size for size in call.output.shape])


@kernel("pad", moves=True)
def pad(call: Call, arrays: Sequence[Array]) -> Array:
    """A border of one code; a negative amount cuts off."""
    amounts = call["pad"]
    half = len(amounts) // 2
    widths = list(zip(amounts[:half], amounts[half:], strict=True))
    inner = arrays[0][tuple(slice(max(-begin, 0), -max(-end, 0) or None) for begin, end in widths)]
    border = [(max(begin, 0), max(end, 0)) for begin, end in widths]
    return np.pad(inner, border, constant_values=inner.dtype.type(call["value"]))
