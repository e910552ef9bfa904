"""Kernels between real numbers and codes, and between grids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.program.arithmetic import round_real
from qcompiler.program.kernels.call import Array, Call, Kernels, scalar_multiplier_of, steps_of

kernel = Kernels()


@kernel("quantize", requantizes=True, in_place=(0,))
def quantize(call: Call, arrays: Sequence[Array]) -> Array:
    """Real numbers to codes, by a true float32 division."""
    with np.errstate(over="ignore"):  # an infinite quotient is valid, because the clamp follows
        quotient = arrays[0].astype(np.float32) / np.float32(call.output.scale[0])
    steps = round_real(np.nan_to_num(quotient.astype(np.float64)), call["rounding"]) + call.output.zero_point[0]
    return np.clip(steps, *call.limits).astype(np.int64)


@kernel("dequantize", steps=(0,), in_place=(0,))
def dequantize(call: Call, arrays: Sequence[Array]) -> Array:
    """Codes to real numbers."""
    return steps_of(call, arrays, 0).astype(np.float32) * np.float32(call.inputs[0].scale[0])


@kernel("rescale", steps=(0,), requantizes=True, in_place=(0,))
def rescale(call: Call, arrays: Sequence[Array]) -> Array:
    """Rescale from one grid to another."""
    return call.requantize(steps_of(call, arrays, 0), *scalar_multiplier_of(arrays, 1))
