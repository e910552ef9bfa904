"""The affine map between real numbers and codes: real = scale * (q - zero_point).

Scales are float32, zero points int32, codes int32. Quantization divides by the scale with a true float32 division:
multiplication by a reciprocal would move values close to a tie to another code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qcompiler.errors import CalibrationError, InputError
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec, ScaleKind

__all__ = [
    "SMALLEST_SCALE",
    "AffineParams",
    "along_axis",
    "bias_scale",
    "channel_rows",
    "dequantize",
    "fake_quantize",
    "next_power_of_two",
    "qparams_from_range",
    "quantize",
    "quantize_bias",
    "unchecked_qparams",
]

SMALLEST_SCALE = 2.0**-60
"""Lower limit of a scale: the product of two such scales, which is a bias scale, is still a normal float32."""

_FLOAT32_EXACT_BITS = 16
"""Widest grid on which every difference of two codes is exact in float32, so that codes may be clamped as floats."""


@dataclass(frozen=True, eq=False)
class AffineParams:
    """Scale and zero point of one quantized tensor.

    Args:
        scale: float32, positive: no dimension for one scale per tensor, else [C] along `axis`.
        zero_point: int32 in the shape of `scale`.
        axis: Channel axis of the tensor; None for one scale per tensor.

    Raises:
        InputError: Types or shapes do not match.
    """

    scale: Tensor
    zero_point: Tensor
    axis: int | None = None

    def __post_init__(self) -> None:
        rank = 0 if self.axis is None else 1
        found = f"scale {_describe(self.scale)} and zero point {_describe(self.zero_point)}"
        if (self.scale.dtype, self.zero_point.dtype) != (torch.float32, torch.int32):
            raise InputError(found, expected="a float32 scale and an int32 zero point")
        if self.scale.shape != self.zero_point.shape or self.scale.dim() != rank:
            raise InputError(found, expected=f"tensors of rank {rank} and equal shape, for axis={self.axis}")


def along_axis(values: Tensor, rank: int, axis: int | None) -> Tensor:
    """Reshape per-channel values to broadcast against a tensor with channels on `axis`.

    Args:
        values: One element, or [C].
        rank: Number of dimensions of the other tensor.
        axis: Channel axis of the other tensor, counted from either end; None leaves `values` unchanged.

    Returns:
        `values` as [1, .., C, .., 1], or unchanged for a single value.
    """
    if axis is None or values.dim() == 0:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def channel_rows(tensor: Tensor, axis: int) -> Tensor:
    """The numbers of each channel as a row, [C, count]; the inverse of `along_axis`.

    Args:
        tensor: Tensor of rank 1 or more.
        axis: Channel axis, counted from either end.
    """
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def qparams_from_range(low: Tensor | float, high: Tensor | float, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Choose scale and zero point so that the grid covers a range of real numbers.

    The range is first widened to contain 0, so that 0 always has an exact code. Then, computed in float64:

        asymmetric           s = (high - low) / (qmax - qmin),   z = clamp(rne(qmin - low / s), qmin, qmax)
        symmetric signed     s = max(|low|, |high|) / qmax,      z = 0
        symmetric unsigned   s = high / qmax,                    z = 0

    s is rounded to float32 before z is computed from it; a power-of-two scale is rounded up. A range of only 0 is
    replaced by 0 to 1, with steps as fine as in neighbouring channels, and no scale is below `SMALLEST_SCALE`.

    Args:
        low: Lower end: a number or 0-d tensor, or [C] for one range per channel.
        high: Upper end, in the same shape.
        spec: The grid, without scale and zero point.

    Returns:
        scale (float32) and zero point (int32), both in the shape of `low`.

    Raises:
        CalibrationError: An end is not finite, the ends are out of order, the scale leaves float32, or a range reaches
            below 0 on a symmetric unsigned grid.
    """
    low = torch.as_tensor(low).detach().to(torch.float64)
    high = torch.as_tensor(high).detach().to(torch.float64)
    _check_range(low, high, spec)
    scale, zero_point = unchecked_qparams(low, high, spec)
    if not bool(torch.isfinite(scale).all()):
        raise CalibrationError(f"a range up to {float(high.max())} needs a scale that float32 cannot hold")
    return scale, zero_point.to(torch.int32)


