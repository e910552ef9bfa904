"""Layer, group, instance and root-mean-square normalization on codes, in integers throughout.

With steps s_i = q_i - z over the n elements that are normalized together,

    d_i = n s_i - sum s              n times the distance from the mean: exact
    v   = n sum s^2 - (sum s)^2      n^2 times the variance: exact
    t_i = d_i / sqrt(v + e) 2^(f+8)  e = eps n^2 / scale^2; f + 8 fractional bits
    a_i = t_i w_i / 2^8 + b_i        w: 16-bit codes of the weight, b: 32-bit bias at scale_w * 2^-f
    q'  = requantize(a_i)

A root-mean-square normalization takes sum s as 0, in d and in v. The weight and the bias may be shared along axes.

The square root is an integer root, taken after v + e is shifted left by pairs of bits until it has 59 or 60 bits, so
that the root has 30 bits. Both quotients are rounded to nearest, halves up; their units are far below a step of the
result.

Related: Kim et al. 2021, arXiv:2101.01321 (I-BERT), section 3.4, which takes the root without the shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.quant.affine import AffineParams, next_power_of_two, quantize_bias
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.quant.requant import Requantization, prepare_requantization, real_multiplier
from qcompiler.quant.rounding import Rounding, divide, round_float

__all__ = ["LayerNormParameters", "layer_norm_accumulator", "layer_norm_codes", "layer_norm_parameters"]

WEIGHT_LIMIT = 2**15 - 1
"""Largest code of a weight: 16 bits, symmetric."""

GUARD_BITS = 8
"""Extra fractional bits of the product with the weight; without them 16-bit results lose two bits."""

NEGLIGIBLE = 2.0**-14
"""Share of v in v + e that may be neglected; a normalized value keeps as many significant bits."""
RADICAND_BITS = 60
"""Most bits of v + e after the shift: the root then has 30 bits, and all intermediate values fit into 64 bits."""

_SHIFTS = (16, 8, 4, 2, 1)


@dataclass(frozen=True, eq=False)
class LayerNormParameters:
    """Constants of one normalization, made by `layer_norm_parameters`.

    Args:
        weight: int64 codes, in the shape of the weight.
        weight_scale: Scale of the weight codes, float32.
        bias: int64 codes, in the same shape.
        bias_scale: Scale of the bias codes, float32: weight_scale * 2^-fraction.
        epsilon: e of the module docstring.
        fraction: f of the module docstring.
        out: Multiplier of the accumulator.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor
    bias_scale: Tensor
    epsilon: int
    fraction: int
    out: Requantization


def layer_norm_parameters(
    source: AffineParams,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    target: AffineParams,
    arithmetic: Arithmetic,
    *,
    largest: int,
    count: int | None = None,
) -> LayerNormParameters:
    """Compute the integer constants from real parameters.

    Args:
        source: Scale and zero point of the input, per tensor.
        weight: float32, in a shape that broadcasts with the last axes of the input.
        bias: float32, the same shape.
        eps: Constant added to the variance.
        target: Scale and zero point of the result, per tensor.
        arithmetic: Arithmetic with the requantization and the rounding of the bias.
        largest: Largest magnitude of an input step.
        count: Number of elements that are normalized together; None: as many as the weight has.

    Returns:
        The constants. |t w + b| stays below 2^31 for any input.

    Raises:
        InputError: v + e exceeds 60 bits, because of too many elements or too wide codes.
    """
    count = weight.numel() if count is None else count
    scale = float(source.scale)
    variance = (count * largest) ** 2
    epsilon, halvings = _epsilon(eps * count**2 / scale**2, variance)
    radicand = variance + epsilon
    if radicand >= 2**RADICAND_BITS:
        raise InputError(
            f"n^2 times the variance of {count} elements can reach {radicand}",
            expected=f"less than 2^{RADICAND_BITS}",
            fix="Use fewer bits for the input of the normalization.",
        )
    # |t| <= sqrt(n) 2^(f+8) <= 2^23, so that |t w| / 2^8 <= 2^30; the bias may reach as much.
    fraction = (30 - (count - 1).bit_length()) // 2
    weight64, bias64 = weight.detach().to(torch.float64) * 2.0**-halvings, bias.detach().to(torch.float64)
    needed = max(float(weight64.abs().max()) / WEIGHT_LIMIT, float(bias64.abs().max()) * 2.0**fraction / 2.0**30)
    weight_scale = torch.tensor(needed or 1.0, dtype=torch.float32)
    weight_scale = torch.nextafter(
        weight_scale, torch.tensor(math.inf)
    )  # float32 may have rounded the scale below the required value
    if arithmetic.requant.mode.is_shift:
        weight_scale = next_power_of_two(weight_scale)
    bias_scale = weight_scale * 2.0**-fraction
    codes = round_float(weight64 / weight_scale.to(torch.float64), Rounding.NEAREST_EVEN).to(torch.int64)
    multiplier = real_multiplier(bias_scale, torch.tensor(1.0), target.scale, arithmetic.requant)
    return LayerNormParameters(
        weight=codes,
        weight_scale=weight_scale,
        bias=quantize_bias(bias, bias_scale, arithmetic.bias_rounding),
        bias_scale=bias_scale,
        epsilon=epsilon,
        fraction=fraction,
        out=prepare_requantization(multiplier, arithmetic.requant),
    )


