"""Ranges of least squared error, for all channels at once, over scales and zero points of the whole plane.

With levels k s for k = a .. b and a histogram of weighted points x, all that rounds to the nearest level costs

    sum w (x - b s)^2  -  2 s sum over l = a .. b - 1 of G((l + 1/2) s)        G(t) = sum over x <= t of w (t - x)

because moving a value from one level to the next lower changes its square by -2 s (t - x), t being the middle of both.
G follows from running sums, so that a candidate takes one look-up per level, for any number of points.

The error has many valleys where data is discrete or clustered: a step that hits the clusters is better than steps a few
percent off, and its grid may reach beyond all values (data of 0 to 4 on fifteen levels: steps of 1/3, up to 5).
Candidates therefore first cover the plane, then the best of several valleys are refined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.calibration.histogram import Histogram
from qcompiler.quant.affine import SMALLEST_SCALE, next_power_of_two, qparams_from_range
from qcompiler.quant.rounding import Rounding
from qcompiler.quant.spec import QuantSpec, ScaleKind

__all__ = ["least_squares"]

_LEVELS = 1024
"""Most levels of a grid; beyond, bins are wider than steps, and there are fewer points than levels."""
_WIDER, _NARROWER = 1, 8
"""Octaves around the observed range: an integer multiple of any step fits between it and twice it; an outlier may be
256 times the range worth covering."""
_VALLEYS = 4
"""Number of refined candidates: the best local minima of the first round."""
_FINEST, _FINE = 512, 128
"""Final steps per octave, 0.14 % apart; of more than `_FEW` levels, 0.5 %."""
_FEW = 64
_ZEROS = 33
"""Number of zero points in the first round: all of a 5-bit grid."""
_MOMENTS = 3
_QUERIES = 1 << 16
"""Number of look-ups at a time: bounds the memory and keeps the temporaries in a processor's cache."""
_NOTHING = 1e-12
"""Squared error, over that of the levels themselves, below which sums only round: the first of such candidates wins."""


def least_squares(histogram: Histogram, spec: QuantSpec, clipping: float = 1.0) -> tuple[Tensor, Tensor] | None:
    """The range with the smallest squared error.

        sum over values within the range of (x - x^)^2  +  clipping * sum over those beyond it of (x - x^)^2

    Args:
        histogram: Histogram of the data.
        spec: The grid.
        clipping: Weight of clipping errors.

    Returns:
        low and high, float32 [C]: between 2^-8 and 2 times the observed range, which wins on ties. None for grids of
        more than 1,024 levels, and for those that do not round to the nearest.

    Raises:
        CalibrationError: The grid cannot hold the data, such as negative values on a symmetric unsigned grid.
    """
    # Raises where the grid cannot hold the data.
    observed, zero_point = qparams_from_range(histogram.low, histogram.high, _along_rows(spec))
    if spec.qmax - spec.qmin >= _LEVELS or spec.rounding in (Rounding.FLOOR, Rounding.TRUNCATE):
        return None
    below = zero_point.to(torch.int64) - spec.qmin  # levels below zero
    low, high = histogram.low.clone(), histogram.high.clone()
    two_sided = (low < 0.0) & (high > 0.0) & (not spec.symmetric)
    for members in (~two_sided, two_sided):
        channels = members.nonzero().squeeze(1)
        if not len(channels):
            continue
        errors = _Errors.of(histogram, channels, spec, clipping)
        start = _Grids(observed[channels].to(torch.float64), below[channels])
        best = _best(errors, start, free=bool(two_sided[channels[0]]))
        low[channels], high[channels] = _ends(histogram, channels, start, best, spec)
    return low, high


@dataclass(frozen=True)
class _Grids:
    """Steps, float64, and numbers of levels below zero, int64, in one shape."""

    steps: Tensor
    below: Tensor

    def at(self, index: Tensor) -> _Grids:
        """One of the columns of each row."""
        return _Grids(self.steps.gather(1, index), self.below.gather(1, index))


