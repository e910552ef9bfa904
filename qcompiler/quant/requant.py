"""Requantization: from an accumulator to the codes of the next tensor.

The real multiplier m = s_x * s_w / s_y is applied in one of the arithmetics in common use. With an integer
significand M of P bits, m = M * 2^(e - P), M in [2^(P-1), 2^P), l = max(e, 0) and r = max(-e, 0):

    single       P = 31    (x * M + 2^(30 - e)) >> (31 - e)                   one rounding, half up; x * M in 64 bits
    double       P = 31    h = (((x << l) * M) + 2^30) >> 31                  half up ...
                           round_half_away(h / 2^r)                           ... then half away from zero
    double_hu    P = 31    the same h, then (h + 2^(r - 1)) >> r              half up both times
    tosa16       P = 15    (x * M + 2^(14 - e)) >> (15 - e)                   half up; x in 48 bits
    s64_16       P = 15    same formula as `tosa16`, M reduced from the 31 bits of the modes above
    nvdla_cvt    P = 15    round_half_away(x * M / 2^(15 - e))                no left shift
    f32_rne                rne(clamp(f32(f32(x) * f32(m))))                   float32 product, half to even
    pow2_shift             (x + 2^(r - 1)) >> r, or x << e                    m = 2^e only; half up

`pow2_shift` has four more forms, named after the rounding of the shift: `pow2_shift_rhaz`, `_rne`, `_floor`, `_trunc`.

`single` rounds the exact product once. The two-stage forms round the 32-bit high word first, so a value just below a
tie can be carried over it; on negative ties half up and half away choose different codes. `f32_rne` keeps only 24 bits
of x and of m.

Source:
    `double`: gemmlowp fixedpoint.h (SaturatingRoundingDoublingHighMul, RoundingDivideByPOT), and TOSA DOUBLE_ROUND,
    whose formula gives the same integers for every x that it allows: `tosa_double` is another name of it.
    `single`: TOSA SINGLE_ROUND, TFLite with single rounding. `tosa16`: TOSA RESCALE with scale32 = false, and LLVM
    QuantUtils.cpp for M. `s64_16`: TFLite Micro common.cc, MultiplyByQuantizedMultiplier of an int64.
    `nvdla_cvt`: nvdla.org, hw/v1/ias/precision, convertor. `f32_rne`: ONNX Runtime MlasRequantizeOutput.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import along_axis
from qcompiler.quant.modes import ALIASES, MAX_EXPONENT, MIN_EXPONENT, Form, RequantMode, RequantSpec
from qcompiler.quant.rounding import Rounding, round_float, shift_right

__all__ = [
    "ALIASES",
    "MAX_EXPONENT",
    "MIN_EXPONENT",
    "Form",
    "RequantMode",
    "RequantSpec",
    "Requantization",
    "decompose",
    "multiply_by_quantized_multiplier",
    "prepare_requantization",
    "real_multiplier",
    "requantize",
]

CACHED_CHANNELS = 64
"""Most channels of a multiplier that is kept: beyond, arithmetic outweighs the calls into torch."""


@dataclass(frozen=True, eq=False)
class Requantization:
    """A multiplier in the representation of a mode.

    Args:
        mode: The arithmetic.
        multiplier: One element or [C]: significands of the mode's type, or the float32 multiplier of FLOAT32_RNE; None
            where multipliers are powers of two.
        exponent: int8 in the shape of `multiplier`; None for FLOAT32_RNE.
        real: The represented real multiplier, float64 or float32, if known.
    """

    mode: RequantMode
    multiplier: Tensor | None
    exponent: Tensor | None
    real: Tensor | None = None

    @classmethod
    def of(cls, mode: RequantMode, parts: Sequence[Tensor]) -> Requantization:
        """The inverse of `parts`."""
        if mode.is_shift:
            return cls(mode, None, parts[0])
        return cls(mode, parts[0], parts[1] if len(parts) > 1 else None)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors stored in a program, with the element types of the mode's form."""
        return tuple(part for part in (self.multiplier, self.exponent) if part is not None)

    @property
    def factor(self) -> Tensor:
        """The tensor of multipliers or significands.

        Raises:
            InputError: Multipliers of the mode are powers of two.
        """
        if self.multiplier is None:
            raise InputError(f"the requantization mode '{self.mode}' has no multiplier")
        return self.multiplier

    def reshape(self, *sizes: int) -> Requantization:
        """All parts in another shape."""
        multiplier, exponent = (None if p is None else p.reshape(sizes) for p in (self.multiplier, self.exponent))
        return Requantization(self.mode, multiplier, exponent)

    def apply(self, acc: Tensor, *, zero_point: int, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
        """`requantize` with this multiplier."""
        return requantize(
            acc, self.multiplier, self.exponent, self.mode, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=axis
        )

    def scale(self, x: Tensor) -> Tensor:
        """`multiply_by_quantized_multiplier` with this multiplier."""
        return multiply_by_quantized_multiplier(x, self.multiplier, self.exponent, self.mode)


def factored_scale(scale: Tensor, factor: float) -> Tensor:
    """The float32 scale of an operand whose products have a constant factor: a change of scale."""
    return scale if factor == 1.0 else scale * torch.tensor(factor, dtype=torch.float32)


def real_multiplier(
    input_scale: Tensor, weight_scale: Tensor, output_scale: Tensor, spec: RequantSpec | RequantMode
) -> Tensor:
    """The real multiplier m = s_x * s_w / s_y of an accumulator.

    Args:
        input_scale: float32, one element.
        weight_scale: float32, one element or [C].
        output_scale: float32, one element.
        spec: Specification with the float type; f32(f32(s_x * s_w) / s_y) in float32.

    Returns:
        float32 or float64, in the shape of `weight_scale`.
    """
    dtype = RequantSpec.of(spec).dtype
    return input_scale.to(dtype) * weight_scale.to(dtype) / output_scale.to(dtype)


def decompose(multiplier: Tensor, spec: RequantSpec | RequantMode = RequantMode.SINGLE) -> tuple[Tensor, Tensor]:
    """Write real multipliers as significand * 2^(exponent - P), the significand rounded half away to P bits.

    Above the range of exponents a multiplier saturates. Below, it becomes (0, 0) at 2^-32, as in TFLite; if the
    hardware shifts less far than that, the significand is shifted right instead, as in TOSA.

    Args:
        multiplier: Finite and not negative.
        spec: A mode with significands, or its specification.

    Returns:
        significand in the type of the mode and exponent int8, in the shape of `multiplier`.

    Raises:
        InputError: A multiplier is negative or not finite.

    Source:
        TFLite Micro quantization_util.cc, QuantizeMultiplier, and common.cc for `s64_16`; LLVM QuantUtils.cpp.
    """
    spec = RequantSpec.of(spec)
    form = spec.mode.form
    if not bool((torch.isfinite(multiplier) & (multiplier >= 0.0)).all()):
        raise InputError(f"requantization multipliers {multiplier.tolist()}", expected="finite and not negative")
    reduced = spec.mode is RequantMode.S64_16
    bits = 31 if reduced else form.significand_bits
    kept = bits if spec.multiplier_bits is None or reduced else spec.multiplier_bits - 1
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    significand = round_float(fraction * 2.0**kept, Rounding.HALF_AWAY).to(torch.int64)
    carried = significand == 1 << kept
    significand = torch.where(carried, 1 << (kept - 1), significand) << (bits - kept)
    exponent = exponent.to(torch.int64) + carried.to(torch.int64)
    if reduced:
        significand = ((significand + (1 << 15)) >> 16).clamp(max=(1 << 15) - 1)
        lost = 0 if spec.multiplier_bits is None else 16 - spec.multiplier_bits
        significand = (significand >> lost) << lost
    excess = (spec.min_exponent - exponent).clamp(0, 62)
    flushed = (exponent < MIN_EXPONENT) & (spec.mode is not RequantMode.TOSA16)
    too_large = exponent > spec.max_exponent
    most = (1 << form.significand_bits) - 1
    significand = torch.where(flushed, 0, torch.where(too_large, most, significand >> excess))
    exponent = torch.where(significand == 0, 0, exponent.clamp(spec.min_exponent, spec.max_exponent))
    return significand.to(torch.int32 if form.significand_bits > 15 else torch.int16), exponent.to(torch.int8)


def prepare_requantization(multiplier: Tensor, spec: RequantSpec | RequantMode) -> Requantization:
    """Bring a real multiplier into the form that a mode applies: float32, significand and exponent, or a shift.

    Raises:
        InputError: A multiplier is not a power of two in a mode of shifts, or one of the errors of `decompose`.
    """
    spec = RequantSpec.of(spec)
    if multiplier.requires_grad or multiplier.device.type != "cpu" or not 0 < multiplier.numel() <= CACHED_CHANNELS:
        return _prepare(multiplier, spec)
    # Lowering and every exact run need the multipliers of the same scales.
    data = multiplier.contiguous().numpy().tobytes()
    return _prepare_once(data, multiplier.dtype, tuple(multiplier.shape), spec)


@lru_cache(maxsize=2**14)
def _prepare_once(data: bytes, dtype: torch.dtype, shape: tuple[int, ...], spec: RequantSpec) -> Requantization:
    return _prepare(torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape), spec)


