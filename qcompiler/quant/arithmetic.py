"""How a target computes, and the integer formulas of the operators that are not plain dot products.

Each operator has two halves: one runs at compile time and turns scales into multipliers, the other computes on codes
with these multipliers. The exact evaluation of a graph and the integer graph call the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams
from qcompiler.quant.fma import fused_multiply_add
from qcompiler.quant.modes import Precision, SoftmaxMode
from qcompiler.quant.requant import (
    Requantization,
    RequantMode,
    RequantSpec,
    prepare_requantization,
    real_multiplier,
)
from qcompiler.quant.rounding import AverageRounding, Rounding, divide, round_float

__all__ = [
    "ELEMENTWISE_FLOAT32",
    "AddParameters",
    "Arithmetic",
    "AverageParameters",
    "FloatOperation",
    "MulParameters",
    "RealFunction",
    "add_codes",
    "add_parameters",
    "average_parameters",
    "elementwise_float32",
    "global_average_codes",
    "left_is_scalar",
    "lookup_table",
    "mul_codes",
    "mul_parameters",
    "rescale_codes",
    "rescale_multiplier",
    "windowed_average_codes",
]

RealFunction: TypeAlias = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
FloatOperation: TypeAlias = Literal["add", "sub", "mul"]
ELEMENTWISE_FLOAT32 = "f32"
"""Mode of additions, subtractions and products computed by `elementwise_float32`."""


@dataclass(frozen=True)
class Arithmetic:
    """All choices of integer arithmetic in which two correct implementations may differ.

    Args:
        requant: Requantization of accumulators to codes.
        bias_rounding: Rounding of bias / bias_scale.
        table_rounding: Rounding of lookup table entries.
        average_rounding: Rounding of the sum of a window divided by the number of elements.
        divides_multipliers: Whether the significand of a mean is that of s_x / s_y divided by n, see
            `average_parameters`.
        elementwise: Computation of additions, subtractions and products: "requantize", by the multipliers of the mode;
            "f32", on dequantized operands in float32, each step rounded.
        accumulator_bits: Width of the accumulator.
        overflow: Behaviour of the accumulator beyond its width. Sums are proven to stay inside in any case: final sums
            for "wrap", all sums that begin with the bias for "forbid", all partial sums for "saturate".
        add_shift: Left shift in bits of both operands of an addition before they are rescaled; less if the result would
            exceed 31 bits: 15 for symmetric 16-bit codes.
        bias_bits: Width of a stored bias.
        zero_point_folding: Place where the zero point of the input is removed from the products: in "hardware", or by
            the "compiler", which stores b - z_x * sum w as the bias.
        table_precision: Float type in which table entries are computed before rounding.
        softmax: Arithmetic of a softmax of 8-bit codes.
        wide_softmax: Arithmetic of a softmax with an operand or a result of more than 8 bits.
        special: Differences for single ops, by op name and the storage width of the input codes, 8 or 16 bits.
    """

    requant: RequantSpec
    bias_rounding: Rounding
    table_rounding: Rounding
    average_rounding: AverageRounding
    accumulator_bits: int = 32
    overflow: Literal["forbid", "wrap", "saturate"] = "forbid"
    add_shift: int = 20
    divides_multipliers: bool = False
    elementwise: Literal["requantize", "f32"] = "requantize"
    bias_bits: int = 32
    zero_point_folding: Literal["compiler", "hardware"] = "hardware"
    table_precision: Precision = "float64"
    softmax: SoftmaxMode = SoftmaxMode.TABLE
    wide_softmax: SoftmaxMode = SoftmaxMode.TABLE
    special: Mapping[tuple[str, int], Arithmetic] = field(default_factory=dict)

    def at(self, op: str, bits: int) -> Arithmetic:
        """The arithmetic of `op` on codes of `bits` bits."""
        return self.special.get((op, 16 if bits > 8 else 8), self)

    def softmax_mode(self, bits: int) -> SoftmaxMode:
        """The arithmetic of a softmax, by the larger width of its operand and its result."""
        return self.wide_softmax if bits > 8 else self.softmax


@dataclass(frozen=True, eq=False)
class AddParameters:
    """Constants of one addition, made by `add_parameters`.

    Args:
        left: Multiplier of the left operand.
        right: Multiplier of the right operand.
        out: Multiplier of the sum; None in float32 arithmetic.
        left_zero_point: Zero point of the left operand.
        right_zero_point: Zero point of the right operand.
        out_zero_point: Zero point of the result.
        shift: Left shift of both operands in bits; 0 in float32 arithmetic.
        offset: float32 constant that combines all zero points; None in integer arithmetic.
        scalar_left_offset: The same constant with the operands exchanged, for a left operand that `left_is_scalar`;
            None in integer arithmetic.
        subtract: Whether to subtract the right operand; in float32 arithmetic its negative multiplier does so.
    """

    left: Requantization
    right: Requantization
    out: Requantization | None
    left_zero_point: int
    right_zero_point: int
    out_zero_point: int
    shift: int
    offset: Tensor | None
    scalar_left_offset: Tensor | None
    subtract: bool = False


@dataclass(frozen=True, eq=False)
class MulParameters:
    """Constants of one multiplication, made by `mul_parameters`.

    Args:
        product: Multiplier of the product of the codes.
        left_zero_point: Zero point of the left operand.
        right_zero_point: Zero point of the right operand.
        out_zero_point: Zero point of the result.
    """

    product: Requantization
    left_zero_point: int
    right_zero_point: int
    out_zero_point: int


def add_parameters(
    left: AffineParams,
    right: AffineParams,
    out: AffineParams,
    arithmetic: Arithmetic,
    *,
    largest: int = 255,
    subtract: bool = False,
) -> AddParameters:
    """Compute the constants of `add_codes`.

    Args:
        left: Parameters of the left operand, per tensor.
        right: Parameters of the right operand, per tensor.
        out: Parameters of the result, per tensor.
        arithmetic: The arithmetic of the target.
        largest: Largest magnitude of q - z in either operand.
        subtract: Whether to compute the difference instead of the sum.

    Returns:
        The constants: with L the largest number up to add_shift for which largest * 2^L <= 2^30, and
        S = 2 * max(s_left, s_right), the multipliers s_left / S, s_right / S and S / (2^L * s_out); in float32
        arithmetic r_a = f32(s_left / s_out), r_b = f32(s_right / s_out) and the offset
        k = f32(z_out - fma(r_a, z_left, f32(r_b * z_right))).
    """
    zeros = _zero_point(left), _zero_point(right), _zero_point(out)
    spec = arithmetic.requant
    mode = spec.mode
    # In float32 both operands are multiplied by their ratio to the output scale, and one offset holds all zero points.
    if mode is RequantMode.FLOAT32_RNE:
        a, b = left.scale / out.scale, right.scale / out.scale
        b = -b if subtract else b
        left_zero, right_zero = left.zero_point.to(torch.float32), right.zero_point.to(torch.float32)
        return AddParameters(
            left=Requantization(mode, a, None),
            right=Requantization(mode, b, None),
            out=None,
            left_zero_point=zeros[0],
            right_zero_point=zeros[1],
            out_zero_point=zeros[2],
            shift=0,
            offset=zeros[2] - fused_multiply_add(a, left_zero, b * right_zero),
            scalar_left_offset=zeros[2] - fused_multiply_add(b, right_zero, a * left_zero),
            subtract=subtract,
        )
    # In integers both operands are brought to one scale, shifted left to keep bits, and their sum is requantized.
    left_scale, right_scale = left.scale.to(spec.dtype), right.scale.to(spec.dtype)
    common = 2.0 * torch.maximum(left_scale, right_scale)
    shift = min(arithmetic.add_shift, 30 - max(largest - 1, 0).bit_length())
    return AddParameters(
        left=prepare_requantization(left_scale / common, spec),
        right=prepare_requantization(right_scale / common, spec),
        out=prepare_requantization(common / (2.0**shift * out.scale.to(spec.dtype)), spec),
        left_zero_point=zeros[0],
        right_zero_point=zeros[1],
        out_zero_point=zeros[2],
        shift=shift,
        offset=None,
        scalar_left_offset=None,
        subtract=subtract,
    )


def add_codes(a: Tensor, b: Tensor, parameters: AddParameters, *, qmin: int, qmax: int) -> Tensor:
    """Add or subtract two quantized tensors.

    Integer arithmetic: both operands, zero point removed and shifted left, are rescaled to a common scale, added, and
    rescaled to the output. Float32 arithmetic is that of ONNX Runtime's QLinearAdd on x86 with FMA,

        clamp(rne(fma(a, r_a, fma(b, r_b, k))))

    in which the two operands and the offset are exchanged if `left_is_scalar`, which changes results only at ties.

    Args:
        a: int64 codes.
        b: int64 codes that broadcast with `a`.
        parameters: Constants from `add_parameters`.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes in the broadcast shape.

    Source:
        TFLite Micro add_common.cc; ONNX Runtime mlas qladd_avx2.cpp.
    """
    if parameters.out is None:
        return _add_codes_float32(a, b, parameters, qmin, qmax)
    left = parameters.left.scale((a - parameters.left_zero_point) << parameters.shift)
    right = parameters.right.scale((b - parameters.right_zero_point) << parameters.shift)
    total = left - right if parameters.subtract else left + right
    return parameters.out.apply(total, zero_point=parameters.out_zero_point, qmin=qmin, qmax=qmax)


def left_is_scalar(left_shape: Sequence[int], right_shape: Sequence[int]) -> bool:
    """Whether the left operand has size 1 along the innermost axis of the result with more than one element.

    ONNX Runtime's elementwise kernels then exchange the operands, as they do for a result of a single element.

    Args:
        left_shape: Shape of the left operand.
        right_shape: Shape of the right operand, which broadcasts with it.
    """
    rank = max(len(left_shape), len(right_shape))
    left = [1] * (rank - len(left_shape)) + list(left_shape)
    right = [1] * (rank - len(right_shape)) + list(right_shape)
    spans = [mine for mine, other in zip(left, right, strict=True) if (mine, other) != (1, 1)]
    return not spans or spans[-1] == 1


def mul_parameters(left: AffineParams, right: AffineParams, out: AffineParams, arithmetic: Arithmetic) -> MulParameters:
    """Compute the constants of `mul_codes`: the multiplier s_left * s_right / s_out and the zero points.

    Args:
        left: Parameters of the left operand, per tensor.
        right: Parameters of the right operand, per tensor.
        out: Parameters of the result, per tensor.
        arithmetic: The arithmetic of the target.
    """
    multiplier = real_multiplier(left.scale, right.scale, out.scale, arithmetic.requant)
    product = prepare_requantization(multiplier, arithmetic.requant)
    return MulParameters(product, _zero_point(left), _zero_point(right), _zero_point(out))


def mul_codes(a: Tensor, b: Tensor, parameters: MulParameters, *, qmin: int, qmax: int) -> Tensor:
    """Multiply two quantized tensors: requantize((a - z_a) * (b - z_b)).

    Float32 arithmetic is that of ONNX Runtime's QLinearMul on x86, which adds the zero point before it rounds:
    clamp(rne(f32(f32(product * m) + z_out))). This is not the float32 requantization of a matrix product.

    Args:
        a: int64 codes of at most 16 bits.
        b: int64 codes that broadcast with `a`.
        parameters: Constants from `mul_parameters`.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes in the broadcast shape.

    Source:
        TFLite mul.h; ONNX Runtime mlas qlmul.cpp.
    """
    product = (a - parameters.left_zero_point) * (b - parameters.right_zero_point)
    if parameters.product.mode is RequantMode.FLOAT32_RNE:
        shifted = product.to(torch.float32) * parameters.product.factor + float(parameters.out_zero_point)
        return torch.round(shifted).clamp(qmin, qmax).to(torch.int64)
    return parameters.product.apply(product, zero_point=parameters.out_zero_point, qmin=qmin, qmax=qmax)


def elementwise_float32(
    operation: FloatOperation,
    operands: Sequence[Tensor],
    grids: Sequence[AffineParams],
    out: AffineParams,
    *,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Add, subtract or multiply in float32: dequantize both operands, compute, quantize. Each step is rounded.

        x = f32(s_a * (a - z_a));  y = f32(s_b * (b - z_b));  q = clamp(rne(f32(f32(x op y) / s_out)) + z_out)

    ONNX Runtime computes this formula on every processor if it has no kernel on codes, and with all optimization off.
    Its kernels on codes (QLinearAdd, QLinearMul) have another formula on each processor.

    Args:
        operation: The operation to compute.
        operands: int64 codes of at most 16 bits, which broadcast.
        grids: Parameters of both operands, per tensor.
        out: Parameters of the result, per tensor.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes in the broadcast shape.
    """
    x, y = (
        (codes - _zero_point(grid)).to(torch.float32) * grid.scale for codes, grid in zip(operands, grids, strict=True)
    )
    real = x + y if operation == "add" else x - y if operation == "sub" else x * y
    zero_point = _zero_point(out)
    # Clamped before the conversion to integers, because a quotient may be infinite.
    steps = torch.round((real / out.scale).clamp(qmin - zero_point, qmax - zero_point))
    return steps.to(torch.int64) + zero_point


