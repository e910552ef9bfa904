"""Proof that an accumulator cannot overflow, from the real weights."""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = ["accumulator_bounds", "exact_in_float64", "fits", "partial_sum_bound"]


def accumulator_bounds(weight_codes: Tensor, bias: Tensor | None, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest final sum of each output channel, over all inputs; both are reached.

    Every weight meets its worst input: low where the weight is negative for the maximum, high where it is positive.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        bias: int64 [out], or None for no bias.
        low: Smallest input, zero point removed. Where inputs are padded the range must hold 0.
        high: Largest input, zero point removed.

    Returns:
        Minimum and maximum, int64 [out] each.

    Raises:
        InputError: low is above high.
    """
    if low > high:
        raise InputError(f"an input range from {low} to {high}", expected="low <= high")
    weights = weight_codes.to(torch.int64).flatten(1)
    positive, negative = weights.clamp(min=0).sum(dim=1), weights.clamp(max=0).sum(dim=1)
    start = torch.zeros_like(positive) if bias is None else bias.to(torch.int64)
    return start + positive * low + negative * high, start + positive * high + negative * low


def partial_sum_bound(weight_codes: Tensor, low: int, high: int) -> Tensor:
    """Bound of |sum| for every partial sum, in any order: sum |w| * max(|low|, |high|).

    Saturating accumulators and float kernels with a free order of summation need this one; an accumulator that wraps
    needs only the bounds of the final sum.

    Args:
        weight_codes: int64 [out, ...], zero points removed.
        low: Smallest input, zero point removed.
        high: Largest input, zero point removed.

    Returns:
        int64 [out].
    """
    return weight_codes.to(torch.int64).flatten(1).abs().sum(dim=1) * max(abs(low), abs(high))


def exact_in_float64(weight_codes: Tensor, low: int, high: int, axis: int = 0) -> bool:
    """Whether float64 holds every partial sum of products exactly, in whatever order a kernel forms them.

    Args:
        weight_codes: Zero points removed, any type that holds them; output channels are on `axis`.
        low: Smallest input, zero point removed.
        high: Largest input, zero point removed.
        axis: 0, or 1 for a transposed convolution.
    """
    return int(partial_sum_bound(weight_codes.transpose(0, axis), low, high).max()) < 2**53


def fits(minimum: Tensor, maximum: Tensor, bits: int) -> bool:
    """Whether every value from minimum to maximum is a signed integer of `bits` bits (at most 63)."""
    limit = 1 << (bits - 1)
    return bool(((minimum >= -limit) & (maximum < limit)).all())