def _prepare(multiplier: Tensor, spec: RequantSpec) -> Requantization:
    if spec.mode is RequantMode.FLOAT32_RNE:
        return Requantization(spec.mode, multiplier.to(torch.float32), None, multiplier)
    if not spec.mode.is_shift:
        return Requantization(spec.mode, *decompose(multiplier, spec), multiplier)
    fraction, exponent = torch.frexp(multiplier.to(torch.float64))
    odd = (fraction != 0.5).reshape(-1)
    if bool(odd.any()):
        raise InputError(
            f"the multiplier {float(multiplier.reshape(-1)[odd][0])}",
            expected=f"a power of two, because requantization mode '{spec.mode}' only shifts",
            fix="Use power-of-two scales for weights and activations",
        )
    shift = (exponent.to(torch.int64) - 1).clamp(spec.min_exponent, spec.max_exponent)
    return Requantization(spec.mode, None, shift.to(torch.int8), multiplier)


def multiply_by_quantized_multiplier(
    x: Tensor, significand: Tensor | None, exponent: Tensor | None, mode: RequantMode
) -> Tensor:
    """Multiply integers by real multipliers and round: the module's formulas, without zero point and clamp.

    Args:
        x: int64 tensor with values in the range of int32; 48 bits for TOSA16 and S64_16.
        significand: As in `Requantization`; broadcasts with `x`.
        exponent: int8 in the shape of `significand`; None for FLOAT32_RNE.
        mode: The arithmetic.

    Returns:
        int64 tensor. For FLOAT32_RNE the product must stay below 2^63.

    Raises:
        InputError: The parts do not belong to the mode, or x << exponent leaves int32 in a two-stage mode.
    """
    found = tuple(part for part in (significand, exponent) if part is not None)
    if len(found) != len(mode.form.parts) or (mode.is_shift and exponent is None):
        raise InputError(
            f"no {'significand' if significand is None else 'exponent'} was passed for requantization mode '{mode}'",
            expected="the parts that the mode needs: significand, exponent or both",
        )
    if exponent is None:
        return torch.round(x.to(torch.float32) * found[0]).to(torch.int64)
    powers = exponent.to(torch.int64)
    left, right = powers.clamp(min=0), (-powers).clamp(min=0)
    if significand is None:
        return shift_right(x << left, right, mode.shift_rounding)
    wide = significand.to(torch.int64)
    if mode in (RequantMode.SINGLE, RequantMode.TOSA16, RequantMode.S64_16):
        return shift_right(x * wide, mode.form.significand_bits - powers, Rounding.HALF_UP)
    if mode is RequantMode.NVDLA:
        return shift_right(x * wide, mode.form.significand_bits - powers, Rounding.HALF_AWAY)
    shifted = x << left
    if bool((left > 0).any()) and bool(((shifted < -(1 << 31)) | (shifted >= 1 << 31)).any()):
        raise InputError(
            f"an accumulator overflows int32 when shifted left by up to {int(left.max())} bits",
            expected=f"a product of 32 bits, as requantization mode '{mode}' needs",
            fix="Use the mode 'single', or raise the output scale",
        )
    high = shift_right(shifted * wide, 31, Rounding.HALF_UP)
    return shift_right(high, right, Rounding.HALF_AWAY if mode is RequantMode.DOUBLE else Rounding.HALF_UP)


