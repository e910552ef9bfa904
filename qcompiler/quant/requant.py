"""Requantization: from an int32 accumulator to the codes of the next tensor.

The real multiplier m = s_x * s_w / s_y is applied in one of four arithmetics that are in everyday use and differ by at
most one code. With the integer multiplier m = M * 2^(e - 31), M in [2^30, 2^31), l = max(e, 0) and r = max(-e, 0):

    single      (x * M + 2^(30 - e)) >> (31 - e)                       one rounding, half up; x * M in 64 bits
    double      h = (((x << l) * M) + 2^30) >> 31                      half up ...
                round_half_away(h / 2^r)                               ... then half away from zero
    double_hu   the same h, then (h + 2^(r - 1)) >> r                  half up both times
    f32_rne     rne(clamp(f32(f32(x) * f32(m))))                       float32 product, half to even

`single` rounds the exact product once. The two-stage forms round the 32-bit high word first, so a value just below a
tie can be carried over it; on negative ties half up and half away choose different codes. `f32_rne` keeps only 24 bits
of x and of m.

Source:
    `double`: gemmlowp fixedpoint.h (SaturatingRoundingDoublingHighMul, RoundingDivideByPOT), TOSA DOUBLE_ROUND.
    `single`: TOSA SINGLE_ROUND, TFLite with single rounding. `f32_rne`: ONNX Runtime MlasRequantizeOutput.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import along_axis
from qcompiler.quant.rounding import Rounding, round_float, shift_right

__all__ = [
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "RequantMode",
    "Requantization",
    "decompose",
    "multiply_by_quantized_multiplier",
    "prepare_requantization",
    "real_multiplier",
    "requantize",
]

MIN_EXPONENT = -31
MAX_EXPONENT = 30
"""Exponents of integer multipliers; outside, a multiplier becomes 0 or saturates."""


class RequantMode(StrEnum):
    """How an accumulator is multiplied by a real multiplier; the formulas are in the module text."""

    SINGLE = "single"
    DOUBLE = "double"
    DOUBLE_HALF_UP = "double_hu"
    FLOAT32_RNE = "f32_rne"


@dataclass(frozen=True, eq=False)
class Requantization:
    """A multiplier ready to be applied.

    Args:
        mode: The arithmetic.
        multiplier: One element or [C]: int32 significand in [2^30, 2^31), or the float32 multiplier for FLOAT32_RNE.
        exponent: int8 in -31..30 in the shape of `multiplier`; None for FLOAT32_RNE.
    """

    mode: RequantMode
    multiplier: Tensor
    exponent: Tensor | None

    def apply(self, acc: Tensor, *, zero_point: int, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
        """`requantize` with this multiplier."""
        return requantize(
            acc, self.multiplier, self.exponent, self.mode, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=axis
        )

    def scale(self, x: Tensor) -> Tensor:
        """`multiply_by_quantized_multiplier` with this multiplier."""
        return multiply_by_quantized_multiplier(x, self.multiplier, self.exponent, self.mode)


def real_multiplier(input_scale: Tensor, weight_scale: Tensor, output_scale: Tensor, mode: RequantMode) -> Tensor:
    """The real number m = s_x * s_w / s_y an accumulator is multiplied by.

    Args:
        input_scale: float32, one element.
        weight_scale: float32, one element or [C].
        output_scale: float32, one element.
        mode: FLOAT32_RNE computes f32(f32(s_x * s_w) / s_y); the integer modes compute in float64.

    Returns:
        float32 for FLOAT32_RNE, else float64; in the shape of `weight_scale`.
    """
    dtype = torch.float32 if mode is RequantMode.FLOAT32_RNE else torch.float64
    return input_scale.to(dtype) * weight_scale.to(dtype) / output_scale.to(dtype)


def decompose(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Write real multipliers as significand * 2^(exponent - 31), the significand rounded half away to 31 bits.

    A multiplier below the range of exponents becomes (0, 0), one above it (2^31 - 1, 30).

    Args:
        multiplier: float64, finite and not negative.

    Returns:
        significand int32 in [2^30, 2^31) and exponent int8 in -31..30, in the shape of `multiplier`.

    Raises:
        InputError: A multiplier is negative or not finite.

    Source:
        TFLite Micro quantization_util.cc, QuantizeMultiplier.
    """
    if not bool((torch.isfinite(multiplier) & (multiplier >= 0.0)).all()):
        raise InputError(f"requantization multipliers {multiplier.tolist()}", expected="finite and not negative")
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    significand = round_float(fraction * 2.0**31, Rounding.HALF_AWAY).to(torch.int64)
    carried = significand == 1 << 31
    significand = torch.where(carried, 1 << 30, significand)
    exponent = exponent.to(torch.int64) + carried.to(torch.int64)
    too_small, too_large = exponent < MIN_EXPONENT, exponent > MAX_EXPONENT
    significand = torch.where(too_small, 0, torch.where(too_large, (1 << 31) - 1, significand))
    exponent = torch.where(too_small, 0, exponent.clamp(max=MAX_EXPONENT))
    return significand.to(torch.int32), exponent.to(torch.int8)