def unchecked_qparams(low: Tensor, high: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scale and zero point of `qparams_from_range` for ranges that change at each step of a training.

    Nothing is read back from a device. A range that is not finite gives a scale that is not finite.

    Args:
        low: Lower end, float64.
        high: Upper end, float64.
        spec: The grid, without scale and zero point.

    Returns:
        scale (float32) and zero point (integral, float64), both in the shape of `low`.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if spec.symmetric:
        steps, reach = spec.qmax, torch.maximum(-low, high)
    else:
        steps, reach = spec.qmax - spec.qmin, high - low
    exact = torch.where(reach == 0.0, torch.ones_like(reach) / steps, (reach / steps).clamp(min=SMALLEST_SCALE))
    if spec.scale_kind is ScaleKind.POW2:
        exact = next_power_of_two(exact)
    scale = exact.to(torch.float32)
    if spec.symmetric:
        return scale, torch.zeros_like(exact)
    zero_point = round_float(spec.qmin - low / scale.to(torch.float64), Rounding.NEAREST_EVEN)
    return scale, zero_point.clamp(spec.qmin, spec.qmax)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    spec: QuantSpec,
    qmin: int | None = None,
    qmax: int | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """Map real numbers to codes: q = clamp(round(x / scale) + zero_point, qmin, qmax).

    The division is float32, the rounding is `spec.rounding`, the zero point is added in integers. NaN maps to the code
    of 0, infinities to the ends of the grid.

    Args:
        x: Float tensor of any shape.
        scale: float32, one element or [C] along `spec.axis`.
        zero_point: int32 in the shape of `scale`.
        spec: The grid.
        qmin: Lowest code, if higher than the grid's (fused activation).
        qmax: Highest code, if lower than the grid's.
        factors: Integer factors of the scales for a grid with blocks, shaped to broadcast with `x`.

    Returns:
        int32 codes in the shape of `x`.

    Raises:
        InputError: Factors are missing for a grid with blocks, or given for a grid without.
    """
    low, high = _limits(spec, qmin, qmax, factors)
    scale, zero_point = along_axis(scale, x.dim(), spec.axis), along_axis(zero_point, x.dim(), spec.axis)
    if factors is not None:
        scale = scale * factors
    steps = round_float(x.to(torch.float32) / scale, spec.rounding).nan_to_num_(nan=0.0)
    if spec.bits <= _FLOAT32_EXACT_BITS:
        return _clamp_steps(steps, zero_point, low, high).to(torch.int32) + zero_point
    wide = zero_point.to(torch.float64)
    return (steps.to(torch.float64) + wide).clamp(low, high).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Map codes to real numbers: float32(q - zero_point) * scale, the difference taken in integers.

    Args:
        q: Codes, any integer type and shape.
        scale: float32, one element or [C] along `axis`.
        zero_point: int32 in the shape of `scale`.
        axis: Channel axis of `q`.

    Returns:
        float32 tensor in the shape of `q`.
    """
    scale, zero_point = along_axis(scale, q.dim(), axis), along_axis(zero_point, q.dim(), axis)
    wide = q if q.dtype == torch.int64 else q.to(torch.int32)
    return (wide - zero_point).to(torch.float32) * scale


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    spec: QuantSpec,
    qmin: int | None = None,
    qmax: int | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """Quantize and dequantize, differentiably; forward equals `dequantize(quantize(x) * factors)` bit for bit.

    With v = x / scale and k = clamp(round(v), qmin - zero_point, qmax - zero_point), forward is y = k * scale. The
    gradients take the rounding as the identity (straight-through) and are exact otherwise:

        dy/dx     = 1 where round(v) is inside the clamp, else 0
        dy/dscale = k - v inside, k (that is qmin - zero_point or qmax - zero_point) outside

    Args:
        x: Float tensor of any shape.
        scale: float32, one element or [C] along `spec.axis`; its gradient is summed to its shape.
        zero_point: int32 in the shape of `scale`; it has no gradient.
        spec: The grid.
        qmin: Lowest code, if higher than the grid's (fused activation).
        qmax: Highest code, if lower than the grid's.
        factors: Integer factors of the scales for a grid with blocks, shaped to broadcast with `x`.

    Returns:
        float32 tensor in the shape of `x`.

    Raises:
        InputError: The grid is wider than 16 bits, the widest for which float32 holds the codes; or factors are missing
            for a grid with blocks, or given for a grid without.

    Source:
        Esser et al. 2020, "Learned Step Size Quantization", section 2.
    """
    if factors is not None:
        codes = quantize(x.detach(), scale.detach(), zero_point, spec, qmin, qmax, factors)
        exact = dequantize(codes * factors, scale.detach(), zero_point, spec.axis)
        if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
            return exact
        # Gradients refer to the grid with steps of scale * factor; the float32 products scale * factor round once more.
        steps = along_axis(scale, x.dim(), spec.axis) * factors
        limits = (spec.qmin if qmin is None else qmin, spec.qmax if qmax is None else qmax)
        zeros = torch.zeros((), dtype=torch.int32)
        near: Tensor = _FakeQuantize.apply(x, steps.expand(x.shape), zeros, spec.rounding, *limits)
        return near + (exact - near).detach()
    low, high = _limits(spec, qmin, qmax, None)
    scale, zero_point = along_axis(scale, x.dim(), spec.axis), along_axis(zero_point, x.dim(), spec.axis)
    if spec.bits > _FLOAT32_EXACT_BITS:
        raise InputError(f"fake quantization to {spec.bits} bits", expected=f"at most {_FLOAT32_EXACT_BITS} bits")
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return _fake_quantize_forward(x, scale, zero_point, spec.rounding, low, high)
    fake: Tensor = _FakeQuantize.apply(x, scale, zero_point, spec.rounding, low, high)
    return fake


def bias_scale(input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The scale of a bias and of the accumulator it is added to: float32(input_scale * weight_scale)."""
    return input_scale.to(torch.float32) * weight_scale.to(torch.float32)


def quantize_bias(bias: Tensor, scale: Tensor, rounding: Rounding, bits: int = 32) -> Tensor:
    """Quantize a bias to accumulator steps: round(bias / scale), the division in float64.

    Args:
        bias: float32 [C].
        scale: float32 bias scale, one element or [C]; see `bias_scale`.
        rounding: How the quotient is rounded.
        bits: Width of the signed integer that stores one bias.

    Returns:
        int64 [C], every value within `bits` bits.

    Raises:
        InputError: A value does not fit into `bits` bits.
    """
    steps = round_float(bias.detach().to(torch.float64) / scale.detach().to(torch.float64), rounding)
    limit = 2.0 ** (bits - 1)
    fits = (steps >= -limit) & (steps < limit)
    if not bool(fits.all()):
        worst = int(torch.nonzero(~fits.reshape(-1))[0])
        raise InputError(
            f"the bias {float(bias.reshape(-1)[worst])} of channel {worst} is {steps.reshape(-1)[worst]:.0f} steps",
            expected=f"a bias that fits into {bits} bits",
            fix="Enlarge the weight scale of that channel until the bias fits",
        )
    return steps.to(torch.int64)


class _FakeQuantizeContext(Protocol):
    """Values that `_FakeQuantize` saves from forward for backward."""

    rounding: Rounding
    low: int
    high: int

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _FakeQuantize(torch.autograd.Function):
    """The straight-through gradients stated in `fake_quantize`; scale and zero point must already broadcast with x."""

    @staticmethod
    def forward(
        ctx: _FakeQuantizeContext,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        rounding: Rounding,
        low: int,
        high: int,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rounding, ctx.low, ctx.high = rounding, low, high
        return _fake_quantize_forward(x, scale, zero_point, rounding, low, high)

    @staticmethod
    def backward(ctx: _FakeQuantizeContext, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        x, scale, zero_point = ctx.saved_tensors
        ratio = x.to(torch.float32) / scale
        steps = round_float(ratio, ctx.rounding)
        clamped = _clamp_steps(steps, zero_point, ctx.low, ctx.high)
        inside = steps == clamped
        scale_gradient = gradient * torch.where(inside, clamped - ratio, clamped)
        return (gradient * inside).to(x.dtype), scale_gradient.sum_to_size(scale.shape), None, None, None, None


def _fake_quantize_forward(
    x: Tensor, scale: Tensor, zero_point: Tensor, rounding: Rounding, low: int, high: int
) -> Tensor:
    steps = round_float(x.to(torch.float32) / scale, rounding).nan_to_num_(nan=0.0)
    # Adding zero turns -0.0 into +0.0, as integer codes do.
    return _clamp_steps(steps, zero_point, low, high).add_(0.0) * scale


def _clamp_steps(steps: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Clamp round(x / scale) so that the code, with the zero point added, lies in low..high."""
    if zero_point.dim() == 0:
        zero = int(zero_point)
        return steps.clamp(low - zero, high - zero)
    return steps.clamp((low - zero_point).to(steps.dtype), (high - zero_point).to(steps.dtype))


def _limits(spec: QuantSpec, qmin: int | None, qmax: int | None, factors: Tensor | None) -> tuple[int, int]:
    """The codes to clamp to: the given limits, else the limits of the grid."""
    if (spec.block is None) != (factors is None):
        found = (
            f"the grid has blocks of {spec.block} but no factors"
            if factors is None
            else "the grid has factors but no blocks"
        )
        raise InputError(found, expected="factors if and only if the grid has blocks")
    return spec.qmin if qmin is None else qmin, spec.qmax if qmax is None else qmax


def _check_range(low: Tensor, high: Tensor, spec: QuantSpec) -> None:
    """Refuse ranges that no scale can represent."""
    if low.shape != high.shape:
        raise CalibrationError(f"range ends of shapes {list(low.shape)} and {list(high.shape)}", expected="one shape")
    if not bool((torch.isfinite(low) & torch.isfinite(high)).all()):
        raise CalibrationError(
            f"the range is not finite: low {low.tolist()}, high {high.tolist()}",
            expected="finite numbers",
            fix="Check the calibration data and the weights for NaN and infinite values",
        )
    if bool((low > high).any()):
        raise CalibrationError(f"the range has low {low.tolist()} above high {high.tolist()}", expected="low <= high")
    if spec.symmetric and not spec.signed and bool((low < 0.0).any()):
        raise CalibrationError(
            f"a range from {float(low.min())} for the symmetric unsigned quantizer '{spec}'",
            expected="no negative values",
            fix="Use a signed or an asymmetric quantizer for this tensor",
        )


def next_power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two that is not below x, for positive x."""
    fraction, exponent = torch.frexp(x)
    exponent = exponent - (fraction == 0.5).to(exponent.dtype)
    return torch.ldexp(torch.ones_like(x), exponent)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
