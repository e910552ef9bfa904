"""Weights with input blocks, each with an integer factor of the channel's scale.

    real = s[o] * f[o, b] * q        b: the block of the input;  f: 1 .. 2^bits - 1

The factors are integers, so a sum over all inputs is one integer for any order of summation in hardware:

    sum_b f[o, b] * sum_{k in b} q x  =  sum_k (f q) x        accumulator in steps of s_x * s[o]

Multiplier, bias and accumulator stay as with one scale per channel; sums are bounded for the products of factors and
codes as weights.

Source: Qualcomm QAIRT 2.39, Qnn_BlockwiseExpansion_t (integer block scales times a float scale per channel).
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompiler.quant.affine import SMALLEST_SCALE, next_power_of_two
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.quant.spec import QuantSpec, ScaleKind

__all__ = ["block_axis", "block_count", "block_factors", "block_view", "expand_factors"]


def block_axis(axis: int) -> int:
    """The axis divided into blocks: the input axis of a weight with output channels along `axis`, 0 or 1."""
    return 1 if axis == 0 else 0


def block_count(size: int, block: int) -> int:
    """Number of blocks along an axis; the last one may be shorter."""
    return -(-size // block)


def expand_factors(factors: Tensor, shape: torch.Size | tuple[int, ...], axis: int, block: int) -> Tensor:
    """A factor for each input of each channel.

    Args:
        factors: [C, blocks].
        shape: Shape of the weight, with C along `axis`.
        axis: 0 or 1.
        block: Inputs per block.

    Returns:
        The factors, in the type of `factors`, shaped to broadcast with the weight.
    """
    size = shape[block_axis(axis)]
    spread = factors.repeat_interleave(block, dim=1)[:, :size]
    ordered = spread if axis == 0 else spread.T
    return ordered.reshape(*ordered.shape, *[1] * (len(shape) - 2))


def block_view(weight: Tensor, axis: int, block: int) -> Tensor:
    """The weight with a row per block and channel: [C * blocks, block * taps], the last block padded with 0."""
    rows = weight if axis == 0 else weight.transpose(0, 1)
    rows = rows.flatten(2) if rows.dim() > 2 else rows.unsqueeze(2)
    channels, size, taps = rows.shape
    count = block_count(size, block)
    padded = torch.nn.functional.pad(rows, (0, 0, 0, count * block - size))
    return padded.reshape(channels * count, block * taps)


def block_factors(low: Tensor, high: Tensor, spec: QuantSpec, channels: int) -> tuple[Tensor, Tensor]:
    """Scales and factors that cover the range of every block.

        s[o] = max_b r[o, b] / (qmax * f_max)        f[o, b] = ceil(r[o, b] / (qmax * s[o]))

    Args:
        low: Lower end per block, [C * blocks].
        high: Upper end.
        spec: A symmetric grid with blocks.
        channels: C.

    Returns:
        scale, float32 [C], and factors, uint8 [C, blocks].
    """
    reach = torch.maximum(-low, high).to(torch.float64).reshape(channels, -1).clamp(min=0.0)
    most = (1 << spec.factor_bits) - 1
    widest, steps = reach.amax(1), spec.qmax * most
    # As in `qparams_from_range`: a channel of zeros gets the grid of the range 0 to 1.
    exact = torch.where(widest == 0.0, torch.ones_like(widest) / steps, (widest / steps).clamp(min=SMALLEST_SCALE))
    if spec.scale_kind is ScaleKind.POW2:
        exact = next_power_of_two(exact)
    scale = exact.to(torch.float32)
    share = reach / (spec.qmax * scale.to(torch.float64).unsqueeze(1))
    # A quotient above an integer only by float32 rounding must not round up to the next factor.
    factors = -round_float(-(share - 2.0**-20), Rounding.FLOOR)
    return scale, factors.clamp(1, most).to(torch.uint8)
