"""Rounding to integers: of floats, of integers shifted right, and of integers divided.

Every rounding in the compiler uses a mode of this module. All functions are exact: the result is the rounded value
of the mathematical quotient, with no intermediate overflow and no error of a float addition such as `floor(x + 0.5)`,
which turns 0.49999997 into 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.modes import AverageRounding, Rounding

__all__ = ["MAX_SHIFT", "AverageRounding", "Rounding", "divide", "round_float", "round_float_", "shift_right"]

MAX_SHIFT = 62
"""Largest shift of `shift_right`: 2^62 is the largest power of two that int64 holds."""


def round_float(x: Tensor, mode: Rounding) -> Tensor:
    """Round every element to an integer.

    Args:
        x: Float tensor of any shape. NaN stays NaN, infinities stay infinite.
        mode: Rounding mode.

    Returns:
        Integral values in the shape and float type of `x`.
    """
    if mode is Rounding.NEAREST_EVEN:
        return torch.round(x)
    if mode is Rounding.FLOOR:
        return torch.floor(x)
    whole = torch.trunc(x)
    if mode is Rounding.TRUNCATE:
        return whole
    # A float minus its own integer part is exact, so the comparisons with one half below are also exact.
    fraction = x - whole
    up = fraction >= 0.5
    down = fraction <= -0.5 if mode is Rounding.HALF_AWAY else fraction < -0.5
    return whole + up.to(x.dtype) - down.to(x.dtype)


def round_float_(x: Tensor, mode: Rounding) -> Tensor:
    """`round_float` in the memory of `x`, which is overwritten; returns the result."""
    if mode is Rounding.NEAREST_EVEN:
        return x.round_()
    if mode is Rounding.FLOOR:
        return x.floor_()
    if mode is Rounding.TRUNCATE:
        return x.trunc_()
    return round_float(x, mode)


def shift_right(x: Tensor, shift: Tensor | int, mode: Rounding) -> Tensor:
    """Divide integers by a power of two: round(x / 2^shift).

    Args:
        x: int64 tensor, any value.
        shift: Exponent in 0..62: one integer, or an integer tensor that broadcasts with `x`.
        mode: Rounding of the quotient.

    Returns:
        int64 tensor in the broadcast shape.

    Raises:
        InputError: A shift is outside 0..62.
    """
    shifts = torch.as_tensor(shift, dtype=torch.int64, device=x.device)
    if bool(((shifts < 0) | (shifts > MAX_SHIFT)).any()):
        raise InputError(f"a right shift of {shifts.tolist()}", expected=f"shifts in 0..{MAX_SHIFT}")
    quotient = x >> shifts
    if mode is Rounding.FLOOR:
        return quotient
    if mode is Rounding.HALF_UP:
        # The bit below the last bit kept is one half: round(x / 2^s) = floor(x / 2^s) + bit s - 1 of x.
        return quotient + ((x >> (shifts - 1).clamp(min=0)) & (shifts > 0))
    divisor = torch.ones_like(shifts) << shifts
    return _round_up_where_due(quotient, x & (divisor - 1), divisor, x < 0, mode)


def divide(x: Tensor, divisor: Tensor | int, mode: Rounding) -> Tensor:
    """Divide integers: round(x / divisor).

    Args:
        x: int64 tensor, any value.
        divisor: Positive: one integer, or an integer tensor that broadcasts with `x`.
        mode: Rounding of the quotient.

    Returns:
        int64 tensor in the broadcast shape.

    Raises:
        InputError: A divisor is not positive.
    """
    divisors = torch.as_tensor(divisor, dtype=torch.int64, device=x.device)
    if bool((divisors <= 0).any()):
        raise InputError(f"a divisor of {divisors.tolist()}", expected="positive divisors")
    quotient = torch.div(x, divisors, rounding_mode="floor")
    if mode is Rounding.FLOOR:
        return quotient
    return _round_up_where_due(quotient, torch.remainder(x, divisors), divisors, x < 0, mode)


def _round_up_where_due(floor: Tensor, remainder: Tensor, divisor: Tensor, negative: Tensor, mode: Rounding) -> Tensor:
    """Turn a floor quotient with its remainder in [0, divisor) into the quotient rounded by `mode`."""
    # Comparing remainder with divisor - remainder compares with one half without the overflow of 2 * remainder.
    rest = divisor - remainder
    if mode is Rounding.TRUNCATE:
        up = negative & (remainder > 0)
    elif mode is Rounding.HALF_UP:
        up = remainder >= rest
    elif mode is Rounding.HALF_AWAY:
        up = (remainder > rest) | ((remainder == rest) & ~negative)
    else:
        up = (remainder > rest) | ((remainder == rest) & ((floor & 1) == 1))
    return floor + up.to(torch.int64)
