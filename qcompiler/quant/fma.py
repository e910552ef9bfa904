"""The float32 fused multiply-add, computed exactly on any machine."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fused_multiply_add"]


def fused_multiply_add(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Compute f32(x * y + z) with a single rounding, as the FMA instruction and C `fmaf` do.

    The product of two float32 is exact in float64, but the sum is not, and rounding it to float64 first may turn a
    value near a float32 tie into the tie. The sum is therefore rounded to odd: an inexact sum gets an odd last bit,
    from which rounding to float32 is the rounding of the exact value.

    Args:
        x: float32 tensor of finite values.
        y: float32 tensor that broadcasts with `x`.
        z: float32 tensor that broadcasts with `x`.

    Returns:
        float32 tensor in the broadcast shape.

    Source:
        Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to
        odd".
    """
    product, addend = x.to(torch.float64) * y.to(torch.float64), z.to(torch.float64)
    total = product + addend
    # Knuth's two-sum: `error` is exactly the rounding error of the float64 addition.
    virtual = total - product
    error = (product - (total - virtual)) + (addend - virtual)
    inexact_even = (error != 0.0) & ((total.view(torch.int64) & 1) == 0)
    odd = torch.nextafter(total, torch.copysign(torch.full_like(total, torch.inf), error))
    return torch.where(inexact_even, odd, total).to(torch.float32)
