"""Kernels of means over axes and windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.errors import ArtifactError
from qcompiler.program.arithmetic import Int, average
from qcompiler.program.kernels.call import (
    FLOAT64_EXACT,
    Array,
    Call,
    Kernels,
    largest_step,
    scalar_multiplier_of,
    steps_of,
)

kernel = Kernels()


@kernel("int_mean", steps=(0,), requantizes=True)
def int_mean(call: Call, arrays: Sequence[Array]) -> Array:
    """Sum over whole axes; the division is in the multiplier, or the multiplier is a power of two next to a divisor."""
    total = steps_of(call, arrays, 0).sum(axis=tuple(call["axes"]), keepdims=bool(call["keepdim"]))
    multiplier, exponent = scalar_multiplier_of(arrays, 1)
    if call.get("divisor") is None or exponent is None:
        return call.requantize(total, multiplier, exponent)
    power = int(exponent)
    dividend, divisor = total << max(power, 0), call["divisor"] << max(-power, 0)
    codes: Int = np.clip(average(dividend, divisor, call["rounding"], call.output.zero_point[0]), *call.limits)
    return codes


@kernel("int_avg_pool2d", steps=(0,), requantizes=True)
def int_avg_pool2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Mean of each window, divided as the target rounds."""
    x = steps_of(call, arrays, 0)
    out_h, out_w = call.output.shape[2:]
    kernel, stride, padding = call["kernel"], call["stride"], call["padding"]
    rows = _windows(x.shape[2], out_h, kernel[0], stride[0], padding[0])
    columns = _windows(x.shape[3], out_w, kernel[1], stride[1], padding[1])
    result = np.empty((*x.shape[:2], out_h, out_w), np.int64)
    for i, (top, bottom, full_h) in enumerate(rows):
        for j, (left, right, full_w) in enumerate(columns):
            count = full_h * full_w if call["count_include_pad"] else (bottom - top) * (right - left)
            total = x[:, :, top:bottom, left:right].sum(axis=(2, 3))
            divisor = call.get("divisor_override") or count
            result[:, :, i, j] = average(total, divisor, call["rounding"], call.output.zero_point[0])
    codes: Int = np.clip(result, *call.limits)
    return codes


@kernel("int_resample2d", steps=(0,), requantizes=True)
def int_resample2d(call: Call, arrays: Sequence[Array]) -> Array:
    """Weighted means along both axes: integer weights, one division per pixel."""
    rows, columns = (array.astype(np.float64) for array in arrays[1:3])
    bound = int(np.abs(rows).sum(axis=1).max() * np.abs(columns).sum(axis=1).max()) * largest_step(call.inputs[0])
    if bound >= FLOAT64_EXACT:
        raise ArtifactError(f"partial sums can reach {bound}", where=call.instruction.output)
    total = (rows @ steps_of(call, arrays, 0).astype(np.float64) @ columns.T).astype(np.int64)
    mean = average(total, arrays[3].astype(np.int64), call["rounding"], call.output.zero_point[0])
    codes: Int = np.clip(mean, *call.limits)
    return codes


def _windows(size: int, out: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int, int]]:
    """(begin, end, size with padding) of each window along one axis, as torch clips them."""
    result = []
    for index in range(out):
        begin = index * stride - padding
        end = min(begin + kernel, size + padding)
        result.append((max(begin, 0), min(end, size), end - begin))
    return result
