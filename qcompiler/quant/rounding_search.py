"""Rounding of weights up or down to change the output of a layer least: a quadratic problem over zeros and ones.

A row of codes q is floor(w / s) + r with r in {0, 1}, limited to the grid. With inputs x of the float model and x^ of
the quantized one, both with their means subtracted (bias correction restores them), and d = s q - w,

    E (s q x^ - w x)^2  =  d G d  +  2 d c  +  E (w x^ - w x)^2        G = E[x^ x^T],  c = E[(w x^ - w x) x^]

so images are needed only once, for G and c, and trials need no images. The step s belongs to a row or to a weight:
grids with blocks of inputs have one step per block. Rows are solved in parallel, as are the groups of a convolution,
each with its own G:

    up to 16 weights    the best of all 2^K roundings
    more                rounding weight by weight with error compensation: the remaining weights absorb each error; then
                        single flips as long as they lower the error; then flips of two weights at once, until neither a
                        flip nor a pair lowers the error

All roundings of a short row are combinations of the roundings of its halves a and b, with M = 2 diag(step) G diag(step)
between the halves: E(a, b) = E(a) + E(b) + a M b is one matrix product, 256 by 256 for 16 weights.

Sources: Nagel et al. 2020, arXiv:2004.10568, equation 13 (the quadratic form of adaptive rounding); Frantar et al.
2022, arXiv:2210.17323, section 3 (error compensation along the Cholesky factor of the inverse). Pairs of flips are the
usual second neighbourhood of binary quadratic problems; the bound on useful pairs is our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "round_to_data", "rounding_error"]

ENUMERATED = 16
"""Largest number of weights of a row whose roundings are all tried: 65,536 roundings, about a millisecond per row."""

CHOICES = 1 << 20
"""Number of errors of tried roundings in memory at a time: 8 MiB."""

DAMPING = 1e-3
"""Share of the mean diagonal added before inversion; otherwise directions absent from the inputs would decide."""

TWO_STARTS = 1024
"""Largest number of weights in a row for which flips also start at the nearest codes; a small gain for some rows."""

STILL = 2000
"""Threshold of the last sweep: at most one flip per this number of weights."""

BLOCK = 64
"""Number of weights visited before the slopes of all other weights are updated, in one product."""

SWEEPS = 30
"""Largest number of sweeps of single flips."""

PAIR_SWEEPS = 30
"""Largest number of sweeps of pairs of flips; the next sweep skips rows that a sweep did not change."""

ALL_PARTNERS = 512
"""Length of the longest rows whose pairs are all tried."""

PARTNERS = 64
"""Number of partners per weight of longer rows: the weights with the most correlated inputs."""

NOTICEABLE = 1e-5
"""Least gain of a pair as a share of the squared errors of its two flips; smaller gains may be float32 rounding."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs of some groups, and their factors for error compensation.

    Args:
        gram: G of the module text, [groups, K, K]: float64 for short rows, else float32.
        inverse: Inverse of G with a damped diagonal; None for short rows.
        factor: Upper triangular U with U^T U = `inverse`; None for short rows.
    """

    gram: Tensor
    inverse: Tensor | None
    factor: Tensor | None

    @staticmethod
    def of(gram: Tensor) -> Moments:
        """Factorise G.

        Args:
            gram: float64 [groups, K, K], symmetric, with no eigenvalue below zero except by rounding.
        """
        if gram.shape[1] <= ENUMERATED:
            return Moments(gram, None, None)
        damping = DAMPING * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0.0) + 1e-30  # [groups]
        damped = gram.clone()
        damped.diagonal(dim1=1, dim2=2).add_(damping.unsqueeze(1))
        # float64, because the damping is near float32 precision when a few inputs are much larger than the rest.
        lower, failed = torch.linalg.cholesky_ex(damped)
        if bool(failed.any()):
            # Constant inputs minus their mean leave only rounding errors, with eigenvalues of either sign.
            noise = torch.where(
                failed > 0, 2.0 * damped.abs().sum(2).amax(1), 0.0
            )  # exceeds the magnitude of every eigenvalue
            damped.diagonal(dim1=1, dim2=2).add_(noise.unsqueeze(1))
            lower = torch.linalg.cholesky(damped)
        inverse = torch.cholesky_inverse(lower)
        factor = torch.linalg.cholesky(inverse, upper=True)
        single = torch.float32
        return Moments(gram.to(single), inverse.to(single), factor.to(single))

    def __getitem__(self, groups: slice) -> Moments:
        """The moments of a slice of the groups."""
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
        scale: s, the size of a step: float32 [groups, R, 1] or [groups, R, K], positive.
        qmin: Lowest code.
        qmax: Highest code.
        moments: Moments with G of the module docstring.
        drift: c of the module docstring, float32 [groups, R, K]; 0 if both models have the same inputs.
        start: Known good codes, used as an additional starting point.

    Returns:
        Codes, float32 [groups, R, K]: each the integer below or above weight / scale, within the limits.
    """
    below = torch.floor(weight / scale)
    low, high = below.clamp(qmin, qmax), (below + 1).clamp(qmin, qmax)
    nearest = torch.where(weight / scale - below >= 0.5, high, low)
    problem = _Problem(weight, scale, low, high, moments.gram, drift)
    if moments.inverse is None or moments.factor is None:
        return problem.enumerated()
    # The real weights that fit the quantized inputs best; directions without input keep the given ones.
    starts = [problem.compensated(weight - drift @ moments.inverse, moments.factor)]
    if start is not None:
        starts.append(start)
    elif weight.shape[2] <= TWO_STARTS:
        starts.append(nearest)
    flipped = torch.stack([problem.flipped(start) for start in starts])
    best = problem.best_of(flipped)
    return problem.best_of(torch.stack([best, problem.paired(best)]))


