"""Integer arithmetic in NumPy, written from the specification, independently of the rest of the compiler.

The evaluation of the graph has another implementation of the same formulas; the verifier checks that both agree on
every element.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from qcompiler.errors import ArtifactError

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]


def shift_right(x: Int, shift: npt.ArrayLike, ties: Literal["up", "away"]) -> Int:
    """x / 2^shift, to nearest; ties towards +infinity, or away from zero."""
    amount = np.asarray(shift, np.int64)
    half = np.where(amount > 0, np.left_shift(np.int64(1), np.maximum(amount - 1, 0)), 0)
    if ties == "up":
        return (x + half) >> amount
    magnitude = (np.abs(x) + half) >> amount
    return np.where(x < 0, -magnitude, magnitude)


SHIFTS = {
    "pow2_shift": "rhup",
    "pow2_shift_rhaz": "rhaz",
    "pow2_shift_rne": "rne",
    "pow2_shift_floor": "floor",
    "pow2_shift_trunc": "trunc",
}
"""Modes that only shift, and the rounding of each."""


def multiply(x: Int, significand: npt.ArrayLike | None, exponent: npt.ArrayLike | None, mode: str) -> Int:
    """x * significand * 2^(exponent - width), rounded as `mode` says; a width of 31 bits, or of 15.

    Modes that only shift have no significand: x * 2^exponent.
    """
    if exponent is None:
        raise ArtifactError(f"the mode {mode!r} lacks an exponent", where="program.json")
    e = np.asarray(exponent, np.int64)
    if mode in SHIFTS:
        one = np.int64(1)
        return divide(x << np.maximum(e, 0), np.left_shift(one, np.maximum(-e, 0)), SHIFTS[mode])
    if significand is None:
        raise ArtifactError(f"the mode {mode!r} lacks a multiplier", where="program.json")
    m = np.asarray(significand, np.int64)
    match mode:
        case "single":
            return shift_right(x * m, 31 - e, "up")
        case "tosa16" | "s64_16":
            return shift_right(x * m, 15 - e, "up")
        case "nvdla_cvt":
            return shift_right(x * m, 15 - e, "away")
        case "double" | "double_hu":
            high = shift_right((x << np.maximum(e, 0)) * m, 31, "up")
            return shift_right(high, np.maximum(-e, 0), "away" if mode == "double" else "up")
    raise ArtifactError(f"the requantization mode {mode!r} is unknown", where="program.json")


def requantize(
    acc: Int,
    multiplier: npt.ArrayLike | None,
    exponent: npt.ArrayLike | None,
    mode: str,
    zero_point: int,
    qmin: Int,
    qmax: Int,
) -> Int:
    """Accumulators to codes. Multipliers and limits broadcast against the last axis."""
    if mode == "f32_rne" and multiplier is not None:
        product = acc.astype(np.float32) * np.asarray(multiplier, np.float32)
        low, high = ((limit - zero_point).astype(np.float32) for limit in (qmin, qmax))
        clipped = np.clip(product, low, high)
        return np.rint(clipped).astype(np.int64) + zero_point
    return np.clip(multiply(acc, multiplier, exponent, mode) + zero_point, qmin, qmax)


def divide(x: Int, divisor: npt.ArrayLike, rounding: str) -> Int:
    """x / divisor for a positive divisor."""
    d = np.asarray(divisor, np.int64)
    floor, rest = np.divmod(x, d)
    twice = 2 * rest
    up: npt.NDArray[np.bool_]
    match rounding:
        case "rne":
            up = (twice > d) | ((twice == d) & (floor % 2 == 1))
        case "rhaz":
            up = (twice > d) | ((twice == d) & (x > 0))
        case "rhup":
            up = twice >= d
        case "floor":
            up = np.zeros(floor.shape, np.bool_)
        case "trunc":
            up = (x < 0) & (rest > 0)
        case _:
            raise ArtifactError(f"the rounding {rounding!r} is unknown", where="program.json")
    result: Int = floor + up
    return result


def average(total: Int, count: npt.ArrayLike, rounding: str, zero_point: int) -> Int:
    """total / count + zero_point, where `total` sums codes minus their zero point; `rhaz_raw` rounds the raw mean."""
    if rounding == "rhaz_raw":
        return divide(total + np.asarray(count, np.int64) * zero_point, count, "rhaz")
    return divide(total, count, rounding) + zero_point


def round_real(x: npt.NDArray[np.float64], rounding: str) -> npt.NDArray[np.float64]:
    """Real numbers to integers."""
    match rounding:
        case "rne":
            return np.rint(x)
        case "rhaz":
            whole = np.trunc(x)
            return whole + np.copysign((np.abs(x - whole) >= 0.5).astype(np.float64), x)
        case "rhup":
            low = np.floor(x)
            return low + (x - low >= 0.5)
        case "floor":
            return np.floor(x)
        case "trunc":
            return np.trunc(x)
    raise ArtifactError(f"the rounding {rounding!r} is unknown", where="program.json")


def fused_multiply_add(x: npt.ArrayLike, y: npt.ArrayLike, z: npt.ArrayLike) -> Float:
    """float32 of the exact x * y + z: one rounding.

    The product of two float32 is exact in float64. The error of the float64 sum is recovered exactly (Knuth's two-sum)
    and, when the sum lies on a tie of float32, decides it: the sum is nudged to odd before it is rounded.
    """
    product = np.asarray(x, np.float64) * np.asarray(y, np.float64)
    addend = np.asarray(z, np.float64)
    total = np.asarray(product + addend)
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    # Round to odd: of the two neighbours of the exact sum, the one with an odd last bit.
    even = (total.view(np.int64) & 1) == 0
    towards = np.copysign(np.inf, error)
    return np.where((error != 0) & even, np.nextafter(total, towards), total).astype(np.float32)
