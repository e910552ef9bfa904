"""From a histogram to a range: what a quantizer should cover. Every estimator returns (low, high), float32 [C] each.

A new criterion is a new cost for `search`: it sees the data as weighted points, and what each candidate range makes of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from qcompiler.calibration.histogram import Histogram
from qcompiler.errors import InputError
from qcompiler.quant.affine import qparams_from_range
from qcompiler.quant.rounding import round_float
from qcompiler.quant.spec import QuantSpec

__all__ = ["Cost", "check_percent", "min_max", "mse", "percentile", "search"]

Cost = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(points [N], reconstructed [K, N], weights [N]) -> the cost [K] of each of K candidates; float64, lower is better."""

_OCTAVES = 8
"""Thresholds are tried down to 2^-8 of the observed ones: an outlier may be 256 times the range worth covering."""
_COARSE = 4
"""First thresholds per octave of the two-sided search, 19 % apart."""
_FINE = 64
"""Final thresholds per octave, 1.1 % apart: as close as the hundred linear steps usual in the literature at the wide
end, and just as close relative to the threshold at the narrow end, where a linear grid is coarse."""


def min_max(histogram: Histogram) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value: nothing is clipped."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, percent: float) -> tuple[Tensor, Tensor]:
    """The range left when the largest and the smallest (100 - percent) % are given up, each.

    With the n values sorted and r = ceil((n - 1) * percent / 100), the exact ends are the values of ranks n - 1 - r
    and r. What is returned are the outer edges of their bins, cut to the observed minimum and maximum: at most one bin
    width outside the exact ends and never inside. Bins do not straddle zero: the range of data of one sign keeps that
    sign.

    Args:
        histogram: The data.
        percent: In (50, 100]; 100 is `min_max`.

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
    return (
        torch.maximum(low, histogram.low.to(torch.float64)).to(torch.float32),
        torch.minimum(high, histogram.high.to(torch.float64)).to(torch.float32),
    )


def check_percent(percent: float) -> None:
    """Refuse what `percentile` cannot use.

    Raises:
        InputError: `percent` is outside (50, 100].
    """
    if not 50.0 < percent <= 100.0:
        raise InputError(f"percentile={percent}", expected="a percentage above 50 and up to 100")


def mse(histogram: Histogram, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The range with the smallest mean squared quantization error, clipping and rounding together.

    The distance of a value from its nearest grid point changes by at most as much as the value itself, and each value
    is within half a bin width w of the point that stands for it. So for a spec that rounds to the nearest, the true
    root mean squared error of any candidate is within w / 2 of the one compared here, and that of the result is at most
    w above that of any other candidate, the observed range among them.

    Args:
        histogram: The data.
        spec: The grid; its bits decide how much clipping pays.

    Returns:
        low and high, float32 [C], within the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data, such as negative values on a symmetric unsigned grid.

    Source:
        Nagel et al. 2021, arXiv:2106.08295, section 3.1 (range setting by mean squared error).
    """
    return search(histogram, spec, _squared_error)


def search(histogram: Histogram, spec: QuantSpec, cost: Cost) -> tuple[Tensor, Tensor]:
    """Try clipping thresholds and keep the cheapest, the widest on ties.

    On a symmetric grid, and for data of one sign, only the wider side matters: both ends shrink together, over all
    thresholds. Otherwise the ends shrink independently, first over a coarse grid of pairs, then around the best pair.

    Args:
        histogram: The data.
        spec: The grid that reconstructs it.
        cost: What to minimise.

    Returns:
        low and high, float32 [C], within the observed range.

    Raises:
        CalibrationError: The grid cannot hold the data, such as negative values on a symmetric unsigned grid.
    """
    # Candidates are laid out as the channels of one call.
    row_spec = replace(spec, axis=0, block=None)
    ends = [_search_channel(histogram, channel, row_spec, cost) for channel in range(histogram.channels)]
    return torch.stack([low for low, _ in ends]), torch.stack([high for _, high in ends])


def _search_channel(histogram: Histogram, channel: int, spec: QuantSpec, cost: Cost) -> tuple[Tensor, Tensor]:
    points, weights = histogram.cells(channel)
    low, high = histogram.low[channel], histogram.high[channel]

    def cheapest(low_fractions: Tensor, high_fractions: Tensor) -> int:
        lows, highs = _scaled(low, low_fractions), _scaled(high, high_fractions)
        scale, zero_point = qparams_from_range(lows, highs, spec)
        step, zero = scale.to(torch.float64).unsqueeze(1), zero_point.unsqueeze(1)
        codes = round_float(points / step, spec.rounding).clamp(spec.qmin - zero, spec.qmax - zero)
        return int(cost(points, codes * step, weights).argmin())

    if spec.symmetric or float(low) >= 0.0 or float(high) <= 0.0:
        fractions = _fractions(range(_OCTAVES * _FINE + 1), _FINE)
        best = cheapest(fractions, fractions)
        return _scaled(low, fractions[best]), _scaled(high, fractions[best])
    coarse = _fractions(range(_OCTAVES * _COARSE + 1), _COARSE)
    pairs = torch.cartesian_prod(coarse, coarse)
    pair = pairs[cheapest(pairs[:, 0], pairs[:, 1])]
    # One coarse step to each side; never beyond the observed ends.
    near = _fractions(range(-_FINE // _COARSE, _FINE // _COARSE + 1), _FINE)
    pairs = (torch.cartesian_prod(near, near) * pair).clamp(max=1.0)
    pair = pairs[cheapest(pairs[:, 0], pairs[:, 1])]
    return _scaled(low, pair[0]), _scaled(high, pair[1])


def _fractions(steps: range, per_octave: int) -> Tensor:
    """2^(-step / per_octave), float64: from wide to narrow."""
    return torch.tensor([2.0 ** (-step / per_octave) for step in steps], dtype=torch.float64)


def _scaled(end: Tensor, fraction: Tensor) -> Tensor:
    """The candidate as it will be returned: a product in float64, rounded to float32 once; exactly `end` at 1."""
    return (end.to(torch.float64) * fraction).to(torch.float32)


def _squared_error(points: Tensor, reconstructed: Tensor, weights: Tensor) -> Tensor:
    return (reconstructed - points).square() @ weights
