"""Which way to round each weight, so that what a layer gives changes least: a quadratic problem over zeros and ones.

A row of codes q is floor(w / s) + r with r in {0, 1}, limited to the grid. With inputs x of the float model and x^ of
the quantized one, both with their means taken out (a bias makes up for those), and d = s q - w,

    E (s q x^ - w x)^2  =  d G d  +  2 d c  +  E (w x^ - w x)^2        G = E[x^ x^T],  c = E[(w x^ - w x) x^]

so that images are needed once, for G and c, and a trial costs no image at all. Rows are solved side by side, and so are
the groups of a convolution, each with its own G:

    up to 10 weights    all 2^K roundings are tried: the best one
    more                rounding with error compensation, weight by weight, the remaining ones taking over what each one
                        lost; then single flips, as long as they lower the error

Sources: Nagel et al. 2020, arXiv:2004.10568, equation 13 (the quadratic form of adaptive rounding); Frantar et al.
2022, arXiv:2210.17323, section 3 (error compensation along the Cholesky factor of the inverse).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "round_to_data", "rounding_error"]

ENUMERATED = 10
"""Most weights of a row of which all roundings are tried: 1024 of them."""

CHOICES = 1 << 22
"""Weights of all tried roundings that are in memory at once."""

DAMPING = 1e-3
"""Of the mean of the diagonal, added before it is inverted: else directions that no input has would decide."""

TWO_STARTS = 1024
"""Most weights of a row that are also flipped from the nearest codes, which wins for some rows by a little."""

STILL = 2000
"""A sweep that flips no more than one weight in so many is the last."""

BLOCK = 64
"""Weights that are visited before what they changed is told to all others, in one product."""

SWEEPS = 30
"""Most visits of every weight by single flips."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs of some groups, and what error compensation needs of them.

    Args:
        gram: G of the module text, float32 [groups, K, K].
        inverse: Of G with enough on its diagonal to have one; None for short rows.
        factor: Upper triangular U with U^T U = `inverse`; None for short rows.
    """

    gram: Tensor
    inverse: Tensor | None
    factor: Tensor | None

    @staticmethod
    def of(gram: Tensor) -> Moments:
        """Factorise G.

        Args:
            gram: float64 [groups, K, K], symmetric, no eigenvalue below zero but for rounding.
        """
        if gram.shape[1] <= ENUMERATED:
            return Moments(gram.to(torch.float32), None, None)
        damping = DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0.0) + 1e-30  # [groups]
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping.unsqueeze(1))
        # In float64: the damping is near the precision of float32 when a few inputs are much larger than the rest.
        lower, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed.any()):
            # Inputs that never change, less their mean: what is left is rounding, with eigenvalues of either sign.
            noise = torch.where(failed > 0, 2.0 * damped.abs().sum(2).amax(1), 0.0)  # beyond the lowest of them
            damped.diagonal(dim1=1, dim2=2).add_(noise.unsqueeze(1))
            lower = torch.linalg.cholesky(damped)
        inverse = torch.cholesky_inverse(lower)
        factor = torch.linalg.cholesky(inverse, upper=True)
        single = torch.float32
        return Moments(gram.to(single), inverse.to(single), factor.to(single))

    def __getitem__(self, groups: slice) -> Moments:
        """Those of some of the groups."""
        parts = (self.inverse, self.factor)
        inverse, factor = (None if part is None else part[groups] for part in parts)
        return Moments(self.gram[groups], inverse, factor)


def round_to_data(
    weight: Tensor,
    scale: Tensor,
    qmin: int,
    qmax: int,
    moments: Moments,
    drift: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """Round rows of weights to the codes with the smallest error on data.

    Args:
        weight: w, float32 [groups, R, K].
        scale: s, the size of a step: float32 [groups, R, 1], positive.
        qmin: Lowest code.
        qmax: Highest code.
        moments: With G of the module text.
        drift: c of the module text, float32 [groups, R, K]: 0 where both models have the same inputs.
        start: Codes that are known to be good, to search from as well.

    Returns:
        Codes, float32 [groups, R, K]: each the integer below or above weight / scale, within the limits.
    """
    below = torch.floor(weight / scale)
    low, high = below.clamp(qmin, qmax), (below + 1).clamp(qmin, qmax)
    nearest = torch.where(weight / scale - below >= 0.5, high, low)
    problem = _Problem(weight, scale, low, high, moments.gram, drift)
    if moments.inverse is None or moments.factor is None:
        return problem.enumerated()
    # The real weights that would serve the quantized inputs best, drawn to the given ones where no input tells.
    starts = [problem.compensated(weight - drift @ moments.inverse, moments.factor)]
    if start is not None:
        starts.append(start)
    elif weight.shape[2] <= TWO_STARTS:
        starts.append(nearest)
    found = torch.stack([problem.flipped(start) for start in starts])
    best = torch.stack([problem.error(codes) for codes in found]).argmin(0)
    return found.gather(0, best[None, :, :, None].expand(1, *weight.shape))[0]


def rounding_error(codes: Tensor, weight: Tensor, scale: Tensor, gram: Tensor, drift: Tensor) -> Tensor:
    """d G d + 2 d c per row: the mean squared error, less what it would be without rounding; [groups, R]."""
    difference = codes * scale - weight
    return ((difference @ gram + 2.0 * drift) * difference).sum(-1)


@dataclass(frozen=True)
class _Problem:
    """Names as in the module text; `low` and `high` are the two codes of each weight, [groups, R, K]."""

    weight: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    gram: Tensor
    drift: Tensor

    def error(self, codes: Tensor) -> Tensor:
        return rounding_error(codes, self.weight, self.scale, self.gram, self.drift)

    def enumerated(self) -> Tensor:
        """The best of all choices."""
        count = self.low.shape[2]
        choices = ((torch.arange(2**count).unsqueeze(1) >> torch.arange(count)) & 1).to(torch.bool)
        best, least = self.low, self.error(self.low)
        for part in choices.split(max(1, CHOICES // self.low.numel())):
            codes = torch.where(part.reshape(-1, 1, 1, count), self.high, self.low)  # [choices, groups, R, K]
            smallest, index = self.error(codes).min(0)
            better = smallest < least
            least = torch.where(better, smallest, least)
            taken = codes.gather(0, index[None, :, :, None].expand(1, *self.low.shape))[0]
            best = torch.where(better.unsqueeze(2), taken, best)
        return best

    def compensated(self, wanted: Tensor, factor: Tensor) -> Tensor:
        """Round weight by weight; those to come move so that the sum stays."""
        wanted, codes, steps = wanted.clone(), torch.empty_like(wanted), self.scale.squeeze(2)
        for begin in range(0, wanted.shape[2], BLOCK):
            block = slice(begin, min(begin + BLOCK, wanted.shape[2]))
            part, below, above = wanted[:, :, block], self.low[:, :, block], self.high[:, :, block]
            inner = factor[:, block, block]
            lost = torch.empty_like(part)
            for k in range(part.shape[2]):
                up = part[:, :, k] / steps - below[:, :, k] >= 0.5
                code = torch.where(up, above[:, :, k], below[:, :, k])
                codes[:, :, begin + k] = code
                lost[:, :, k] = (part[:, :, k] - code * steps) / inner[:, k, k].unsqueeze(1)
                part[:, :, k:] -= lost[:, :, k : k + 1] * inner[:, k : k + 1, k:]
            wanted[:, :, block.stop :] -= lost @ factor[:, block, block.stop :]
        return codes

    def flipped(self, codes: Tensor) -> Tensor:
        """Flip single weights to their other code as long as the error falls."""
        codes, both, gram = codes.clone(), self.low + self.high, self.gram
        slope = (codes * self.scale - self.weight) @ gram + self.drift  # half the derivative of the error
        diagonal = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
        for _ in range(SWEEPS):
            flips = 0
            for begin in range(0, codes.shape[2], BLOCK):
                block = slice(begin, begin + BLOCK)
                now, near = codes[:, :, block], slope[:, :, block].clone()
                changes = (both[:, :, block] - 2.0 * now) * self.scale
                gains = changes * (2.0 * near + changes * diagonal[:, :, block]) < 0.0
                columns: list[int] = gains.flatten(0, 1).any(0).nonzero().flatten().tolist()
                if not columns:
                    continue
                inner = gram[:, block, block]
                moved = torch.zeros_like(near)
                # A column where no row gains is left out, though a flip before it might have made it gain: the next
                # sweep will see that.
                for k in columns:
                    change = changes[:, :, k]
                    taken = change * (2.0 * near[:, :, k] + change * inner[:, k, k].unsqueeze(1)) < 0.0
                    change = torch.where(taken, change, 0.0)
                    moved[:, :, k] = change
                    near += change.unsqueeze(2) * inner[:, k : k + 1, :]
                swapped = moved != 0.0
                codes[:, :, block] = torch.where(swapped, both[:, :, block] - now, now)
                slope += moved @ gram[:, block]
                flips += int(swapped.sum())
            if flips * STILL <= codes.numel():
                break
        return codes