@dataclass(frozen=True, eq=False)
class AverageParameters:
    """Constants of an average over whole axes, made by `average_parameters`.

    Args:
        multiplier: Multiplier of the sum, or of the quotient if there is a divisor.
        divisor: Divisor of the sum; None if the multiplier includes the division.
        rounding: Rounding of the quotient.
    """

    multiplier: Requantization
    divisor: int | None
    rounding: AverageRounding


def average_parameters(
    input_scale: Tensor, output_scale: Tensor, count: int, arithmetic: Arithmetic
) -> AverageParameters:
    """The multiplier s_x / (s_y * n) of an average over n codes.

    FLOAT32_RNE computes f32(s_x / f32(s_y * n)), as ONNX Runtime's QLinearGlobalAveragePool does. If multipliers are
    powers of two, n stays a divisor. With `divides_multipliers`, a significand M of s_x / s_y becomes

        floor(M * 2^k / n) * 2^(e - k - P)        2^k <= n < 2^(k + 1), k at most 32 and at most P + e

    which has one bit less where n is no power of two, and so another two-stage rounding.

    Source: TensorFlow Lite kernels/internal/reference/reduce.h, QuantizedMeanOrSum.

    Args:
        input_scale: float32, one element.
        output_scale: float32, one element.
        count: Number of averaged codes, n.
        arithmetic: The arithmetic of the target.
    """
    spec = arithmetic.requant
    shifts = spec.mode.is_shift
    divides = arithmetic.divides_multipliers and spec.mode.form.significand_bits > 0
    real = input_scale.to(spec.dtype) / (output_scale.to(spec.dtype) * (1 if shifts or divides else count))
    multiplier = prepare_requantization(real, spec)
    if divides:
        multiplier = _divided(multiplier, count)
    return AverageParameters(multiplier, count if shifts else None, arithmetic.average_rounding)


