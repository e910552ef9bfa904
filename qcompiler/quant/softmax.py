"""Softmax on codes: a table of exponentials, their sum along the axis, and a quotient for each element.

With the distance d = max - q >= 0 of a code from the largest code of its row, and the scale s of the input,

    e = T[d]                  T[d] = exp(-s d) in units of the mode; distances beyond the table take its last entry
    y = quotient(e, sum e)    of the elements that the mask keeps; the others give the code of 0

| mode | T | sum | quotient |
|---|---|---|---|
| `table` | 2^F exp(-s d), rounded | integer | (e R) / (sum 2^k) with R / 2^k = 1 / s_y, halves up |
| `f32` | float32, scaled by exp(log(largest / n) - 5) | float32, in order | (e / s_y) / sum, halves to even |
| `gemmlowp` | Q0.31, exp_on_negative_values | Q12.19 | times a reciprocal by three Newton steps, in 8 bits |
| `lut16` | Q0.15, interpolated between 513 entries | Q16.15 | times an interpolated reciprocal, in 16 bits |

Source: ONNX Runtime qlinear_softmax.cc (`f32`); TensorFlow Lite reference/softmax.h and gemmlowp fixedpoint.h
(`gemmlowp`, `lut16`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.modes import SoftmaxMode
from qcompiler.quant.rounding import Rounding, divide
from qcompiler.quant.softmax_tables import gemmlowp_exponentials, interpolated_exponentials, reciprocals

__all__ = ["INTERPOLATED", "SoftmaxParameters", "softmax_codes", "softmax_parameters"]

FRACTION = 20
"""Most fractional bits of an entry of `table`: an eighth of a step is 2^-11 in 8 bits, and 2^-19 in 16 bits."""
SUM_BITS = 30
"""Bits of a sum of `table`, which fits into 32 bits with its halves."""
NUMERATOR_BITS = 16
"""Bits of R, where 1 / s_y is no integer."""
LARGEST_NUMERATOR = 2**24
"""Largest 1 / s_y."""
INTERPOLATED = 513
"""Entries of an interpolated table."""
GEMMLOWP_ROW = 4095
"""Longest row whose sum of exponentials fits into Q12.19."""
LUT16_ROW = 65535
"""Longest row whose sum of exponentials fits into Q16.15."""


@dataclass(frozen=True, eq=False)
class SoftmaxParameters:
    """Constants of one softmax, made by `softmax_parameters`.

    Args:
        mode: The mode.
        table: int64, or float32 in the mode `f32`: an entry for each distance; in the mode `lut16` after the
            `INTERPOLATED` entries of the reciprocal.
        numerator: R of the module docstring; 1 / s_y in the mode `f32`; 1 in others.
        shift: k of the module docstring.
    """

    mode: SoftmaxMode
    table: Tensor
    numerator: int = 1
    shift: int = 0


def softmax_parameters(
    source: AffineParams, target: AffineParams, mode: SoftmaxMode, *, count: int, distance: int, bits: int
) -> SoftmaxParameters:
    """Compute the constants of `softmax_codes`.

    Args:
        source: Scale and zero point of the input.
        target: Scale and zero point of the result.
        mode: The mode.
        count: Elements of a row.
        distance: Largest difference of two codes of the input.
        bits: Width of a code of the result.

    Raises:
        InputError: The mode has no such result, or no such rows.
    """
    scale = float(source.scale)
    if mode is SoftmaxMode.TABLE:
        fraction = min(FRACTION, SUM_BITS - (count - 1).bit_length())
        if fraction < bits:
            raise InputError(f"a softmax of {count} elements", expected=f"at most {2 ** (SUM_BITS - bits)}")
        entries = _halves_away(np.exp(-scale * np.arange(distance + 1, dtype=np.float64)) * 2.0**fraction)
        numerator, shift = _quotient(target)
        return SoftmaxParameters(mode, _shortened(entries), numerator, shift)
    _check_grid(target, mode)
    if mode is SoftmaxMode.FLOAT32:
        if count < 2:  # the product with 1 / s_y exceeds float32
            raise InputError("a softmax of one element in the mode f32", expected="at least 2", fix="Use ones instead.")
        largest = np.float32(np.finfo(np.float32).max) / np.float32(count)
        above = max(0.0, math.log(float(largest)) - 5.0)
        real = np.exp(-scale * np.arange(distance + 1, dtype=np.float64) + above)
        return SoftmaxParameters(mode, torch.from_numpy(real.astype(np.float32)), _GRIDS[mode][0])
    longest = GEMMLOWP_ROW if mode is SoftmaxMode.GEMMLOWP else LUT16_ROW
    if count > longest:
        raise InputError(f"a softmax of {count} elements in the mode {mode}", expected=f"at most {longest}")
    if mode is SoftmaxMode.GEMMLOWP:
        return SoftmaxParameters(mode, _shortened(gemmlowp_exponentials(scale, distance)))
    exponentials = _shortened(interpolated_exponentials(scale, distance))
    return SoftmaxParameters(mode, torch.cat([torch.from_numpy(reciprocals()), exponentials]))


_GRIDS = {SoftmaxMode.FLOAT32: (256, 8), SoftmaxMode.GEMMLOWP: (256, 8), SoftmaxMode.LUT16: (32768, 16)}
"""1 / s_y and the width of a result of the modes with one grid."""


def _check_grid(target: AffineParams, mode: SoftmaxMode) -> None:
    steps, _ = _GRIDS[mode]
    if float(target.scale) * steps != 1.0:
        raise InputError(
            f"a softmax with the scale {float(target.scale):.6g}",
            expected=f"1/{steps}, the only one of the mode '{mode}'",
            fix="Fix the grid in the target: out_fixed of softmax.",
        )


def _quotient(target: AffineParams) -> tuple[int, int]:
    """R and k with R / 2^k = 1 / s_y."""
    steps = 1.0 / float(target.scale)
    if steps > LARGEST_NUMERATOR:
        expected = f"at least 2^-{LARGEST_NUMERATOR.bit_length() - 1}"
        raise InputError(f"a softmax with the scale {float(target.scale):.6g}", expected=expected)
    if steps == int(steps):
        return int(steps), 0
    fraction, exponent = math.frexp(steps)
    bits = max(NUMERATOR_BITS, exponent)
    return int(_halves_away(np.float64(fraction * 2.0**bits))), bits - exponent


def _halves_away(x: npt.NDArray[np.float64] | np.float64) -> npt.NDArray[np.int64]:
    """Non-negative numbers to the nearest integer."""
    whole = np.floor(x)
    return np.asarray(whole + (x - whole >= 0.5)).astype(np.int64)


def _shortened(entries: npt.NDArray[np.int64]) -> Tensor:
    """Without the repetitions of the last entry, which greater distances take anyway."""
    different = np.flatnonzero(entries != entries[-1])
    return torch.from_numpy(entries[: (int(different[-1]) + 2 if different.size else 1)].astype(np.int64))


def softmax_codes(
    codes: Tensor,
    axis: int,
    parameters: SoftmaxParameters,
    mask: Tensor | None,
    *,
    out_zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Softmax of codes along an axis.

    Args:
        codes: int64 codes.
        axis: The axis of the rows.
        parameters: Constants.
        mask: bool, which broadcasts with `codes`: the elements that take part; None for all. A row of which no element
            takes part is 0.
        out_zero_point: Zero point of the result.
        qmin: Lowest code of the result.
        qmax: Highest code.

    Returns:
        int64 codes.
    """
    rows = codes.movedim(axis, -1)
    kept = torch.ones_like(rows, dtype=torch.bool)
    if mask is not None:
        kept = mask.expand(codes.shape).movedim(axis, -1)
    lowest = torch.iinfo(torch.int64).min // 2
    largest = torch.where(kept, rows, lowest).amax(-1, keepdim=True)
    distance = torch.where(kept, largest - rows, 0)
    quotient = _QUOTIENTS[parameters.mode](distance, kept, parameters)
    result = torch.where(kept, quotient, 0) + out_zero_point
    return result.clamp(qmin, qmax).movedim(-1, axis)