@dataclass(frozen=True)
class _Errors:
    """Costs of candidates for some channels, in units of the squared bin width.

    Args:
        width: Bin width, [C, 1].
        first: Position of the first point, in bin widths, [C, 1]; other bins follow at a distance of 1 each.
        running: Sums over the lowest value and the first 0, 1, 2, .. bins: of the weights, of weights times points, and
            of weights times squares, [C, bins + 1] each.
        total: The sums over all, the highest value among them, [C, 1] each.
        low: Lowest value, in bin widths, [C, 1].
        high: Highest value, in bin widths, [C, 1].
        spec: The grid.
        clipping: Weight of clipping errors.
    """

    width: Tensor
    first: Tensor
    running: tuple[Tensor, ...]
    total: tuple[Tensor, ...]
    low: Tensor
    high: Tensor
    spec: QuantSpec
    clipping: float

    @staticmethod
    def of(histogram: Histogram, channels: Tensor, spec: QuantSpec, clipping: float) -> _Errors:
        """The points of a histogram: its bins in their order, empty or not, between its extremes."""
        width = histogram.width[channels].unsqueeze(1)
        low, high = (end[channels].to(torch.float64).unsqueeze(1) / width for end in (histogram.low, histogram.high))
        points, counts = (part[channels] for part in histogram.points())
        points, ends = points / width, histogram.extremes[channels]
        weights, lowest, highest = (part.to(torch.float64) for part in (counts, ends[:, :1], ends[:, 1:]))
        running = tuple(
            torch.cat([lowest * low**power, weights * points**power], 1).cumsum(1) for power in range(_MOMENTS)
        )
        total = tuple(part[:, -1:] + highest * high**power for power, part in enumerate(running))
        offset = torch.where(histogram.aligned[channels], 0.0, 0.5).unsqueeze(1)
        first = histogram.first[channels].to(torch.float64).unsqueeze(1) + offset
        return _Errors(width, first, running, total, low, high, spec, clipping)

    def __call__(self, grids: _Grids) -> Tensor:
        """The cost of each candidate, [C, K]; zero where it is only rounding."""
        size = max(1, _QUERIES // (self.spec.qmax - self.spec.qmin))
        columns = max(1, size // len(grids.steps))
        found = []
        for steps, below in zip(grids.steps.split(columns, 1), grids.below.split(columns, 1), strict=True):
            count = max(1, size // steps.shape[1])
            parts = [
                self._some(slice(row, row + count), steps[row : row + count], below[row : row + count])
                for row in range(0, len(steps), count)
            ]
            found.append(torch.cat(parts))
        return torch.cat(found, 1)

    def _some(self, rows: slice, steps: Tensor, below: Tensor) -> Tensor:
        step = steps / self.width[rows]
        bottom = -below.to(torch.float64)
        top = bottom + (self.spec.qmax - self.spec.qmin)
        weight, moment, square = (part[rows] for part in self.total)
        highest = top * step
        outside = square - 2.0 * highest * moment + highest.square() * weight
        middles = torch.arange(self.spec.qmax - self.spec.qmin, dtype=torch.float64) + 0.5
        middles = (bottom.unsqueeze(2) + middles).mul_(step.unsqueeze(2))
        gained = self._hinges(rows, middles.flatten(1)).reshape(middles.shape).sum(2)
        cost = outside - 2.0 * step * gained
        if self.clipping != 1.0:
            cost += (self.clipping - 1.0) * self._clipped(rows, step, bottom, top)
        return cost.where(cost > _NOTHING * (square + highest.square() * weight), 0.0)

    def _hinges(self, rows: slice, at: Tensor) -> Tensor:
        """G of the module docstring at some positions [C, Q].

        Where it is wrong about which of the outermost points are below, it is too small: G is convex, so that it is
        nowhere below 0 nor below its last straight line, and equal to these beyond the outermost points.
        """
        weight, moment = self._below(rows, at)[:2]
        line = (at * self.total[0][rows]).sub_(self.total[1][rows]).clamp_(min=0.0)
        return torch.maximum(weight.mul_(at).sub_(moment), line)

    def _clipped(self, rows: slice, step: Tensor, bottom: Tensor, top: Tensor) -> Tensor:
        """Squared error of values that round to a level beyond the grid."""
        lower, upper = (bottom - 0.5) * step, (top + 0.5) * step
        under = [part * (lower >= self.low[rows]) for part in self._below(rows, lower, _MOMENTS)]
        over = [
            (total[rows] - part) * (upper < self.high[rows])
            for total, part in zip(self.total, self._below(rows, upper, _MOMENTS), strict=True)
        ]
        ends = ((bottom * step, under), (top * step, over))
        lost = [sums[2] - 2.0 * end * sums[1] + end.square() * sums[0] for end, sums in ends]
        return lost[0] + lost[1]

    def _below(self, rows: slice, values: Tensor, moments: int = 2) -> list[Tensor]:
        """Sums over all points up to `values` [C, Q] that lie between the extremes."""
        places = self.running[0].shape[1]
        count = (values - (self.first[rows] - 1.0)).clamp_(0.0, places - 1)
        row = torch.arange(len(count), dtype=torch.float64).unsqueeze(1) * places
        # One index into the whole table: ten times as fast as `gather` along its rows.
        index = count.add_(row).to(torch.int32).reshape(-1)
        return [part[rows].reshape(-1).index_select(0, index).reshape(count.shape) for part in self.running[:moments]]


def _best(errors: _Errors, start: _Grids, *, free: bool) -> _Grids:
    """The cheapest grid of each channel, [C].

    Args:
        errors: Costs of grids.
        start: Grid of the observed range, [C], as a candidate.
        free: Whether zero points are searched, or stay unchanged.
    """
    levels = errors.spec.qmax - errors.spec.qmin + 1
    per_octave = 32 if levels <= _FEW // 2 else 16 if levels <= _FEW else 8
    exponents = torch.arange(_WIDER * per_octave, -_NARROWER * per_octave - 1, -1, dtype=torch.float64) / per_octave
    zeros = torch.linspace(0, levels - 1, min(levels, _ZEROS)).round().to(torch.int64) if free else None
    count = 1 if zeros is None else len(zeros)
    below = start.below.unsqueeze(1) if zeros is None else zeros.expand(len(start.steps), -1)
    steps = start.steps.unsqueeze(1) * 2.0**exponents
    shape = (len(steps), count, len(exponents))
    plane = _Grids(
        _allowed(steps, errors.spec).unsqueeze(1).expand(shape).flatten(1), below.unsqueeze(2).expand(shape).flatten(1)
    )
    costs = errors(plane)
    valleys = costs.where(_lowest_around(costs.reshape(shape)).flatten(1), torch.inf)
    # On ties the step nearest to that of the observed range, and a wider one last.
    order = (exponents.abs() * 2 + (exponents > 0)).expand(count, -1).flatten().argsort(stable=True)
    chosen = order[valleys[:, order].sort(dim=1, stable=True).indices[:, :_VALLEYS]]
    found = plane.at(chosen)
    # Integers, and other multiples of a power of two, may be on a grid exactly that is less than twice as
    # wide as they need.
    exact = next_power_of_two(start.steps)
    shifted = (start.below * (start.steps / exact)).round().to(torch.int64)
    found = _Grids(
        torch.cat([start.steps.unsqueeze(1), exact.unsqueeze(1), found.steps], 1),
        torch.cat([start.below.unsqueeze(1), (shifted if free else start.below).unsqueeze(1), found.below], 1),
    )
    return _refined(errors, found, per_octave, max(1, (levels - 1) // max(1, count - 1)) if free else 0)


def _refined(errors: _Errors, found: _Grids, per_octave: int, pitch: int) -> _Grids:
    """The cheapest grid of each channel, [C], after every candidate moved downhill by smaller and smaller steps.

    Args:
        errors: Costs of grids.
        found: Candidates, [C, M].
        per_octave: Steps of the candidates per octave.
        pitch: Distance of their zero points; 0 for fixed zero points.
    """
    costs, top = errors(found), errors.spec.qmax - errors.spec.qmin
    finest = _FINEST if top < _FEW else _FINE
    while per_octave < finest or pitch > 1:
        per_octave, pitch = min(finest, per_octave * 2), min(pitch, (pitch + 1) // 2)
        near = [
            _Grids(
                _allowed(found.steps * 2.0 ** (exponent / per_octave), errors.spec), (found.below + move).clamp(0, top)
            )
            for move in ((0,) if not pitch else (-pitch, 0, pitch))
            for exponent in (-1, 0, 1)
            if (exponent, move) != (0, 0)
        ]
        together = _Grids(torch.cat([grids.steps for grids in near], 1), torch.cat([grids.below for grids in near], 1))
        tried = torch.stack([costs, *errors(together).chunk(len(near), 1)], 2)
        costs, index = tried.min(2)
        steps = torch.stack([found.steps, *(grids.steps for grids in near)], 2)
        below = torch.stack([found.below, *(grids.below for grids in near)], 2)
        found = _Grids(*(part.gather(2, index.unsqueeze(2)).squeeze(2) for part in (steps, below)))
    best = found.at(costs.argmin(1, keepdim=True))
    return _Grids(best.steps.squeeze(1), best.below.squeeze(1))


def _lowest_around(costs: Tensor) -> Tensor:
    """Mask of the local minima in [C, zero points, steps]."""
    padded = torch.nn.functional.pad(-costs, (1, 1, 1, 1), value=-torch.inf)
    return torch.nn.functional.max_pool2d(padded.unsqueeze(1), 3, stride=1).squeeze(1) <= -costs


def _allowed(steps: Tensor, spec: QuantSpec) -> Tensor:
    """Steps that the grid may have."""
    steps = steps.clamp(min=SMALLEST_SCALE)
    return next_power_of_two(steps) if spec.scale_kind is ScaleKind.POW2 else steps


def _ends(
    histogram: Histogram, channels: Tensor, start: _Grids, best: _Grids, spec: QuantSpec
) -> tuple[Tensor, Tensor]:
    """The range that `qparams_from_range` makes the grid of: the observed one as far as that gives the same grid."""
    low, high = (end[channels].to(torch.float64) for end in (histogram.low, histogram.high))
    steps, below = best.steps, best.below.to(torch.float64)
    above = spec.qmax - spec.qmin - below
    # The end that does not decide stays on its side of the other: where all values are one, roundings may swap them.
    if spec.symmetric:
        # The wider end is a multiple of the step, the other one shrinks or grows alike.
        span = torch.maximum(-low, high)
        reach = torch.where(span > 0.0, steps * spec.qmax, 0.0)
        factor = reach / torch.where(span > 0.0, span, 1.0)
        new_low = torch.where(-low > high, -reach, (low * factor).minimum(reach))
        new_high = torch.where(-low > high, (high * factor).maximum(-reach), reach)
    else:
        factor = steps / start.steps
        new_low = torch.where(low >= 0.0, (low * factor).minimum(steps * above), -steps * below)
        new_high = torch.where(high <= 0.0, (high * factor).maximum(-steps * below), steps * above)
    ends, rows = (new_low.to(torch.float32), new_high.to(torch.float32)), _along_rows(spec)
    high_within = torch.minimum(ends[1], histogram.high[channels].clamp(min=0.0))
    low_within = torch.maximum(ends[0], histogram.low[channels].clamp(max=0.0))
    within = (torch.minimum(low_within, high_within), high_within)
    pairs = zip(qparams_from_range(*ends, rows), qparams_from_range(*within, rows), strict=True)
    alike = torch.stack([a == b for a, b in pairs]).all(0)
    unmoved = (best.steps == start.steps) & (best.below == start.below)
    observed = (histogram.low[channels], histogram.high[channels])
    found = [
        torch.where(unmoved, real, torch.where(alike, inner, outer))
        for real, inner, outer in zip(observed, within, ends, strict=True)
    ]
    return found[0], found[1]


def _along_rows(spec: QuantSpec) -> QuantSpec:
    """The grid of a tensor with a row for each channel."""
    return QuantSpec(
        spec.bits, spec.signed, spec.symmetric, spec.narrow, axis=0, scale_kind=spec.scale_kind, rounding=spec.rounding
    )
