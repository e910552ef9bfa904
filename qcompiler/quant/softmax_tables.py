"""Tables of exponentials and of a reciprocal as TensorFlow Lite's softmax kernels compute them.

Every distance between two codes has one exponential, so that the fixed-point functions run when the tables are made.

Source: gemmlowp fixedpoint.h, exp_on_negative_values; TensorFlow Lite kernels/internal/common.h, LUTPopulate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["gemmlowp_exponentials", "interpolated_exponentials", "reciprocals"]

Int = npt.NDArray[np.int64]

_MOST = 2**31 - 1
_SCALED_BITS = 5
"""Integer bits of a distance in the fixed-point format of `gemmlowp`, Q5.26."""
_QUARTERS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}
"""exp(-2^n) in Q0.31, by n."""


def _high_product(a: int, b: int) -> int:
    """round(a b / 2^31), halves up, saturated."""
    return min((a * b + 2**30) >> 31, _MOST)


def _halves_away(x: int, shift: int) -> int:
    """x / 2^shift, halves away from zero."""
    return int(math.copysign((abs(x) + (1 << shift >> 1)) >> shift, x))


def _significand(real: float) -> tuple[int, int]:
    """M and e with real = M 2^(e - 31), M below 2^31."""
    fraction, exponent = math.frexp(real)
    significand = math.floor(fraction * 2**31 + 0.5)
    return (significand // 2, exponent + 1) if significand == 2**31 else (significand, exponent)


def gemmlowp_exponentials(scale: float, distance: int) -> Int:
    """exp(-scale d) in Q0.31 for d from 0 to `distance`; 0 where the kernel skips an element.

    Args:
        scale: Scale of the input.
        distance: Largest distance.
    """
    real = min(scale * 2 ** (31 - _SCALED_BITS), _MOST * 1.0)
    significand, exponent = _significand(real)
    reach = math.floor(((1 << _SCALED_BITS) - 1) * 2.0 ** (31 - _SCALED_BITS) / 2.0**exponent)
    found = [
        _exponential(_high_product(-d * 2**exponent, significand)) if d <= reach else 0 for d in range(distance + 1)
    ]
    return np.array(found, np.int64)


def _exponential(a: int) -> int:
    """exp(a 2^-26) in Q0.31 for a <= 0."""
    if a == 0:
        return _MOST
    quarter = 1 << 24
    part = (a & (quarter - 1)) - quarter
    result = _near_zero(max(min(part << _SCALED_BITS, _MOST), -(2**31)))
    rest = part - a
    for power, factor in _QUARTERS.items():
        if rest & (1 << (26 + power)):
            result = _high_product(result, factor)
    return result


def _near_zero(a: int) -> int:
    """exp(a 2^-31) in Q0.31 for -1/4 <= a 2^-31 < 0: a Taylor series around -1/8."""
    x = a + (1 << 28)
    square = _high_product(x, x)
    fourth = _halves_away(_high_product(square, square), 2)
    rest = _high_product(fourth + _high_product(square, x), 715827883) + square
    return 1895147668 + _high_product(1895147668, x + _halves_away(rest, 1))


def interpolated_exponentials(scale: float, distance: int) -> Int:
    """exp(-scale d) in Q0.15 for d from 0 to `distance`, interpolated between 513 entries from -10 to 0.

    Args:
        scale: Scale of the input.
        distance: Largest distance.
    """
    significand, exponent = _significand(scale / (10.0 / 65535.0))
    table = _populated(math.exp, 10.0 / 65535.0, 32767)
    found = []
    for d in range(distance + 1):
        high = _high_product(-d * 2 ** max(exponent, 0), significand)
        position = max(min(_halves_away(high, max(-exponent, 0)) + 32767, 32767), -32768)
        base = int(table[256 + (position >> 7)])
        step = int(table[257 + (position >> 7)]) - base
        found.append(base + ((step * (position & 127) + 64) >> 7))
    return np.array(found, np.int64)


def reciprocals() -> Int:
    """1 / (1 + x) in Q0.15 at 513 places x from 0 to 1."""
    return _populated(lambda x: 1.0 / (1.0 + x), 1.0 / 65535.0, -32768)


def _populated(function: Callable[[float], float], scale: float, zero_point: int) -> Int:
    """513 entries in Q0.15; each is moved by half of the error of the interpolation in the middle after it."""
    least, most = scale * (-32768 - zero_point), scale * (32767 - zero_point)
    step = (most - least) / 512
    inverse = 65536 / (2.0 / 65535.0 * 65535)
    found = []
    for index in range(512):
        here, middle = (function(least + index * step + part) for part in (0.0, step / 2))
        sample = _rounded(here * inverse)
        error = _rounded((function(least + (index + 1) * step) * inverse + sample) / 2) - _rounded(middle * inverse)
        found.append(sample - _rounded(error / 2))
    found.append(_rounded(function(most) * inverse))
    return np.clip(np.array(found, np.float64), -32768, 32767).astype(np.int64)


def _rounded(x: float) -> float:
    """To the nearest integer, halves away from zero."""
    return math.copysign(math.floor(abs(x) + 0.5), x)