def _divided(multiplier: Requantization, count: int) -> Requantization:
    """A multiplier divided by the number of averaged codes; see `average_parameters`."""
    significand, exponent = multiplier.factor.to(torch.int64), multiplier.exponent
    assert exponent is not None, "a mode with significands has exponents"
    powers = exponent.to(torch.int64)
    bits = multiplier.mode.form.significand_bits
    shift = torch.full_like(powers, min(count.bit_length() - 1, 32)).minimum(bits + powers)
    divided = (significand << shift) // count
    kept = (powers - shift).to(exponent.dtype)
    real = divided.to(torch.float64) * torch.exp2((powers - shift - bits).to(torch.float64))
    return Requantization(multiplier.mode, divided.to(multiplier.factor.dtype), kept, real)


def global_average_codes(
    q: Tensor,
    dims: tuple[int, ...],
    parameters: AverageParameters,
    *,
    in_zero_point: int,
    out_zero_point: int,
    qmin: int,
    qmax: int,
    keepdim: bool = True,
) -> Tensor:
    """Average over whole axes: requantize(sum(q - z_in)), the division folded into the multiplier.

    With a divisor n and a multiplier 2^e there is one division and one rounding, of sum(q - z_in) * 2^e / n.

    Args:
        q: int64 codes.
        dims: Axes to average.
        parameters: From `average_parameters`, with n the number of elements along `dims`.
        in_zero_point: Zero point of `q`.
        out_zero_point: Zero point of the result.
        qmin: Lowest output code.
        qmax: Highest output code.
        keepdim: Keep the averaged axes with size 1.

    Returns:
        int64 codes.
    """
    total = (q - in_zero_point).sum(dim=dims, keepdim=keepdim)
    multiplier, divisor = parameters.multiplier, parameters.divisor
    if divisor is None:
        return multiplier.apply(total, zero_point=out_zero_point, qmin=qmin, qmax=qmax)
    if multiplier.exponent is None:
        raise InputError("an average has both a divisor and a float multiplier", expected="a power of two")
    power = int(multiplier.exponent)
    dividend, whole = total << max(power, 0), divisor << max(-power, 0)
    return _average(dividend, whole, parameters.rounding, out_zero_point).clamp(qmin, qmax)