def rounding_error(codes: Tensor, weight: Tensor, scale: Tensor, gram: Tensor, drift: Tensor) -> Tensor:
    """d G d + 2 d c per row: the mean squared error minus the error without rounding; [groups, R]."""
    difference = (codes * scale - weight).to(gram.dtype)
    return ((difference @ gram + 2.0 * drift) * difference).sum(-1)


@dataclass(frozen=True)
class _Problem:
    """The quadratic problem, with names as in the module docstring; `low`, `high`: the two codes, [groups, R, K]."""

    weight: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    gram: Tensor
    drift: Tensor

    def error(self, codes: Tensor) -> Tensor:
        return rounding_error(codes, self.weight, self.scale, self.gram, self.drift)

    def best_of(self, found: Tensor) -> Tensor:
        """The codes with the least error for each row among several, [choices, groups, R, K]; the first of equals."""
        best = torch.stack([self.error(codes) for codes in found]).argmin(0)
        return found.gather(0, best[None, :, :, None].expand(1, *found.shape[1:]))[0]

    def enumerated(self) -> Tensor:
        """The best of all choices."""
        groups, outputs, count = self.low.shape
        gram = self.gram.to(torch.float64)
        # In float64: with correlated inputs the least error is a small difference of large terms.
        steps = ((self.high - self.low) * self.scale).to(torch.float64)
        lowest = (self.low * self.scale - self.weight).to(torch.float64)
        slopes = 2.0 * steps * (lowest @ gram + self.drift.to(torch.float64))
        halves = [_choices(count // 2), _choices(count - count // 2)]
        size = max(1, CHOICES >> count)
        taken = torch.empty(groups * outputs, count, dtype=torch.bool)
        rows = torch.arange(groups * outputs)
        for part in rows.split(size):
            step, slope = steps.flatten(0, 1)[part], slopes.flatten(0, 1)[part]
            curvature = step.unsqueeze(2) * gram[part // outputs] * step.unsqueeze(1)  # [rows, K, K]
            taken[part] = _best_choice(slope, curvature, *halves)
        return torch.where(taken.reshape(self.low.shape), self.high, self.low)

    def compensated(self, wanted: Tensor, factor: Tensor) -> Tensor:
        """Round weight by weight; the remaining weights compensate for each error."""
        wanted, codes = wanted.clone(), torch.empty_like(wanted)
        steps = self.scale.expand_as(wanted)
        for begin in range(0, wanted.shape[2], BLOCK):
            block = slice(begin, min(begin + BLOCK, wanted.shape[2]))
            part, below, above = wanted[:, :, block], self.low[:, :, block], self.high[:, :, block]
            inner, step = factor[:, block, block], steps[:, :, block]
            lost = torch.empty_like(part)
            for k in range(part.shape[2]):
                up = part[:, :, k] / step[:, :, k] - below[:, :, k] >= 0.5
                code = torch.where(up, above[:, :, k], below[:, :, k])
                codes[:, :, begin + k] = code
                lost[:, :, k] = (part[:, :, k] - code * step[:, :, k]) / inner[:, k, k].unsqueeze(1)
                part[:, :, k:] -= lost[:, :, k : k + 1] * inner[:, k : k + 1, k:]
            wanted[:, :, block.stop :] -= lost @ factor[:, block, block.stop :]
        return codes

    def flipped(self, codes: Tensor) -> Tensor:
        """Flip single weights to their other code as long as the error falls."""
        codes, both, gram = codes.clone(), self.low + self.high, self.gram
        scale = self.scale.expand_as(codes)
        slope = (codes * self.scale - self.weight) @ gram + self.drift  # half the derivative of the error
        diagonal = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
        for _ in range(SWEEPS):
            flips = 0
            for begin in range(0, codes.shape[2], BLOCK):
                block = slice(begin, begin + BLOCK)
                now, near = codes[:, :, block], slope[:, :, block].clone()
                changes = (both[:, :, block] - 2.0 * now) * scale[:, :, block]
                gains = changes * (2.0 * near + changes * diagonal[:, :, block]) < 0.0
                columns: list[int] = gains.flatten(0, 1).any(0).nonzero().flatten().tolist()
                if not columns:
                    continue
                inner = gram[:, block, block]
                moved = torch.zeros_like(near)
                # A column in which no row gains is skipped, even if an earlier flip of this sweep made it gain: the
                # next sweep will find it.
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

    def paired(self, codes: Tensor) -> Tensor:
        """Flip one or two weights at once as long as the error falls.

        Flipping i alone adds a[i] to the error, and flipping a pair adds a[i] + a[j] + 2 c[i] c[j] G[i, j]. If no
        single flip helps, one weight of a useful pair has a < |c[i] c[j] G[i, j]|. Only such weights are tried, with
        all partners or, in long rows, with the partners of the most correlated inputs.
        """
        groups, outputs, count = codes.shape
        scale = self.scale.expand_as(codes)
        slope = ((codes * scale - self.weight) @ self.gram + self.drift).flatten(0, 1)
        changes = ((self.low + self.high - 2.0 * codes) * scale).flatten(0, 1)  # c: change of the weight by a flip
        pairs = _Pairs(slope, changes, self.gram, torch.arange(groups).repeat_interleave(outputs))
        flips = torch.zeros(groups * outputs, count, dtype=torch.bool)
        live = torch.arange(groups * outputs)
        for _ in range(PAIR_SWEEPS):
            visited = pairs.promising(live)
            moved = torch.zeros(len(live), dtype=torch.bool)
            columns: list[int] = visited.any(0).nonzero().flatten().tolist()
            for k in columns:
                at = visited[:, k].nonzero().flatten()
                taken, partner = pairs.best_with(k, live[at])
                at, partner = at[taken], partner[taken]
                moved[at] = True
                pairs.flip(live[at], torch.full_like(partner, k), flips)
                two = partner != k
                pairs.flip(live[at[two]], partner[two], flips)
            live = live[moved]
            if not len(live):
                break
        return torch.where(flips.reshape(codes.shape), self.low + self.high - codes, codes)


def _choices(count: int) -> Tensor:
    """All binary rows of length `count`, float64 [2^count, count]."""
    return ((torch.arange(2**count).unsqueeze(1) >> torch.arange(count)) & 1).to(torch.float64)


def _best_choice(slope: Tensor, curvature: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The binary row r with the least slope r + r curvature r, for each row.

    Args:
        slope: float64 [rows, K].
        curvature: float64 [rows, K, K], symmetric.
        first: All choices for the first of the K, [A, h].
        second: All choices for the rest, [B, K - h].

    Returns:
        bool [rows, K].
    """
    half = first.shape[1]

    def errors(choices: Tensor, part: slice) -> Tensor:
        quadratic = ((choices @ curvature[:, part, part]) * choices).sum(2)
        return quadratic + slope[:, part] @ choices.T

    total = (first @ (2.0 * curvature[:, :half, half:])) @ second.T  # [rows, A, B]
    total += errors(first, slice(None, half)).unsqueeze(2)
    total += errors(second, slice(half, None)).unsqueeze(1)
    least = total.flatten(1).argmin(1)
    a, b = least // len(second), least % len(second)
    return torch.cat([first[a], second[b]], 1) > 0.5


class _Pairs:
    """Rows whose weights are flipped one at a time and in pairs.

    Args:
        slope: Half the derivative of the error by each weight, float32 [rows, K]; updated by each flip.
        changes: Change of each weight when flipped, float32 [rows, K]; 0 if both codes are equal; updated by each flip.
        gram: G, [groups, K, K].
        group: Group of each row, int64 [rows].
    """

    def __init__(self, slope: Tensor, changes: Tensor, gram: Tensor, group: Tensor) -> None:
        self.slope, self.changes, self.gram, self.group = slope, changes.clone(), gram, group
        self.diagonal = gram.diagonal(dim1=1, dim2=2)
        correlation = gram.abs()
        correlation.diagonal(dim1=1, dim2=2).zero_()
        self.strongest = correlation.amax(2)
        self.partners: Tensor | None = None
        if gram.shape[1] > ALL_PARTNERS:
            size = self.diagonal.clamp(min=0.0).sqrt() + 1e-30
            self.partners = (correlation / size.unsqueeze(1)).topk(PARTNERS, dim=2).indices  # [groups, K, PARTNERS]

    def promising(self, rows: Tensor) -> Tensor:
        """The weights of some rows whose flip may lower the error, alone or in a pair: bool [rows, K]."""
        changes, group = self.changes[rows], self.group[rows]
        alone = changes * (2.0 * self.slope[rows] + changes * self.diagonal[group])
        reach = changes.abs()
        return (alone < reach * reach.amax(1, keepdim=True) * self.strongest[group]) & (reach > 0.0)

    def best_with(self, k: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The best partner of weight `k` in some rows (`k` itself for a single flip), and whether the error falls."""
        group = self.group[rows]
        own = self.changes[rows, k]
        square = own.square() * self.diagonal[group, k]
        alone = 2.0 * own * self.slope[rows, k] + square
        if self.partners is None:
            others, slope, changes = None, self.slope[rows], self.changes[rows]
            along, diagonal = self._of_groups(self.gram[:, k], group), self._of_groups(self.diagonal, group)
        else:
            others = self.partners[group, k]  # [rows, PARTNERS]
            at = rows.unsqueeze(1)
            slope, changes = self.slope[at, others], self.changes[at, others]
            along, diagonal = self.gram[group.unsqueeze(1), k, others], self.diagonal[group.unsqueeze(1), others]
        squares = changes.square() * diagonal
        # For k itself, the sum below describes two flips of k, which must never be chosen.
        together = torch.addcmul(slope, own.unsqueeze(1), along).mul_(changes).mul_(2.0).add_(squares)
        if others is None:
            together[:, k] = 0.0
        least, place = together.min(1)
        partner = place if others is None else others.gather(1, place.unsqueeze(1)).squeeze(1)
        noise = NOTICEABLE * (square + squares.gather(1, place.unsqueeze(1)).squeeze(1)).clamp(min=0.0)
        paired = least < -noise
        gain = alone + torch.where(paired, least, 0.0)
        return gain < -noise, torch.where(paired, partner, k)

    def flip(self, rows: Tensor, weights: Tensor, flips: Tensor) -> None:
        """Flip one weight in each of some rows, and record it in `flips`."""
        if not len(rows):
            return
        change = self.changes[rows, weights].unsqueeze(1)
        self.slope[rows] += change * self.gram[self.group[rows], weights]
        self.changes[rows, weights] *= -1.0
        flips[rows, weights] ^= True

    def _of_groups(self, values: Tensor, group: Tensor) -> Tensor:
        """The row of `values` [groups, K] for each of some rows; a single row if there is one group."""
        return values if len(values) == 1 else values[group]