def _epsilon(exact: float, variance: int) -> tuple[int, int]:
    """e as an integer, and the power of two by which it enlarges the normalized values.

    If the elements are so small that the variance is negligible next to e, normalized values would keep few bits or
    none: 1 / sqrt(v + e) is 2^-k / sqrt(v + e 4^-k) up to v 4^k / e, which `NEGLIGIBLE` bounds.

    Args:
        exact: Exact value of e.
        variance: Largest value of v.
    """
    halvings = 0
    while exact > 4.0 * variance / NEGLIGIBLE:
        exact, halvings = exact / 4.0, halvings + 1
    return int(round_float(torch.tensor(exact, dtype=torch.float64), Rounding.NEAREST_EVEN)), halvings


def layer_norm_accumulator(
    steps: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: int,
    fraction: int,
    dims: int | None = None,
    *,
    centered: bool = True,
) -> Tensor:
    """The accumulator a of the module docstring.

    Args:
        steps: int64 codes, zero point removed.
        weight: int64 codes, in a shape that broadcasts with the last axes of `steps`.
        bias: int64, the same shape.
        epsilon: e of the module docstring.
        fraction: f of the module docstring.
        dims: Number of last axes that are normalized together; None: as many as the weight has.
        centered: Whether the mean is removed; otherwise the root mean square is normalized.

    Returns:
        int64 accumulators, below 2^31 for constants from `layer_norm_parameters`.
    """
    axes = tuple(range(steps.dim() - (weight.dim() if dims is None else dims), steps.dim()))
    count = math.prod(steps.shape[axis] for axis in axes)
    total = steps.sum(axes, keepdim=True) if centered else torch.zeros((), dtype=torch.int64, device=steps.device)
    distance = count * steps - total
    # If all elements are equal and e is 0, every distance is 0 and so is every quotient.
    radicand = (count * steps.square().sum(axes, keepdim=True) - total.square() + epsilon).clamp(min=1)
    shift = torch.zeros_like(radicand)
    for step in _SHIFTS:
        small = radicand < 1 << (RADICAND_BITS - 2 * step)
        radicand = torch.where(small, radicand << (2 * step), radicand)
        shift = shift + step * small
    normalized = divide(distance << (shift + fraction + GUARD_BITS), _root(radicand), Rounding.HALF_UP)
    return divide(normalized * weight, 1 << GUARD_BITS, Rounding.HALF_UP) + bias


def layer_norm_codes(
    steps: Tensor,
    constants: LayerNormParameters,
    dims: int | None = None,
    *,
    centered: bool = True,
    out_zero_point: int,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Layer normalization on codes.

    Args:
        steps: int64 codes, zero point removed.
        constants: From `layer_norm_parameters`.
        dims: Number of last axes that are normalized together; None: as many as the weight has.
        centered: Whether the mean is removed.
        out_zero_point: Zero point of the result.
        qmin: Lowest output code.
        qmax: Highest output code.

    Returns:
        int64 codes.
    """
    c = constants
    acc = layer_norm_accumulator(steps, c.weight, c.bias, c.epsilon, c.fraction, dims, centered=centered)
    return constants.out.apply(acc, zero_point=out_zero_point, qmin=qmin, qmax=qmax)


def _root(x: Tensor) -> Tensor:
    """The integer square root of `x` < 2^60, rounded down; the float64 root is off by at most one."""
    root = x.to(torch.float64).sqrt().to(torch.int64)
    root = root - (root.square() > x).to(torch.int64)
    return root + ((root + 1).square() <= x).to(torch.int64)