def rounding_reach(exponent: Tensor, mode: RequantMode) -> Tensor:
    """Largest distance of the rounded result of a multiplication from the exact product, in steps of the result.

    Half a step with a single rounding to nearest, a whole step without rounding to nearest. With two roundings, the
    first
        errs by half a unit of 2^-r steps, r the right shift of the second:  1/2 + 2^-(r + 1).

    Args:
        exponent: int8 exponents, any shape.
        mode: A mode with integer multipliers or shifts.

    Returns:
        float64 in the shape of `exponent`.
    """
    if mode in (RequantMode.POW2_SHIFT_FLOOR, RequantMode.POW2_SHIFT_TRUNCATE):
        return torch.ones(exponent.shape, dtype=torch.float64)
    half = torch.full(exponent.shape, 0.5, dtype=torch.float64)
    if mode in (RequantMode.DOUBLE, RequantMode.DOUBLE_HALF_UP):
        right = exponent.to(torch.float64).neg()
        return half + torch.where(right > 0, torch.exp2(-right - 1), 0.0)
    return half


def requantize(
    acc: Tensor,
    multiplier: Tensor | None,
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
        acc: int64 tensor with values in the range of int32, or of 48 bits in modes that take them; zero points of the
            inputs removed and the bias added.
        multiplier: As in `Requantization`: one element or [C].
        exponent: int8 exponents in the shape of `multiplier`; None for FLOAT32_RNE.
        mode: The arithmetic.
        zero_point: Zero point of the output.
        qmin: Lowest output code.
        qmax: Highest output code.
        axis: Channel axis of `acc`, for C multipliers.

    Returns:
        int64 codes in the shape of `acc`.

    Raises:
        InputError: As in `multiply_by_quantized_multiplier`.
    """
    multiplier, powers = (None if p is None else along_axis(p, acc.dim(), axis) for p in (multiplier, exponent))
    if mode is RequantMode.FLOAT32_RNE and multiplier is not None:
        # The limits are integers, so clamping before rounding gives the same codes and keeps the conversion in range.
        product = (acc.to(torch.float32) * multiplier).clamp(qmin - zero_point, qmax - zero_point)
        return torch.round(product).to(torch.int64) + zero_point
    return (multiply_by_quantized_multiplier(acc, multiplier, powers, mode) + zero_point).clamp(qmin, qmax)