def windowed_average_codes(
    total: Tensor, count: Tensor | int, rounding: AverageRounding, *, zero_point: int, qmin: int, qmax: int
) -> Tensor:
    """Average over windows if input and output share scale and zero point: divide(sum(q - z), n) + z.

    Args:
        total: int64 sums of q - zero_point over each window.
        count: Elements in each window: one number, or a tensor that broadcasts with `total`.
        rounding: Rounding of the quotient.
        zero_point: Zero point of input and output.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes in the shape of `total`.
    """
    return _average(total, count, rounding, zero_point).clamp(qmin, qmax)


def _average(total: Tensor, count: Tensor | int, rounding: AverageRounding, zero_point: int) -> Tensor:
    """total / count + zero_point, rounded before or after the zero point is added."""
    if rounding.is_raw:
        return divide(total + count * zero_point, count, rounding.rounding)
    return divide(total, count, rounding.rounding) + zero_point


def rescale_multiplier(source: AffineParams, target: AffineParams, arithmetic: Arithmetic) -> Requantization:
    """The multiplier s_source / s_target of `rescale_codes`, per tensor."""
    one = torch.ones_like(source.scale)
    multiplier = real_multiplier(source.scale, one, target.scale, arithmetic.requant)
    return prepare_requantization(multiplier, arithmetic.requant)


