"""Which way to round each weight, so that what a layer gives changes least: a quadratic problem over zeros and ones.

A row of codes is floor(w / s) + r with r in {0, 1}, limited to the grid. With inputs x of the float model and x^ of the
quantized one, both with their means taken out (a bias makes up for those),

    E (w x - s q x^)^2  =  s^2 q G q  -  2 s q b  +  const        G = E[x^ x^T],  b = E[x^ x^T] of both, times w

so that images are needed once, for G and b, and a trial costs no image at all. Rows are solved side by side:

    up to 10 weights    all 2^K roundings are tried: the best one
    more                rounding with error compensation, weight by weight, the remaining ones taking over what each one
                        lost; then single flips, as long as they lower the error

Sources: Nagel et al. 2020, arXiv:2004.10568, equation 13 (the quadratic form of adaptive rounding); Frantar et al.
2022, arXiv:2210.17323, section 3 (error compensation along the Cholesky factor of the inverse).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_to_data", "rounding_error"]

ENUMERATED = 10
"""Most weights of a row of which all roundings are tried: 1024 of them."""

DAMPING = 1e-3
"""Of the mean of the diagonal, added before it is inverted: else directions that no input has would decide."""

TWO_STARTS = 1024
"""Most weights of a row that are also flipped from the nearest codes, which wins for some rows by a little."""

STILL = 5000
"""A sweep that flips no more than one weight in so many is the last."""

BLOCK = 64
"""Weights that are visited before what they changed is told to all others, in one product."""

SWEEPS = 30
"""Most visits of every weight by single flips."""


def round_to_data(weight: Tensor, scale: Tensor, qmin: int, qmax: int, gram: Tensor, target: Tensor) -> Tensor:
    """Round rows of weights to the codes with the smallest error on data.

    Args:
        weight: float64 [R, K].
        scale: float64 [R, 1] or [1, 1]: the size of a step, positive.
        qmin: Lowest code.
        qmax: Highest code.
        gram: G of the module text, float64 [K, K].
        target: b of the module text, float64 [R, K].

    Returns:
        Codes, float64 [R, K]: each the integer below or above weight / scale, within the limits.
    """
    below = torch.floor(weight / scale)
    low, high = below.clamp(qmin, qmax), (below + 1).clamp(qmin, qmax)
    nearest = torch.where(weight / scale - below >= 0.5, high, low)
    if weight.shape[1] <= ENUMERATED:
        return _enumerated(low, high, scale, gram, target)
    compensated = _compensated(weight, low, high, scale, gram, target)
    starts = [nearest] if compensated is None else [compensated]
    if weight.shape[1] <= TWO_STARTS and compensated is not None:
        starts.append(nearest)
    found = [_flipped(start, low, high, scale, gram, target) for start in starts]
    errors = torch.stack([rounding_error(codes, scale, gram, target) for codes in found])
    best = errors.argmin(0)
    return torch.stack(found)[best, torch.arange(len(best))]


def rounding_error(codes: Tensor, scale: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    """s^2 q G q - 2 s q b per row: the mean squared error but for a constant. float64 [R]."""
    real = codes * scale
    return ((real @ gram - 2.0 * target) * real).sum(1)


def _enumerated(low: Tensor, high: Tensor, scale: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    count = low.shape[1]
    choices = ((torch.arange(2**count).unsqueeze(1) >> torch.arange(count)) & 1).to(torch.bool)
    best = low
    least = torch.full((len(low),), float("inf"), dtype=torch.float64)
    for part in choices.split(256):
        codes = torch.where(part.unsqueeze(1), high, low)  # [choices, R, K]
        real = codes * scale
        errors = ((real @ gram - 2.0 * target) * real).sum(2)
        smallest, index = errors.min(0)
        better = smallest < least
        least = torch.where(better, smallest, least)
        best = torch.where(better.unsqueeze(1), codes[index, torch.arange(len(index))], best)
    return best


def _compensated(
    weight: Tensor, low: Tensor, high: Tensor, scale: Tensor, gram: Tensor, target: Tensor
) -> Tensor | None:
    """Round weight by weight; those to come move so that the sum stays. None where G has no inverse."""
    count = weight.shape[1]
    damped = gram + torch.eye(count, dtype=gram.dtype) * (DAMPING * gram.diagonal().mean() + 1e-30)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return None
    # The real weights that would serve the quantized inputs best, drawn to the given ones where no input tells.
    pull = damped - gram
    wanted = torch.cholesky_solve((target + weight @ pull).T, factor).T
    inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if int(failed):
        return None
    codes = torch.empty_like(weight)
    for begin in range(0, count, BLOCK):
        block = slice(begin, min(begin + BLOCK, count))
        part, below, above = wanted[:, block].clone(), low[:, block], high[:, block]
        inner = inverse[block, block]
        lost = torch.empty_like(part)
        for k in range(part.shape[1]):
            up = part[:, k : k + 1] / scale - below[:, k : k + 1] >= 0.5
            step = torch.where(up, above[:, k : k + 1], below[:, k : k + 1])
            codes[:, begin + k : begin + k + 1] = step
            lost[:, k : k + 1] = (part[:, k : k + 1] - step * scale) / inner[k, k]
            part[:, k:] -= lost[:, k : k + 1] * inner[k, k:]
        wanted[:, block.stop :] -= lost @ inverse[block, block.stop :]
    return codes


def _flipped(codes: Tensor, low: Tensor, high: Tensor, scale: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    """Flip single weights to their other code as long as the error falls."""
    codes = codes.clone()
    slope = (codes * scale) @ gram - target  # half the derivative of the error by each real weight
    for _ in range(SWEEPS):
        flips = 0
        for begin in range(0, codes.shape[1], BLOCK):
            block = slice(begin, min(begin + BLOCK, codes.shape[1]))
            inner, near = gram[block, block], slope[:, block].clone()
            moved = torch.zeros_like(near)
            for k in range(near.shape[1]):
                now = codes[:, begin + k]
                other = low[:, begin + k] + high[:, begin + k] - now
                change = (other - now) * scale.squeeze(1)
                taken = change * (2.0 * near[:, k] + change * inner[k, k]) < 0.0
                change = torch.where(taken, change, 0.0)
                codes[:, begin + k] = torch.where(taken, other, now)
                near += change.unsqueeze(1) * inner[k]
                moved[:, k] = change
            count = int((moved != 0).sum())
            if count:
                slope += moved @ gram[block]
                flips += count
        if flips * STILL <= codes.numel():
            break
    return codes
