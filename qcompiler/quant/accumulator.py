"""Proof that an accumulator cannot overflow, from the real weights."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = ["accumulator_bounds", "exact_in_float64", "fits", "folded_bias", "partial_sum_bound", "partial_sum_bounds"]


def accumulator_bounds(weight_codes: Tensor, bias: Tensor | None, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest final sum of each output channel, over all inputs; both bounds are attained.

    The maximum takes `high` where a weight is positive and `low` where it is negative; the minimum the reverse.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        bias: int64 [out], or None for no bias.
        low: Smallest input, zero point removed. The range must contain 0 if inputs are padded.
        high: Largest input, zero point removed.

    Returns:
        Minimum and maximum, int64 [out] each.

    Raises:
        InputError: `low` is above `high`.
    """
    if low > high:
        raise InputError(f"an input range from {low} to {high}", expected="low <= high")
    weights = weight_codes.to(torch.int64).flatten(1)
    positive, negative = weights.clamp(min=0).sum(dim=1), weights.clamp(max=0).sum(dim=1)
    start = torch.zeros_like(positive) if bias is None else bias.to(torch.int64)
    return start + positive * low + negative * high, start + positive * high + negative * low


def partial_sum_bound(weight_codes: Tensor, low: int, high: int) -> Tensor:
    """Bound of |sum| for every partial sum, in any order: sum |w| * max(|low|, |high|).

    This is the bound for float kernels, whose order of summation is free.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        low: Smallest input, zero point removed.
        high: Largest input, zero point removed.

    Returns:
        int64 [out].
    """
    return weight_codes.to(torch.int64).flatten(1).abs().sum(dim=1) * max(abs(low), abs(high))


def partial_sum_bounds(weight_codes: Tensor, bias: Tensor | None, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest partial sum of each output channel: any subset of products, with or without the bias.

    A saturating accumulator is exact only if no partial sum saturates; a wrapping accumulator needs only the bounds of
    the final sum.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        bias: int64 [out], or None for no bias.
        low: Smallest number that the multiplier reads as input.
        high: Largest number that the multiplier reads as input.

    Returns:
        Minimum and maximum, int64 [out] each; 0, the empty sum, lies between them.

    Raises:
        InputError: `low` is above `high`.
    """
    minimum, maximum = accumulator_bounds(weight_codes, None, min(low, 0), max(high, 0))
    if bias is None:
        return minimum, maximum
    return minimum + bias.to(torch.int64).clamp(max=0), maximum + bias.to(torch.int64).clamp(min=0)


def folded_bias(weight_codes: Tensor, bias: Tensor, zero_point: int) -> Tensor:
    """The bias b - z_x * sum w of a kernel that multiplies raw input codes.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        bias: int64 [out].
        zero_point: Zero point of the input.

    Returns:
        int64 [out].
    """
    return bias.to(torch.int64) - zero_point * weight_codes.to(torch.int64).flatten(1).sum(dim=1)


def exact_in_float64(weight_codes: Tensor, low: int, high: int, axis: int = 0) -> bool:
    """Whether float64 holds every partial sum of products exactly, in any order of summation.

    Args:
        weight_codes: Zero points removed, in any type that holds them; output channels are along `axis`.
        low: Smallest input, zero point removed.
        high: Largest input, zero point removed.
        axis: 0, or 1 for a transposed convolution.
    """
    return int(partial_sum_bound(weight_codes.transpose(0, axis), low, high).max()) < 2**53


def fits(minimum: Tensor, maximum: Tensor, bits: int) -> bool:
    """Whether every value from minimum to maximum is a signed integer of `bits` bits; 64 bits hold every int64."""
    if bits >= 64:
        return True
    limit = 1 << (bits - 1)
    return bool(((minimum >= -limit) & (maximum < limit)).all())