def prepare_requantization(multiplier: Tensor, mode: RequantMode) -> Requantization:
    """Bring a real multiplier into the form that `mode` applies: float32, or significand and exponent."""
    if mode is RequantMode.FLOAT32_RNE:
        return Requantization(mode, multiplier.to(torch.float32), None)
    significand, exponent = decompose(multiplier)
    return Requantization(mode, significand, exponent)


def multiply_by_quantized_multiplier(
    x: Tensor, significand: Tensor, exponent: Tensor | None, mode: RequantMode
) -> Tensor:
    """Multiply integers by real multipliers and round: the formulas of the module text, without zero point and clamp.

    Args:
        x: int64 tensor with values of int32.
        significand: int32 significands, or float32 multipliers for FLOAT32_RNE; broadcasts with `x`.
        exponent: int8 exponents in the shape of `significand`; None for FLOAT32_RNE.
        mode: The arithmetic.

    Returns:
        int64 tensor. For FLOAT32_RNE the product must stay below 2^63.

    Raises:
        InputError: The exponents do not belong to the mode, or x << exponent leaves int32 in a two-stage mode.
    """
    if mode is RequantMode.FLOAT32_RNE:
        return torch.round(x.to(torch.float32) * significand).to(torch.int64)
    if exponent is None:
        raise InputError(f"no exponent for requantization mode '{mode}'", expected="integer significand and exponent")
    wide, powers = significand.to(torch.int64), exponent.to(torch.int64)
    if mode is RequantMode.SINGLE:
        return shift_right(x * wide, 31 - powers, Rounding.HALF_UP)
    left, right = powers.clamp(min=0), (-powers).clamp(min=0)
    shifted = x << left
    if bool((left > 0).any()) and bool(((shifted < -(1 << 31)) | (shifted >= 1 << 31)).any()):
        raise InputError(
            f"an accumulator overflows int32 when shifted left by up to {int(left.max())} bits",
            expected=f"a product of 32 bits, as requantization mode '{mode}' needs",
            fix="Use the mode 'single', or raise the output scale",
        )
    high = shift_right(shifted * wide, 31, Rounding.HALF_UP)
    return shift_right(high, right, Rounding.HALF_AWAY if mode is RequantMode.DOUBLE else Rounding.HALF_UP)


def requantize(
    acc: Tensor,
    multiplier: Tensor,
    exponent: Tensor | None,
    mode: RequantMode,
    *,
    zero_point: int,
    qmin: int,
    qmax: int,
    axis: int | None = None,
) -> Tensor:
    """Turn accumulators into codes: clamp(round(acc * m) + zero_point, qmin, qmax).

    Args:
        acc: int64 tensor with values of int32, zero points of the inputs removed and the bias added.
        multiplier: int32 significands, or float32 multipliers for FLOAT32_RNE: one element or [C].
        exponent: int8 exponents in the shape of `multiplier`; None for FLOAT32_RNE.
        mode: The arithmetic.
        zero_point: Zero point of the output.
        qmin: Lowest output code.
        qmax: Highest output code.
        axis: Channel axis of `acc`, where there are C multipliers.

    Returns:
        int64 codes in the shape of `acc`.

    Raises:
        InputError: As `multiply_by_quantized_multiplier`.
    """
    multiplier = along_axis(multiplier, acc.dim(), axis)
    if mode is RequantMode.FLOAT32_RNE:
        # Clamping before rounding is the same as after it, the limits being integers: the conversion stays in range.
        product = (acc.to(torch.float32) * multiplier).clamp(qmin - zero_point, qmax - zero_point)
        return torch.round(product).to(torch.int64) + zero_point
    powers = None if exponent is None else along_axis(exponent, acc.dim(), axis)
    return (multiply_by_quantized_multiplier(acc, multiplier, powers, mode) + zero_point).clamp(qmin, qmax)