def _exponentials(distance: Tensor, kept: Tensor, table: Tensor) -> Tensor:
    entries = table[distance.clamp(max=len(table) - 1)]
    return torch.where(kept, entries, torch.zeros((), dtype=table.dtype))


def _divided(distance: Tensor, kept: Tensor, p: SoftmaxParameters) -> Tensor:
    entries = _exponentials(distance, kept, p.table)
    total = entries.sum(-1, keepdim=True).clamp(min=1)
    return divide(entries * p.numerator, total << p.shift, Rounding.HALF_UP)


def _in_float32(distance: Tensor, kept: Tensor, p: SoftmaxParameters) -> Tensor:
    entries = _exponentials(distance, kept, p.table)
    total = torch.zeros_like(entries[..., :1])
    for index in range(entries.shape[-1]):  # in order: torch sums in another one
        total = total + entries[..., index : index + 1]
    smallest = torch.finfo(torch.float32).tiny
    return torch.round(entries * float(p.numerator) / total.clamp(min=smallest)).to(torch.int64)


def _high_product(a: Tensor, b: Tensor) -> Tensor:
    """round(a b / 2^31), halves up; saturated where both are the lowest 32-bit number, which does not occur here."""
    return (a * b + (1 << 30)) >> 31


def _shifted_away(x: Tensor, shift: Tensor | int) -> Tensor:
    """x / 2^shift for x of any sign, halves away from zero."""
    half = torch.as_tensor(1) << (torch.as_tensor(shift) - 1)
    magnitude = (x.abs() + half) >> torch.as_tensor(shift)
    return torch.where(x < 0, -magnitude, magnitude)


