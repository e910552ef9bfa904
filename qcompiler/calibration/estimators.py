"""Estimators: from summaries of data to the range of a quantizer. All return (low, high), float32 [C] each.

A new criterion on single values is a new cost for `search`, computed from weighted points and their reconstruction by
each candidate range. A new criterion on whole rows, such as logits, is a new comparison of candidates for `narrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.calibration.histogram import Histogram
from qcompiler.calibration.least_squares import least_squares
from qcompiler.errors import InputError
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.rounding import round_float
from qcompiler.quant.spec import QuantSpec

__all__ = [
    "Cheapest",
    "Cost",
    "check_percent",
    "cross_entropy",
    "entropy",
    "min_max",
    "mse",
    "narrow",
    "percentile",
    "search",
    "sparse_percentile",
    "sqnr",
]

Cost = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(points [C, 1, P], codes without zero point times scale [C, K, P], weights [C, 1, P], clipped [C, K, P]) -> the cost
[C, K] of each of K candidates for each of C channels; float64, lower is better. Points come in the order of their
values; those without weight, at the end, do not count."""

Cheapest = Callable[[Tensor, Tensor], Tensor]
"""(channels [C], fractions [C, K, 2] of their observed ends) -> the cheapest pair of each channel, [C, 2], float64."""

_OCTAVES = 8
"""Octaves of thresholds, down to 2^-8 of the observed ones: an outlier may be 256 times the range worth covering."""
_COARSE = 4
"""Thresholds per octave in the first round, 19 % apart."""
_FINER = (16, 64)
"""Thresholds per octave around the best one in later rounds, in the end 1.1 % apart: as fine as the usual hundred
linear steps at the wide end, and equally fine relative to the threshold at the narrow end, where a linear grid is
coarse."""
_ELEMENTS = 1 << 19
"""Number of elements compared at a time: bounds the memory of a search for any number of channels. The fastest of 2^15
to 2^22: the temporaries stay in a processor's cache."""
_AROUND = 4
"""Number of bins to each side from which the local density is estimated."""
_OUTSTANDING = 16.0
"""Factor over the local density: no smooth density rises so much in so few bins; 16 times what chance adds to 1."""
_LOGITS = 1 << 29
"""Number of logits quantized for one comparison of all candidates, about three seconds: 500 rows of 1,000 classes at
least; all 4,096 rows that an observer keeps by default for up to 120 classes."""
_NOTHING = 1e-12
"""Divergences below are rounding errors of running sums: the widest such range wins, as among equal ones."""
_CACHED = 1 << 16
"""Number of logits compared at a time, so that the temporaries stay in a processor's cache."""


