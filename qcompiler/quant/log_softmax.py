"""Logarithm of a softmax on codes, with one rounding at its end.

With the distance d = max - q >= 0 of a code from the largest code of its row, the scales s_x and s_y, and z the zero
point of the result,

    S = sum T[d]                            T[d] = 2^30 exp(-s_x d); distances beyond the table take its last entry
    S / 2^30 = 2^e (1 + (i + f) / 256)      e, i whole, 0 <= f < 1, from the bits of S
    l = e L[256] + L[i] + f (L[i + 1] - L[i])          L[i] = 2^k log(1 + i / 256) / s_y
    y = z + (-M d - 2^r l) / 2^(k + r)                 M = 2^(k + r) s_x / s_y, halves up

A softmax in the codes of its result would lose all numbers below half a step of 1/256, whose logarithm is -6.2; S has
all of them. The line between two entries of L is less than 2e-6 from the logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams

__all__ = ["INDEX_BITS", "LogSoftmaxParameters", "log_softmax_codes", "log_softmax_parameters"]

FRACTION = 30
"""Fractional bits of an exponential."""
INDEX_BITS = 8
"""Bits of the place in the table of logarithms."""
REST_BITS = FRACTION - INDEX_BITS
"""Bits of the part between two entries."""
MOST_SHIFT = 32
"""Largest k + r: with distances of 16 bits, 2^-17 of a step."""
WIDTH = 31
"""Bits of M and of an entry of L."""


@dataclass(frozen=True, eq=False)
class LogSoftmaxParameters:
    """Constants of one logarithm of a softmax, made by `log_softmax_parameters`.

    Args:
        exponentials: int64: T of the module docstring.
        logarithms: int64 [257]: L.
        multiplier: M.
        shift: k + r.
        rise: r.
    """

    exponentials: Tensor
    logarithms: Tensor
    multiplier: int
    shift: int
    rise: int


def log_softmax_parameters(source: AffineParams, target: AffineParams, *, distance: int) -> LogSoftmaxParameters:
    """Compute the constants of `log_softmax_codes`.

    Args:
        source: Scale and zero point of the input.
        target: Scale and zero point of the result.
        distance: Largest difference of two codes of the input.

    Raises:
        InputError: A step of the result is less than 2^-30 of a step of the input, or of log 2.
    """
    scale, step = float(source.scale), float(target.scale)
    shift, level_shift = (min(MOST_SHIFT, WIDTH - 1 - math.frexp(real / step)[1]) for real in (scale, math.log(2.0)))
    level_shift = min(shift, level_shift)
    if level_shift < 1:
        raise InputError(
            f"a log_softmax with the scale {step:.6g} of its result and {scale:.6g} of its input",
            expected=f"a scale of the result of at least {max(scale, math.log(2.0)) * 2.0 ** (3 - WIDTH):.6g}",
        )
    unit = 2.0**level_shift / step
    entries = np.floor(np.exp(-scale * np.arange(distance + 1, dtype=np.float64)) * 2.0**FRACTION + 0.5)
    different = np.flatnonzero(entries != entries[-1])
    entries = entries[: (int(different[-1]) + 2 if different.size else 1)]
    logarithms = np.floor(np.log1p(np.arange(2**INDEX_BITS + 1) / 2.0**INDEX_BITS) * unit + 0.5)
    return LogSoftmaxParameters(
        torch.from_numpy(entries.astype(np.int64)),
        torch.from_numpy(logarithms.astype(np.int64)),
        max(1, math.floor(2.0**shift * scale / step + 0.5)),
        shift,
        shift - level_shift,
    )


def log_softmax_codes(
    codes: Tensor, axis: int, parameters: LogSoftmaxParameters, *, out_zero_point: int, qmin: int, qmax: int
) -> Tensor:
    """Logarithm of the softmax of codes along an axis.

    Args:
        codes: int64 codes.
        axis: The axis of the rows.
        parameters: Constants.
        out_zero_point: Zero point of the result.
        qmin: Lowest code of the result.
        qmax: Highest code.

    Returns:
        int64 codes.
    """
    table, logarithms, shift = parameters.exponentials, parameters.logarithms, parameters.shift
    distance = codes.amax(axis, keepdim=True) - codes
    total = table[distance.clamp(max=len(table) - 1)].sum(axis, keepdim=True)
    exponent = torch.zeros_like(total)
    while bool((over := total >> exponent >= 2 ** (FRACTION + 1)).any()):
        exponent = exponent + over.to(torch.int64)
    # [2^30, 2^31): the bits of S from its highest one on; those below 2^-30 of S are left out.
    significand = (total >> exponent) - 2**FRACTION
    index, rest = significand >> REST_BITS, significand & (2**REST_BITS - 1)
    between = ((logarithms[index + 1] - logarithms[index]) * rest) >> REST_BITS
    level = exponent * logarithms[-1] + logarithms[index] + between
    steps: Tensor = (-parameters.multiplier * distance - (level << parameters.rise) + (1 << shift >> 1)) >> shift
    return (steps + out_zero_point).clamp(qmin, qmax)