def _leading_zeros(x: Tensor) -> Tensor:
    """Leading zeros of a positive number of 32 bits."""
    return 32 - torch.frexp(x.to(torch.float64)).exponent.to(torch.int64)


def _newton(distance: Tensor, kept: Tensor, p: SoftmaxParameters) -> Tensor:
    entries = _exponentials(distance, kept, p.table)
    total = _shifted_away(entries, 12).sum(-1, keepdim=True).clamp(min=1)
    headroom = _leading_zeros(total)
    most = 2**31 - 1
    denominator = (total << headroom) >> 1
    x = 1515870810 + _high_product(denominator, torch.as_tensor(-1010580540))
    for _ in range(3):
        rest = (1 << 29) - _high_product(denominator, x)
        x = x + (_high_product(x, rest) << 2).clamp(-(2**31), most)
    reciprocal = (x << 1).clamp(-(2**31), most)
    shift = (12 - headroom) + 31 - 8
    return _shifted_away(_high_product(reciprocal, entries), shift)


def _interpolated(distance: Tensor, kept: Tensor, p: SoftmaxParameters) -> Tensor:
    inverse, table = p.table[:INTERPOLATED], p.table[INTERPOLATED:]
    entries = _exponentials(distance, kept, table)
    total = entries.sum(-1, keepdim=True).clamp(min=1)
    headroom = _leading_zeros(total)
    position = (((total << (headroom - 1)) + (1 << 13)) >> 14) - (2**15 + 2**16)
    position = position.clamp(-(2**15), 2**15 - 1)
    index, offset = 256 + (position >> 7), position & 127
    base = inverse[index]
    reciprocal = base + (((inverse[index + 1] - base) * offset + 64) >> 7)
    shift = 31 - headroom
    return ((entries * reciprocal + (torch.as_tensor(1) << (shift - 1))) >> shift).clamp(0, 2**15 - 1)


_QUOTIENTS = {
    SoftmaxMode.TABLE: _divided,
    SoftmaxMode.FLOAT32: _in_float32,
    SoftmaxMode.GEMMLOWP: _newton,
    SoftmaxMode.LUT16: _interpolated,
}