def rescale_codes(
    q: Tensor, multiplier: Requantization, *, in_zero_point: int, out_zero_point: int, qmin: int, qmax: int
) -> Tensor:
    """Move codes from one scale and zero point to another: requantize(q - z_in).

    Args:
        q: int64 codes.
        multiplier: From `rescale_multiplier`.
        in_zero_point: Zero point of `q`.
        out_zero_point: Zero point of the result.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes in the shape of `q`.
    """
    return multiplier.apply(q - in_zero_point, zero_point=out_zero_point, qmin=qmin, qmax=qmax)


def lookup_table(
    function: RealFunction,
    source: AffineParams,
    target: AffineParams,
    arithmetic: Arithmetic,
    *,
    in_qmin: int,
    in_qmax: int,
    out_qmin: int,
    out_qmax: int,
) -> Tensor:
    """Tabulate a function over all input codes: t[q] = clamp(round(f(s_in * (q - z_in)) / s_out) + z_out).

    Computed in float64 at compile time, so no target needs a math library and no results differ. With a
    `table_precision` of float32 the argument, the function value and the quotient are each rounded to float32, as ONNX
    Runtime does.

    Args:
        function: The real function, elementwise on a float64 array.
        source: Parameters of the input, per tensor.
        target: Parameters of the output, per tensor.
        arithmetic: Arithmetic with the rounding of the entries and the float type in which they are computed.
        in_qmin: Lowest input code.
        in_qmax: Highest input code.
        out_qmin: Lowest output code.
        out_qmax: Highest output code.

    Returns:
        int64 [in_qmax - in_qmin + 1]; entry i belongs to the input code in_qmin + i.

    Raises:
        InputError: The function returns NaN for an input code.
    """
    steps = torch.arange(in_qmin, in_qmax + 1, dtype=torch.int64) - _zero_point(source)
    if arithmetic.table_precision == "float32":
        real = (steps.to(torch.float32) * source.scale).to(torch.float64)
        quotient = _evaluate(function, real).to(torch.float32) / target.scale
    else:
        quotient = _evaluate(function, steps * source.scale.to(torch.float64)) / target.scale.to(torch.float64)
    if bool(torch.isnan(quotient).any()):
        code = in_qmin + int(torch.nonzero(torch.isnan(quotient))[0])
        raise InputError(
            f"the function of a table returns NaN for the input code {code}", expected="a finite result for every code"
        )
    entries = round_float(quotient.to(torch.float64), arithmetic.table_rounding) + _zero_point(target)
    return entries.clamp(out_qmin, out_qmax).to(torch.int64)


def _add_codes_float32(a: Tensor, b: Tensor, parameters: AddParameters, qmin: int, qmax: int) -> Tensor:
    first, second, offset = (a, parameters.left), (b, parameters.right), parameters.offset
    if left_is_scalar(a.shape, b.shape):
        first, second, offset = second, first, parameters.scalar_left_offset
    if offset is None:
        raise InputError("the addition has neither an output multiplier nor an offset")
    partial = fused_multiply_add(second[0].to(torch.float32), second[1].factor, offset)
    total = fused_multiply_add(first[0].to(torch.float32), first[1].factor, partial)
    return torch.round(total).clamp(qmin, qmax).to(torch.int64)


def _evaluate(function: RealFunction, real: Tensor) -> Tensor:
    """Apply a numpy function to a float64 tensor; overflow to infinity is valid, because the clamp follows."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return torch.from_numpy(np.asarray(function(real.numpy()), dtype=np.float64))


def _zero_point(params: AffineParams) -> int:
    """The zero point as a number; elementwise arithmetic on codes needs one zero point per tensor."""
    if params.axis is not None:
        raise InputError(
            f"per-channel parameters on axis {params.axis}", expected="one scale and one zero point per tensor"
        )
    return int(params.zero_point)
