"""Requantization in Python integers, from the published definitions; shares nothing with the code under test."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

MODES = ("single", "double", "double_hu")
"""Modes with significands of 31 bits."""

NARROW_MODES = ("tosa16", "s64_16", "nvdla_cvt")
"""Modes with significands of 15 bits."""

SHIFT_MODES = {
    "pow2_shift": "rhup",
    "pow2_shift_rhaz": "rhaz",
    "pow2_shift_rne": "rne",
    "pow2_shift_floor": "floor",
    "pow2_shift_trunc": "trunc",
}
"""Modes that multiply by a power of two, and how they round."""


def half_up(x: Fraction) -> int:
    """floor(x + 1/2)."""
    return (x + Fraction(1, 2)).__floor__()


def half_away(x: Fraction) -> int:
    """To the nearest, ties away from zero."""
    return half_up(x) if x >= 0 else -half_up(-x)


def half_even(x: Fraction) -> int:
    """To the nearest, ties to the even neighbour."""
    floor, rest = divmod(x.numerator, x.denominator)
    if 2 * rest == x.denominator:
        return floor + floor % 2
    return floor + (1 if 2 * rest > x.denominator else 0)


def truncate(x: Fraction) -> int:
    """Toward zero."""
    return x.__floor__() if x >= 0 else x.__ceil__()


ROUNDINGS: dict[str, Callable[[Fraction], int]] = {
    "rne": half_even,
    "rhaz": half_away,
    "rhup": half_up,
    "floor": lambda x: x.__floor__(),
    "trunc": truncate,
}


def reference_decompose(multiplier: float) -> tuple[int, int]:
    """Significand in [2^30, 2^31) and exponent with multiplier = significand * 2^(exponent - 31)."""
    exact = Fraction(multiplier)
    if exact == 0:
        return 0, 0
    exponent = 0
    while exact >= 1:
        exact, exponent = exact / 2, exponent + 1
    while exact < Fraction(1, 2):
        exact, exponent = exact * 2, exponent - 1
    significand = half_away(exact * 2**31)
    if significand == 2**31:
        significand, exponent = 2**30, exponent + 1
    if exponent < -31:
        return 0, 0
    if exponent > 30:
        return 2**31 - 1, 30
    return significand, exponent


def reference_decompose_narrow(multiplier: float, mode: str) -> tuple[int, int]:
    """Significand in [2^14, 2^15) and exponent with multiplier = significand * 2^(exponent - 15), within the range."""
    if mode == "s64_16":  # TFLite Micro: from the 31 bits, carried to no 16th bit
        wide, exponent = reference_decompose(multiplier)
        return ((wide + 2**15) >> 16 if wide < 0x7FFF0000 else 0x7FFF), exponent
    exact, exponent = Fraction(multiplier), 0
    while exact >= 1:
        exact, exponent = exact / 2, exponent + 1
    while exact < Fraction(1, 2):
        exact, exponent = exact * 2, exponent - 1
    significand = half_away(exact * 2**15)
    if significand == 2**15:
        significand, exponent = 2**14, exponent + 1
    return significand, exponent


def saturating_rounding_doubling_high_mul(a: int, b: int) -> int:
    """gemmlowp's first stage, with its sign-dependent nudge and its truncating division."""
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    nudge = 2**30 if product >= 0 else 1 - 2**30
    return truncate(Fraction(product + nudge, 2**31))


def rounding_divide_by_pot(value: int, exponent: int) -> int:
    """gemmlowp's second stage, with its mask and threshold."""
    mask = (1 << exponent) - 1
    threshold = (mask >> 1) + (1 if value < 0 else 0)
    return (value >> exponent) + (1 if value & mask > threshold else 0)


def reference_mbqm(x: int, significand: int, exponent: int, mode: str) -> int:
    """MultiplyByQuantizedMultiplier in the integer modes; those that only shift have no significand."""
    if mode in SHIFT_MODES:
        return ROUNDINGS[SHIFT_MODES[mode]](x * Fraction(2) ** exponent)
    if mode in NARROW_MODES:
        product = x * significand * Fraction(2) ** (exponent - 15)
        return half_away(product) if mode == "nvdla_cvt" else half_up(product)
    if mode == "single":
        return (x * significand + (1 << (30 - exponent))) >> (31 - exponent)
    left, right = max(exponent, 0), max(-exponent, 0)
    high = saturating_rounding_doubling_high_mul(x << left, significand)
    if mode == "double":
        return rounding_divide_by_pot(high, right)
    return high if right == 0 else (high + (1 << (right - 1))) >> right


def tosa_double_round(x: int, significand: int, exponent: int) -> int:
    """TOSA's one-line form of the two-stage rounding (apply_scale_32 with double rounding)."""
    shift = 31 - exponent
    rounding = 1 << (shift - 1)
    if shift > 31:
        rounding += (1 << 30) if x >= 0 else -(1 << 30)
    return (x * significand + rounding) >> shift


def reference_float32(exact: Fraction) -> Fraction:
    """The float32 nearest to a number, ties to even, with no end at the top."""
    if exact == 0:
        return exact
    # Between 2^23 and 2^25 in these steps, or, where they are as small as float32 has them, below.
    exponent = max(exact.numerator.bit_length() - exact.denominator.bit_length() - 24, -149)
    if abs(exact) >= Fraction(2) ** (exponent + 24):
        exponent += 1
    step = Fraction(2) ** exponent
    return half_even(exact / step) * step


def reference_requantize_float32(x: int, multiplier: float, zero_point: int, qmin: int, qmax: int) -> int:
    """f32_rne: round the float32 product of float32(x) and a float32 multiplier, add the zero point, clamp."""
    product = reference_float32(reference_float32(Fraction(x)) * Fraction(multiplier))
    return min(max(half_even(product) + zero_point, qmin), qmax)