def min_max(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value: nothing is clipped."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, percent: float) -> tuple[Tensor, Tensor]:
    """The range without the largest and the smallest (100 - percent) % of the values.

    With the n values sorted and r = ceil((n - 1) * percent / 100), the exact ends are the values of ranks n - 1 - r
    and r. The result is the outer edges of their bins, cut to the observed minimum and maximum: at most one bin
    width outside the exact ends and never inside. Bins do not straddle zero: the range of data of one sign keeps that
    sign.

    Args:
        histogram: Histogram of the data.
        percent: Percentage in (50, 100]; 100 is `min_max`.

    Returns:
        low and high, float32 [C].

    Raises:
        InputError: `percent` is out of range.
    """
    check_percent(percent)
    cumulative = histogram.counts_with_zeros.cumsum(1)
    last = histogram.count.unsqueeze(1) - 1
    rank = torch.ceil(last.to(torch.float64) * (percent / 100.0)).to(torch.int64)
    # The bin of rank r is the first whose cumulative count exceeds r.
    upper = torch.searchsorted(cumulative, rank, right=True)
    lower = torch.searchsorted(cumulative, last - rank, right=True)
    low = histogram.edges.gather(1, lower).squeeze(1)
    high = histogram.edges.gather(1, upper + 1).squeeze(1)
    if percent == 100.0:  # the extremes may be missing among the counted values
        return histogram.low.clone(), histogram.high.clone()
    return (
        torch.maximum(low, histogram.low.to(torch.float64)).to(torch.float32),
        torch.minimum(high, histogram.high.to(torch.float64)).to(torch.float32),
    )


def sparse_percentile(histogram: Histogram, percent: float) -> tuple[Tensor, Tensor]:
    """`percentile`; of the non-zero values only, if both ends fall among exact zeros.

    Zeros need no range. If zeros outnumber the kept share of values, a range of zeros would clip all other values.

    Args:
        histogram: Histogram of the data.
        percent: Percentage in (50, 100].

    Returns:
        low and high, float32 [C].

    Raises:
        InputError: `percent` is out of range.
    """
    low, high = percentile(histogram, percent)
    if percent == 100.0:
        return low, high
    count, below = histogram.count, (histogram.counts * (histogram.edges[:, :-1] < 0.0)).sum(1)
    rank = torch.ceil((count - 1).to(torch.float64) * (percent / 100.0)).to(torch.int64)
    only_zeros = (below <= count - 1 - rank) & (rank < below + histogram.zeros) & (histogram.zeros < count)
    if not bool(only_zeros.any()):
        return low, high
    filled = torch.where(only_zeros, torch.zeros_like(histogram.zeros), histogram.zeros)
    return percentile(replace(histogram, zeros=filled), percent)


def check_percent(percent: float) -> None:
    """Refuse a percentage out of range.

    Raises:
        InputError: `percent` is outside (50, 100].
    """
    if not 50.0 < percent <= 100.0:
        raise InputError(f"percentile={percent}", expected="a percentage above 50 and up to 100")


def mse(histogram: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The range with the smallest mean squared quantization error, clipping and rounding together.

    See `least_squares`. The distance of a value from its nearest grid point changes by at most as much as the value
    itself, and each value is within half a bin width w of the point that stands for it; zeros, extremes and integers
    are that point. So for a spec that rounds to the nearest, the true root mean squared error of any candidate is
    within w / 2 of the one compared here, and that of the result is at most w above that of any other candidate, the
    observed range among them.

    Args:
        histogram: Histogram of the data.
        spec: The grid; its bits determine the benefit of clipping.

    Returns:
        low and high, float32 [C]; up to twice as wide as the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data, such as negative values on a symmetric unsigned grid.

    Source:
        Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting by mean squared error).
    """
    return sqnr(histogram, spec, 1.0)


def sqnr(histogram: Histogram, spec: QuantSpec, clipping: float = 3.0) -> tuple[Tensor, Tensor]:
    """The range with the best signal-to-noise ratio, with clipping weighted more than rounding.

        cost = sum over values within the range of (x - x^)^2  +  clipping * sum over those beyond it of (x - x^)^2

    Args:
        histogram: Histogram of the data.
        spec: The grid.
        clipping: Weight of clipping errors; 1 is `mse`.

    Returns:
        low and high, float32 [C]; up to twice as wide as the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data.
        InputError: The weight is negative or not finite.

    Source:
        The scheme called "tf-enhanced" in AIMET (arXiv:2201.08442), whose weight is 3; thresholds as for `mse`.
    """
    if not 0.0 <= clipping < float("inf"):
        raise InputError(f"clipping={clipping}", expected="a weight, at least 0")
    found = least_squares(histogram, spec, clipping)
    if found is not None:
        return found

    def cost(points: Tensor, found: Tensor, weights: Tensor, clipped: Tensor) -> Tensor:
        errors = _errors(found, points)
        return _weighted(torch.where(clipped, errors * clipping, errors), weights)

    return search(histogram, spec, cost)


def entropy(histogram: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The range with the quantized distribution closest to that of the data.

        KL(P || Q) = sum P log(P / Q)

    P: the weights of the points within the range, those beyond it added to the outermost one on their side. Q: the mass
    of the points within the range that share a code, spread evenly over them. A range holds as many points as the
    grid has codes, or half of all: fewer points, each with its own code, never lose anything.

    Both are distributions of the values that are not zero: every grid has a code for zero, whose mass is never spread
    over others. Values that occur far more often than those around them (a cap, saturated values, integers) are no
    part of a density either: within a code their mass is spread evenly over them alone, and that of the other points
    over those.

    Args:
        histogram: Histogram of the data.
        spec: The grid.

    Returns:
        low and high, float32 [C], within the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data.

    Source:
        Migacz 2017, "8-bit inference with TensorRT" (GTC); here over thresholds of both ends.
    """
    if not bool(histogram.counts.any()):
        return histogram.low.clone(), histogram.high.clone()
    nonzero = replace(histogram, zeros=torch.zeros_like(histogram.zeros))
    points = _Distribution(nonzero, replace(spec, axis=0, block=None))
    return narrow(histogram.low, histogram.high, symmetric=spec.symmetric, cheapest=points.cheapest)


def cross_entropy(rows: Tensor, weights: Tensor, low: Tensor, high: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The range of logits with quantized probabilities closest to the real ones.

        sum over rows v of weight * H(softmax(v), softmax(v^)),    H(p, q) = -sum p log q

    Only the winning class and its margin matter: small logits, far below the largest, may be clipped at no cost.

    Args:
        rows: The logits, float32 [R, classes], in random order: only the first are compared if all would take more than
            seconds.
        weights: How often each row occurs, [R].
        low: Smallest value observed, float32 [1]; not above any of `rows`.
        high: Largest value observed.
        spec: The grid, one scale for all classes.

    Returns:
        low and high, float32 [1], within the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data.

    Source:
        Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting by cross-entropy for the last layer).
    """
    logits, counts = rows.to(torch.float64), weights.to(torch.float64)
    probabilities = logits.softmax(1) * counts.unsqueeze(1)

    def cheapest(_channels: Tensor, fractions: Tensor) -> Tensor:
        # 1,089 candidates for two ends that shrink apart, 33 for one: more candidates leave fewer rows for each.
        first = max(1, _LOGITS // (fractions.shape[1] * logits.shape[1]))
        some, expected, often = logits[:first], probabilities[:first].flatten(), counts[:first]
        costs = []
        for part in fractions[0].split(max(1, _CACHED // some.numel())):
            step, zero = _grids(low, high, part, spec)
            codes = round_float(some / step, spec.rounding)
            found = codes.clamp_(spec.qmin - zero, spec.qmax - zero).mul_(step)
            # H(p, q) = log sum exp(v^) - sum p v^, each row weighted by its number of occurrences.
            agreement = found.flatten(1) @ expected
            costs.append(found.logsumexp(2) @ often - agreement)
        return fractions[:, int(torch.cat(costs).argmin())]

    return narrow(low, high, symmetric=spec.symmetric, cheapest=cheapest)


def search(histogram: Histogram, spec: QuantSpec, cost: Cost) -> tuple[Tensor, Tensor]:
    """Try clipping thresholds for all channels at once and keep the cheapest; see `narrow`.

    Args:
        histogram: Histogram of the data.
        spec: The grid that reconstructs the data.
        cost: Cost to minimise.

    Returns:
        low and high, float32 [C], within the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data, such as negative values on a symmetric unsigned grid.
    """
    # Candidates are laid out as the channels of one call.
    points = _Points(histogram, replace(spec, axis=0, block=None), cost)
    return narrow(histogram.low, histogram.high, symmetric=spec.symmetric, cheapest=points.cheapest)


def narrow(low: Tensor, high: Tensor, *, symmetric: bool, cheapest: Cheapest) -> tuple[Tensor, Tensor]:
    """Shrink observed ranges to the cheapest candidates, the widest on ties.

    On a symmetric grid, and for data of one sign, only the wider side matters: both ends shrink together. Otherwise the
    ends shrink independently. First over coarse thresholds, then over finer and finer ones around the best.

    Args:
        low: Smallest values, float32 [C].
        high: Largest values.
        symmetric: Whether the grid is symmetric.
        cheapest: Comparison of candidates.

    Returns:
        low and high, float32 [C], within the observed range.
    """
    together = (low >= 0.0) | (high <= 0.0) | symmetric
    coarse = _fractions(range(_OCTAVES * _COARSE + 1), _COARSE)
    low, high = low.clone(), high.clone()
    for members, paired in ((together, _both), (~together, _all_pairs)):
        channels = members.nonzero().squeeze(1)
        if not len(channels):
            continue
        best, before = cheapest(channels, paired(coarse).expand(len(channels), -1, -1)), _COARSE
        for after in _FINER:
            # One step of the previous round to each side; never beyond the observed ends.
            near = _fractions(range(-after // before, after // before + 1), after)
            best, before = cheapest(channels, (paired(near) * best.unsqueeze(1)).clamp(max=1.0)), after
        low[channels], high[channels] = _scaled(low[channels], best[:, 0]), _scaled(high[channels], best[:, 1])
    return low, high


class _Points:
    """The data of all channels, and the comparison of candidates on it."""

    def __init__(self, histogram: Histogram, spec: QuantSpec, cost: Cost) -> None:
        points, weights = histogram.cells()
        # In the order of their values, so that points of one code are adjacent; points without weight come last.
        points, order = torch.where(weights > 0, points, float("inf")).sort(1)
        self.weights = weights.gather(1, order)
        self.points = torch.where(self.weights > 0, points, 0.0)
        self.low, self.high = histogram.low, histogram.high
        self.spec, self.cost = spec, cost

    def cheapest(self, channels: Tensor, fractions: Tensor) -> Tensor:
        """The cheapest pair per channel, [C, 2], among `fractions` [C, K, 2] of the observed ends."""
        candidates, points = fractions.shape[1], self.points.shape[1]
        size = max(1, _ELEMENTS // (candidates * points))
        parts = zip(channels.split(size), fractions.split(size), strict=True)
        return torch.cat([self._cheapest(some, part) for some, part in parts])

    def _cheapest(self, channels: Tensor, fractions: Tensor) -> Tensor:
        spec, shape = self.spec, fractions.shape[:2]
        lows = _scaled(self.low[channels].unsqueeze(1), fractions[..., 0])
        highs = _scaled(self.high[channels].unsqueeze(1), fractions[..., 1])
        scale, zero_point = qparams_from_range(lows.reshape(-1), highs.reshape(-1), spec)
        steps, zeros = scale.to(torch.float64).reshape(*shape, 1), zero_point.reshape(*shape, 1)
        points = self.points[channels].unsqueeze(1)
        least = max(1, _ELEMENTS // points.shape[2])
        costs = []
        for step, zero in zip(steps.split(least, 1), zeros.split(least, 1), strict=True):
            codes = round_float(points / step, spec.rounding)
            low, high = spec.qmin - zero, spec.qmax - zero
            limited = codes.clamp(spec.qmin, spec.qmax) if spec.symmetric else codes.clamp(low, high)
            clipped = limited != codes
            costs.append(self._costs(channels, limited.mul_(step), clipped))
        best = torch.cat(costs, 1).argmin(1)
        return fractions[torch.arange(len(best)), best]

    def _costs(self, channels: Tensor, found: Tensor, clipped: Tensor) -> Tensor:
        points, weights = (item[channels].unsqueeze(1) for item in (self.points, self.weights))
        return self.cost(points, found, weights, clipped)


class _Distribution(_Points):
    """The data, compared by `_divergence`."""

    def __init__(self, histogram: Histogram, spec: QuantSpec) -> None:
        super().__init__(histogram, spec, _divergence)
        self.repeated = _repeated(self.points, self.weights, histogram)

    def _costs(self, channels: Tensor, found: Tensor, clipped: Tensor) -> Tensor:
        weights, repeated = (item[channels].unsqueeze(1) for item in (self.weights, self.repeated))
        return _divergence(None, found, weights, clipped, self.spec.qmax - self.spec.qmin + 1, repeated)


def _repeated(points: Tensor, weights: Tensor, histogram: Histogram) -> Tensor:
    """Mask [C, P] of the points that represent one frequent value rather than a piece of a density.

    All points of data that consists of multiples of the bin width; extremes that occur more often than the bins next to
    them; and points that exceed the mean of `_AROUND` bins to each side by `_OUTSTANDING` times.
    """
    column = (torch.floor(points / histogram.width.unsqueeze(1)) - histogram.first.unsqueeze(1)).to(torch.int64)
    column = column.clamp(0, histogram.bins - 1)
    # Counts without the extremes: an extreme is compared with the values next to it.
    _, counts = histogram.points()
    window = functional.pad(counts.to(torch.float64).cumsum(1), (_AROUND + 1, _AROUND), mode="replicate")
    window[:, : _AROUND + 1] = 0.0
    others = window[:, 2 * _AROUND + 1 :] - window[:, : -2 * _AROUND - 1] - counts
    mean = others.gather(1, column) / (2 * _AROUND)
    stands_out = weights >= _OUTSTANDING * mean.clamp(min=1.0)
    return histogram.aligned.unsqueeze(1) | stands_out


def _grids(low: Tensor, high: Tensor, fractions: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Scales and zero points of K fractions [K, 2] of one range: float64 and int32 [K, 1, 1]."""
    lows, highs = _scaled(low, fractions[:, 0]), _scaled(high, fractions[:, 1])
    scale, zero_point = qparams_from_range(lows, highs, replace(spec, axis=0, block=None))
    return scale.to(torch.float64).reshape(-1, 1, 1), zero_point.reshape(-1, 1, 1)


def _both(ends: Tensor) -> Tensor:
    """The same for both ends, [K, 2]."""
    return torch.stack([ends, ends], 1)


def _all_pairs(ends: Tensor) -> Tensor:
    """Each for one end with each for the other, [K * K, 2]."""
    return torch.cartesian_prod(ends, ends)


def _fractions(steps: range, per_octave: int) -> Tensor:
    """2^(-step / per_octave), float64: from wide to narrow."""
    return torch.tensor([2.0 ** (-step / per_octave) for step in steps], dtype=torch.float64)


def _scaled(end: Tensor, fraction: Tensor) -> Tensor:
    """The candidate as returned: a product in float64, rounded to float32 once; exactly `end` at 1."""
    return (end.to(torch.float64) * fraction).to(torch.float32)


def _errors(found: Tensor, points: Tensor) -> Tensor:
    """Squares of the differences, in the memory of `found`."""
    return found.sub_(points).square_()


def _weighted(errors: Tensor, weights: Tensor) -> Tensor:
    """[C, K, P] and [C, 1, P] to [C, K]."""
    return (errors @ weights.transpose(1, 2)).squeeze(2)


def _divergence(
    _points: Tensor | None,
    found: Tensor,
    weights: Tensor,
    clipped: Tensor,
    levels: int = 0,
    repeated: Tensor | None = None,
) -> Tensor:
    """KL(P || Q) of `entropy`; infinite where fewer than `levels` points, and than half of them, are inside.

    A point with a code of its own diverges from nothing, so that a range of two points would be perfect.

    With the weights w' of the points inside, which have what is clipped added at their ends, and m, n the mass and the
    number of the points of one kind (`repeated` or not) that share a code, it is

        (sum of w' log w' over points  -  sum of m' log(m / n) over codes and kinds) / sum of m'
            +  log(sum of m / sum of m')

    Points of one code are adjacent, so that sums per code are differences of running ones, which no candidate changes.
    """
    channels, candidates, size = found.shape
    rows = channels * candidates
    at = torch.arange(rows) // candidates
    weight = weights.squeeze(1)
    # Points before the first and after the last inside point are clipped.
    inside = ~clipped & (weights > 0)
    count, start = inside.sum(2).reshape(-1), inside.to(torch.int8).argmax(2).reshape(-1)
    stop = start + count
    running, entropies = _running(weight), _running(torch.special.xlogy(weight, weight))
    whole, below = running[at, -1], running[at, start]
    kept = running[at, stop] - below
    above = whole - below - kept
    own = entropies[at, stop] - entropies[at, start]
    # The last point of each run of points of one code.
    ends = inside.clone()
    ends[..., :-1] &= (found[..., 1:] != found[..., :-1]) | ~inside[..., 1:]
    row, last = ends.reshape(rows, size).nonzero(as_tuple=True)
    changes = row[1:] != row[:-1]
    opening, closing = functional.pad(changes, (1, 0), value=True), functional.pad(changes, (0, 1), value=True)
    before = torch.where(opening, start[row], functional.pad(last[:-1] + 1, (1, 0)))
    alone = torch.zeros_like(weight) if repeated is None else repeated.squeeze(1).to(torch.float64)
    coded, spreads = torch.zeros(rows, dtype=torch.float64), []
    for kind in (1.0 - alone, alone):
        held, number = _running(weight * kind), _running(kind)
        mass = held[at[row], last + 1] - held[at[row], before]
        spread = mass / (number[at[row], last + 1] - number[at[row], before]).clamp(min=1.0)
        coded.index_add_(0, row, torch.special.xlogy(mass, spread))
        spreads.append(spread)
    # Clipped weights are added to the outermost inside points.
    alive = (count > 0).nonzero().squeeze(1)
    one = count[alive] == 1
    for index, outside, run in (
        (start, below[alive] + one * above[alive], opening),
        (stop - 1, ~one * above[alive], closing),
    ):
        place = at[alive], index[alive]
        mass = weight[place]
        own[alive] += torch.special.xlogy(mass + outside, mass + outside) - torch.special.xlogy(mass, mass)
        spread = torch.where(alone[place] > 0.0, spreads[1][run], spreads[0][run])
        coded[alive] += outside * spread.log()
    result = (own - coded) / whole.clamp(min=1.0) + (kept.clamp(min=1.0) / whole.clamp(min=1.0)).log()
    half = (weight > 0).sum(1)[at] / 2
    told = (count > 0) & (count >= half.clamp(max=float(levels)))
    return torch.where(told, result.where(result > _NOTHING, 0.0), float("inf")).reshape(channels, candidates)


def _running(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2, .. along the last axis."""
    return functional.pad(x.cumsum(1), (1, 0))
