"""A streaming histogram with a content independent of the order and grouping of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = ["DEFAULT_BINS", "Histogram", "check_bins"]

DEFAULT_BINS = 2048
"""Default number of bins: 16 KiB of counts per channel at most, and at least four bins per step of an 8-bit grid."""

_SMALLEST_EXPONENT = -149
"""2^-149 is the smallest positive float32: no finer bin separates anything."""

_FLOAT32_BITS = 24
"""Bits of a float32 significand: below 2^e neighbours are at most 2^(e-24) apart, so that no finer bin is of use."""

_CHUNK = 1 << 17
"""Elements binned at a time for any batch size, so that temporary copies stay in the processor's cache."""

_FEW = 64
"""Number of values of a chunk that are tested before all of them."""

_FINEST_IN_FLOAT32 = -126
"""Scaling by 2^126 at most, and never down, is exact in float32: nothing overflows or falls below the subnormals."""

_COUNT_TYPES = (torch.int8, torch.int16, torch.int32, torch.int64)

_LARGEST_SHIFT = 62
"""Bin indices lie within 2^24, so every right shift beyond 24 gives 0 or -1 alike; from 64 on shifts are undefined."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of float32 values per channel, in bins [i * 2^k, (i + 1) * 2^k) that are anchored at zero.

    With i(x, k) = floor(x / 2^k), a channel with minimum a and maximum b uses

        k(a, b) = the smallest k >= k0 with i(b, k) - i(a, k) + 1 <= bins,
        k0 = max(-149, e - 24), where 2^(e-1) <= max(|a|, |b|) < 2^e.

    Frequent values are kept exactly, not only to within a bin: zeros, frequent in rectified data
    and exact on every grid; the extremes, frequent in clipped data; and data whose values
    are all multiples of the bin width, such as integers.

    **Merging is exact.** Let H(D) be the histogram of a multiset D: minimum, maximum, the numbers of their occurrences
    and of zeros, the counts n_i = #{x in D, x != 0 : i(x, k) = i}, and whether all values are multiples of 2^k. Then
    `H(D).merge(H(E))` equals H(D + E) bit for bit, because

    1. minimum, maximum and the numbers of zeros and extremes of D + E follow from those of D and E;
    2. k(D + E) >= k(D), k(E): k0 cannot fall when the range widens, nor can i(b, k) - i(a, k), so that every k refused
       for D is refused for D + E. Bins are only ever joined, never split;
    3. joining is exact: floor(floor(x / 2^k) / 2^d) = floor(x / 2^(k+d)), so that bin i at k + d holds exactly the
       values of the 2^d bins j at k with j >> d = i, and integer sums do not round;
    4. a multiple of 2^(k+d) is one of 2^k. So the values are multiples of 2^(k+d) when they are of 2^k, which is known,
       and all filled bins j at k have 2^d as a divisor.

    Hence any order, split or grouping of the same data, over any number of processes, ends in the same H, and merging
    is associative and commutative. The bin width is below 2 * (b - a) / (bins - 1), or the spacing of float32 at b or
    a.

    Args:
        counts: [C, bins], the narrowest signed integer type that holds them all; column j counts the non-zero values of
            bin `first[c] + j`. Other integer types are converted.
        zeros: int64 [C], number of values equal to 0.
        low: float32 [C], smallest value.
        high: float32 [C], largest value.
        ends: int64 [C, 2], number of values equal to `low`, and of values equal to `high`; 0 where that end is 0.
        aligned: bool [C], whether all values are multiples of the bin width.
    """

    counts: Tensor
    zeros: Tensor
    low: Tensor
    high: Tensor
    ends: Tensor
    aligned: Tensor

    def __post_init__(self) -> None:
        """Store the counts narrowly: a network of a thousand layers has a histogram for each of their tensors."""
        object.__setattr__(self, "counts", _narrowed(self.counts))

    @classmethod
    def of(cls, values: Tensor, bins: int = DEFAULT_BINS, extremes: tuple[Tensor, Tensor] | None = None) -> Histogram:
        """The histogram of one batch.

        Args:
            values: float32 [C, N] on any device, finite, at least one value per channel.
            bins: Number of bins per channel, at least 2: one on each side of zero.
            extremes: Smallest and largest value of each channel, float32 [C], if `values` is only part of the data.

        Returns:
            A histogram on the CPU.

        Raises:
            InputError: Fewer than two bins, or `values` is not a non-empty float32 matrix.
        """
        check_bins(bins)
        if values.dim() != 2 or values.numel() == 0 or values.dtype != torch.float32:
            raise InputError(
                f"values of shape {list(values.shape)} and type {values.dtype}",
                expected="a non-empty float32 matrix [channels, values]",
            )
        channels = values.shape[0]
        # Adding 0.0 turns -0.0 into 0.0: which of the two a minimum returns depends on the order of the data.
        low, high = extremes or (values.amin(1).cpu() + 0.0, values.amax(1).cpu() + 0.0)
        exponent, first = (part.to(values.device).unsqueeze(1) for part in _layout(low, high, bins))
        row = torch.arange(channels, dtype=torch.int32, device=values.device).unsqueeze(1) * bins
        counts = torch.zeros(channels * bins, dtype=torch.int64, device=values.device)
        # Scaling by a power of two is exact in float64 for every exponent that occurs. In float32, twice as fast, it is
        # for those of most activations; the integers that follow are at most 2^24 and exact in both.
        in_float32 = bool(((exponent >= _FINEST_IN_FLOAT32) & (exponent <= 0)).all())
        exact = torch.float32 if in_float32 else torch.float64
        per_width, start = _power_of_two(-exponent).to(exact), first.to(exact)
        nonzero = torch.zeros(channels, dtype=torch.int64, device=values.device)
        ends = torch.zeros(channels, 2, dtype=torch.int64, device=values.device)
        counted = [(0, low, low != 0.0), (1, high, high != 0.0)]
        aligned = torch.ones(channels, dtype=torch.bool, device=values.device)
        # With many channels, at least as many columns as bins, so that adding up the counts does not dominate.
        for part in values.split(min(_CHUNK, max(_CHUNK // channels, bins)), dim=1):
            scaled = part.to(exact) * per_width
            # For most activations the first few values suffice to rule alignment out.
            for some in (scaled[:, :_FEW], scaled):
                if bool(aligned.any()):
                    aligned &= (some == some.floor()).all(1)
            index = scaled.floor_().sub_(start).to(torch.int32)
            counts += torch.bincount(index.add_(row).reshape(-1), minlength=channels * bins)
            # Ones add up exactly in float32 within a chunk, and without the branches of `count_nonzero`, which are
            # mispredicted on rectified data and cost more than all the rest.
            nonzero += part.sign().abs_().sum(1).to(torch.int64)
            for place, end, counts_here in counted:
                if bool(counts_here.any()):
                    # Floats are several times as fast as booleans here.
                    equal = torch.eq(part, end.to(part.device).unsqueeze(1), out=torch.empty_like(part))
                    ends[:, place] += equal.sum(1).to(torch.int64) * counts_here.to(part.device)
        counts, zeros = counts.reshape(channels, bins).cpu(), values.shape[1] - nonzero.cpu()
        counts = _add_zeros(counts, -zeros, first.squeeze(1).cpu())
        return cls(counts, zeros, low, high, ends.cpu(), aligned.cpu())

    @property
    def bins(self) -> int:
        """Number of bins of each channel."""
        return self.counts.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.counts.shape[0]

    @property
    def count(self) -> Tensor:
        """int64 [C]: number of values seen, zeros included."""
        return self.counts.sum(1) + self.zeros

    @property
    def first(self) -> Tensor:
        """int64 [C]: index of the bin that column 0 counts, floor(low / width)."""
        return self._bin_layout[1]

    @property
    def exponent(self) -> Tensor:
        """int64 [C]: k, the binary logarithm of the bin width."""
        return self._bin_layout[0]

    @property
    def width(self) -> Tensor:
        """float64 [C]: bin width, a power of two."""
        return _power_of_two(self.exponent)

    @property
    def edges(self) -> Tensor:
        """float64 [C, bins + 1]: column j counts values in [edges[j], edges[j + 1])."""
        index = self.first.unsqueeze(1) + torch.arange(self.bins + 1)
        return index.to(torch.float64) * self.width.unsqueeze(1)

    @property
    def extremes(self) -> Tensor:
        """`ends` with each value in it once: those of constants are the lowest ones, and no highest ones."""
        return torch.stack([self.ends[:, 0], self.ends[:, 1] * (self.low < self.high)], 1)

    @property
    def counts_with_zeros(self) -> Tensor:
        """int64 [C, bins]: the counts with the zeros back in their bin, [0, width)."""
        return _add_zeros(self.counts.to(torch.int64), self.zeros, self.first)

    def merge(self, other: Histogram) -> Histogram:
        """The exact histogram of the combined data.

        Raises:
            InputError: The histograms differ in channels or bins.
        """
        if self.counts.shape != other.counts.shape:
            raise InputError(
                f"the histograms have {self.channels} channels x {self.bins} bins and {other.channels} x {other.bins}",
                expected="equal numbers of channels and bins",
            )
        # The numbers are those of the proof in the docstring of the class.
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)  # 1
        exponent, first = _layout(low, high, self.bins)  # 2
        counts = self._joined(exponent, first) + other._joined(exponent, first)  # 3
        kept = [torch.stack([item.low == low, item.high == high], 1) * item.ends for item in (self, other)]
        aligned = self._aligned(exponent) & other._aligned(exponent)  # 4
        merged = Histogram(counts, self.zeros + other.zeros, low, high, kept[0] + kept[1], aligned)
        vars(merged)["_bin_layout"] = exponent, first  # the cache of the property
        return merged

    def cells(self) -> tuple[Tensor, Tensor]:
        """The content of each channel as weighted points: its non-empty bins, its extremes, and 0.

        The point of a bin is its lower edge where all values are multiples of the bin width, else its centre, moved to
        the end of [low, high] if it is outside: no value is more than half a bin width from its point, and zeros,
        extremes and multiples are exact.

        Returns:
            Points and their weights, float64 [C, P] each, with P the most that a channel has: at most bins + 3. Where a
            channel has fewer, the rest are zeros without weight.
        """
        points, counts = self.points()
        low, high = (end.to(torch.float64).unsqueeze(1) for end in (self.low, self.high))
        points = torch.cat([points, low, high, low.new_zeros(self.channels, 1)], 1)
        weights = torch.cat([counts, self.extremes, self.zeros.unsqueeze(1)], 1)
        filled = weights > 0
        most = int(filled.sum(1).max())
        order = filled.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
        weights = weights.gather(1, order).to(torch.float64)
        return torch.where(weights > 0, points.gather(1, order), 0.0), weights

    def points(self) -> tuple[Tensor, Tensor]:
        """The point of each bin, float64 [C, bins], and the count without the extremes."""
        low, high = (end.to(torch.float64).unsqueeze(1) for end in (self.low, self.high))
        edges, width = self.edges[:, :-1], self.width.unsqueeze(1)
        centres = torch.minimum(torch.maximum(edges + 0.5 * width, low), high)
        ends = torch.stack([self.low, self.high], 1).to(torch.float64)
        column = (torch.floor(ends / width) - self.first.unsqueeze(1)).to(torch.int64).clamp(0, self.bins - 1)
        counts = self.counts.to(torch.int64).scatter_add(1, column, -self.extremes)
        return torch.where(self.aligned.unsqueeze(1), edges, centres), counts

    @cached_property
    def _bin_layout(self) -> tuple[Tensor, Tensor]:
        return _layout(self.low, self.high, self.bins)

    def _aligned(self, exponent: Tensor) -> Tensor:
        """Whether all values are multiples of a wider bin."""
        if not bool(self.aligned.any()) or torch.equal(exponent, self.exponent):
            return self.aligned
        shift = (exponent - self.exponent).clamp(max=_LARGEST_SHIFT).unsqueeze(1)
        index = self.first.unsqueeze(1) + torch.arange(self.bins)
        return self.aligned & ((self.counts == 0) | ((index >> shift) << shift == index)).all(1)

    def _joined(self, exponent: Tensor, first: Tensor) -> Tensor:
        """The counts after joining neighbours into the bins of a wider range that starts at bin `first`."""
        if torch.equal(exponent, self.exponent) and torch.equal(first, self.first):
            return self.counts.to(torch.int64)
        shift = (exponent - self.exponent).clamp(max=_LARGEST_SHIFT).unsqueeze(1)
        index = ((self.first.unsqueeze(1) + torch.arange(self.bins)) >> shift) - first.unsqueeze(1)
        # Only empty bins beyond the maximum can fall outside: adding their zeros to the last bin changes nothing.
        counts = self.counts.to(torch.int64)
        return torch.zeros_like(counts).scatter_add(1, index.clamp(max=self.bins - 1), counts)


def check_bins(bins: int) -> None:
    """Refuse fewer bins than a histogram needs.

    Raises:
        InputError: `bins` is below 2.
    """
    if bins < 2:
        raise InputError(f"a histogram of {bins} bins", expected="at least 2, one on each side of zero")


def _layout(low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """k(low, high) of the class docstring and floor(low / 2^k): int64 [C] each."""
    if len(low) == 1:  # without the overhead of tensors: a whole tensor is the usual channel
        exponent_of_one, first_of_one = _layout_of_one(float(low), float(high), bins)
        return torch.tensor([exponent_of_one]), torch.tensor([first_of_one])
    low, high = low.to(torch.float64), high.to(torch.float64)
    largest = torch.maximum(low.abs(), high.abs())
    exponent = (torch.frexp(largest).exponent.to(torch.int64) - _FLOAT32_BITS).clamp(min=_SMALLEST_EXPONENT)
    exponent = torch.where(largest == 0.0, _SMALLEST_EXPONENT, exponent)
    # bins * 2^k must exceed high - low; one less than that k allows for the rounding of the quotient.
    needed = torch.frexp((high - low) / bins)
    exponent = torch.where(high > low, torch.maximum(exponent, needed.exponent.to(torch.int64) - 2), exponent)
    while True:
        per_width = _power_of_two(-exponent)
        first = torch.floor(low * per_width).to(torch.int64)
        last = torch.floor(high * per_width).to(torch.int64)
        too_many = last - first >= bins
        if not bool(too_many.any()):
            return exponent, first
        exponent = exponent + too_many.to(torch.int64)


def _layout_of_one(low: float, high: float, bins: int) -> tuple[int, int]:
    """`_layout` of one channel; all of its operations are exact or rounded once in float64, in both."""
    largest = max(abs(low), abs(high))
    exponent = max(math.frexp(largest)[1] - _FLOAT32_BITS, _SMALLEST_EXPONENT) if largest else _SMALLEST_EXPONENT
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / bins)[1] - 2)
    while True:
        per_width = math.ldexp(1.0, -exponent)
        first = math.floor(low * per_width)
        if math.floor(high * per_width) - first < bins:
            return exponent, first
        exponent += 1


def _narrowed(counts: Tensor) -> Tensor:
    most = int(counts.max())
    return counts.to(next(kind for kind in _COUNT_TYPES if most <= torch.iinfo(kind).max))


def _add_zeros(counts: Tensor, zeros: Tensor, first: Tensor) -> Tensor:
    """Add `zeros` to the bin [0, width) of each channel, which exists wherever there are zeros."""
    column = (-first).clamp(0, counts.shape[1] - 1).unsqueeze(1)
    return counts.scatter_add(1, column, zeros.unsqueeze(1))


def _power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent in float64 from its bits: library powers may be off in the last place. For |exponent| <= 1022."""
    return ((exponent + 1023) << 52).view(torch.float64)
