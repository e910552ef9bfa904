"""Distribution of the elements of a tensor: moments, and the interval that contains the elements.

All tensors have the axes of the described value, with size 1 along axes on which all elements are alike: statistics
per channel of an image are [1, C, 1, 1]. An element is a function of one normal number, clipped to hard limits:

    x = function(min(max(normal, low), high))

A function of x is a function of the same normal number, so x * sigmoid(x) is exact for any decomposition into nodes.
Sums and products of numbers without a common normal number are treated as independent, and their results as normal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qcompiler.calibration import gaussian
from qcompiler.calibration.gaussian import FAR, Function, Gaussian

__all__ = ["Distribution", "Interval"]

Movement = Callable[[Tensor], Tensor]

_POINTS = 513
"""Number of evenly spaced points of an interval at which a function is computed to find its extremes."""

_NODES = torch.linspace(-6.0, 6.0, 49, dtype=torch.float64)
"""Nodes of quadrature over two independent numbers, in standard deviations. A kink costs up to 0.2 % of one."""
_GRID = 17
"""Points of each of two intervals at which a function of both is computed to find its extremes."""


@dataclass(frozen=True, eq=False)
class Interval:
    """An interval per element.

    Args:
        low: Lower ends, finite, float64.
        high: Upper ends in the shape of `low`, at least `low`.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def around(cls, x: Gaussian, deviations: float) -> Interval:
        """The interval of `alpha` standard deviations around the mean."""
        reach = deviations * x.std
        return cls(x.mean - reach, x.mean + reach)

    def map(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """The interval under a monotonically increasing function."""
        return Interval(function(self.low), function(self.high))

    def cut(self, other: Interval) -> Interval:
        """The interval clamped to `other`."""
        return self.map(lambda end: end.clamp(other.low, other.high))

    def hull(self, *values: float) -> Interval:
        """The smallest interval that also contains `values`."""
        low, high = self.low, self.high
        for value in values:
            low, high = low.clamp(max=value), high.clamp(min=value)
        return Interval(low, high)

    def plus(self, other: Interval) -> Interval:
        """The interval of all sums."""
        return Interval(self.low + other.low, self.high + other.high)

    def times(self, other: Interval) -> Interval:
        """The interval of all products."""
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        stacked = torch.stack(torch.broadcast_tensors(*ends))
        return Interval(stacked.amin(0), stacked.amax(0))

    def image(self, function: Function) -> Interval:
        """The minimum and maximum of a function on the interval, from `_POINTS` points, the ends and 0.

        Args:
            function: Function of arrays with one additional last axis.
        """
        share = torch.linspace(0.0, 1.0, _POINTS, dtype=torch.float64)
        low, high = self.low.unsqueeze(-1), self.high.unsqueeze(-1)
        least, greatest = torch.tensor(math.inf), torch.tensor(-math.inf)
        for shares in share.split(max(1, (1 << 20) // self.low.numel())):
            at = torch.cat([low + (high - low) * shares, torch.zeros_like(low).clamp(low, high)], -1).clamp(low, high)
            with np.errstate(over="ignore", invalid="ignore"):
                values = torch.from_numpy(np.asarray(function(at.contiguous().numpy()), order="C"))
            least, greatest = values.amin(-1).minimum(least), values.amax(-1).maximum(greatest)
        return Interval(least, greatest)

    def pairs(self, other: Interval, function: Callable[[Tensor, Tensor], Tensor]) -> Interval:
        """The least and the greatest value of a function of two numbers, from `_GRID` points of each interval."""
        share = torch.linspace(0.0, 1.0, _GRID, dtype=torch.float64)
        ones, others = (x.low.unsqueeze(-1) + (x.high - x.low).unsqueeze(-1) * share for x in (self, other))
        found = [function(one.unsqueeze(-1), others) for one in ones.unbind(-1)]
        return Interval(
            torch.stack([values.amin(-1) for values in found]).amin(0),
            torch.stack([values.amax(-1) for values in found]).amax(0),
        )

    @property
    def is_finite(self) -> bool:
        """Whether all ends are finite numbers."""
        return bool((torch.isfinite(self.low) & torch.isfinite(self.high)).all())


@dataclass(frozen=True, eq=False)
class _Source:
    """Normal numbers on which elements depend; identical objects are identical numbers.

    Args:
        normal: Means and standard deviations.
        reach: Interval in which the numbers are expected.
        limits: Hard limits at which the numbers are clipped.
    """

    normal: Gaussian
    reach: Interval
    limits: Interval

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order that `like` expects."""
        ends = (self.reach.low, self.reach.high, self.limits.low, self.limits.high)
        return (self.normal.mean, self.normal.std, *ends)

    @classmethod
    def like(cls, tensors: Sequence[Tensor]) -> _Source:
        """The inverse of `tensors`."""
        mean, std, low, high, least, most = tensors
        return cls(Gaussian(mean, std), Interval(low, high), Interval(least, most))


@dataclass(frozen=True, eq=False)
class Distribution:
    """Moments and interval of the elements of a tensor.

    Args:
        moments: Means and standard deviations.
        reach: Interval in which elements are expected: `alpha` deviations around the means of normal numbers, and its
            image under functions.
        limits: Interval that contains all elements.
        alpha: Standard deviations.
        source: Normal numbers on which the elements depend; None for numbers with these moments, clipped to `limits`.
        function: Function from the normal numbers to the elements; None for the identity.
        clip: Limits of a function that only clips.
        uniform: Whether the function is the same for all elements, so that elements may be moved.
        basis: Sources of the moments, such as batch norms.
    """

    moments: Gaussian
    reach: Interval
    limits: Interval
    alpha: float
    source: _Source
    function: Function | None = None
    clip: Interval | None = None
    uniform: bool = True
    basis: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        moments: Gaussian,
        alpha: float,
        basis: frozenset[str],
        *,
        reach: Interval | None = None,
        limits: Interval | None = None,
    ) -> Distribution:
        """Normal numbers that are independent of all others.

        Args:
            moments: Means and standard deviations.
            alpha: Standard deviations.
            basis: Sources of the moments.
            reach: Interval in which elements are expected, if known more exactly than from the moments.
            limits: Interval that contains all elements.
        """
        bounds = Interval.around(moments, FAR)
        bounds = bounds if limits is None else bounds.cut(limits)
        expected = (Interval.around(moments, alpha) if reach is None else reach).cut(bounds)
        return cls(moments, expected, bounds, alpha, _Source(moments, expected, bounds), basis=basis)

    @classmethod
    def constant(cls, tensor: Tensor, alpha: float) -> Distribution:
        """The distribution of the elements of a known tensor."""
        mean = tensor.detach().to("cpu", torch.float64)
        return cls.of(Gaussian(mean, torch.zeros_like(mean)), alpha, frozenset())

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest expected value of the tensor."""
        return float(self.reach.low.min()), float(self.reach.high.max())

    def apply(self, function: Function, *, uniform: bool) -> Distribution | None:
        """The distribution after an elementwise function.

        Args:
            function: Function of arrays with one additional last axis.
            uniform: Whether the function is the same for all elements.

        Returns:
            None if its mean, its deviation or an end of its interval is not finite.
        """
        inner = self.function
        composed: Function = function if inner is None else lambda x: function(inner(x))
        return self._of_source(composed, uniform=self.uniform and uniform, basis=self.basis)

    def together(self, other: Distribution, function: Callable[[Tensor, Tensor], Tensor]) -> Distribution | None:
        """A function of two numbers that are functions of one normal number; see `shares`."""
        one, two = (item.function or (lambda x: x) for item in (self, other))

        def composed(x: np.typing.NDArray[np.float64]) -> np.typing.NDArray[np.float64]:
            parts = (torch.from_numpy(np.asarray(part(x), order="C")) for part in (one, two))
            return function(*parts).numpy()

        return self._of_source(composed, uniform=self.uniform and other.uniform, basis=self.basis | other.basis)

    def apart(self, other: Distribution, function: Callable[[Tensor, Tensor], Tensor]) -> Distribution | None:
        """A function of two independent numbers, by quadrature over both; see `_NODES` and `_GRID`.

        Returns:
            None where its mean, its deviation or an end of its interval is no finite number.
        """
        weights = torch.exp(-0.5 * _NODES.square())
        weights = weights / weights.sum()
        mean, square = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        ones, others = (item.at(_NODES) for item in (self, other))
        for weight, one in zip(weights, ones.unbind(-1), strict=True):
            values = function(one.unsqueeze(-1), others)
            mean = mean + weight * (values * weights).sum(-1)
            square = square + weight * (values.square() * weights).sum(-1)
        if not bool((torch.isfinite(mean) & torch.isfinite(square)).all()):
            return None
        reach = self.reach.pairs(other.reach, function)
        limits = self.limits.pairs(other.limits, function)
        if not (reach.is_finite and limits.is_finite):
            return None
        moments = Gaussian(mean, (square - mean.square()).clamp(min=0.0).sqrt())
        return Distribution.of(moments, self.alpha, self.basis | other.basis, reach=reach, limits=limits)

    def at(self, deviations: Tensor) -> Tensor:
        """Elements so many standard deviations of the normal numbers from their means, along one axis more."""
        source = self.source
        mean, std, low, high = (t.unsqueeze(-1) for t in (*source.tensors[:2], source.limits.low, source.limits.high))
        normal = (mean + std * deviations).clamp(low, high)
        return (
            normal if self.function is None else torch.from_numpy(np.asarray(self.function(normal.numpy()), order="C"))
        )

    def shares(self, other: Distribution) -> bool:
        """Whether the elements are functions of the same normal numbers as those of `other`."""
        return self.source is other.source

    def clamp(self, low: Tensor | float, high: Tensor | float) -> Distribution:
        """The distribution after clipping, in closed form if the elements are only clipped normal numbers."""
        bounds = Interval(*(torch.as_tensor(end, dtype=torch.float64) for end in (low, high)))
        if bool((bounds.low <= self.limits.low).all()) and bool((bounds.high >= self.limits.high).all()):
            return self
        uniform = self.uniform and bounds.low.dim() == bounds.high.dim() == 0
        if self.function is not None and self.clip is None:
            ends = [end if end.dim() == 0 else end.unsqueeze(-1) for end in (bounds.low, bounds.high)]
            found = self.apply(lambda x: torch.from_numpy(x).clamp(*ends).numpy(), uniform=uniform)
            assert found is not None  # clipping to finite limits or to a finite interval
            return found
        clip = (self.clip or Interval(torch.tensor(-math.inf), torch.tensor(math.inf))).cut(bounds)
        normal = self.source.normal
        shape = torch.broadcast_shapes(normal.mean.shape, clip.low.shape)
        wide = Gaussian(normal.mean.expand(shape), normal.std.expand(shape))
        moments = gaussian.clamp(wide, *(end.to(torch.float64).expand(shape) for end in (clip.low, clip.high)))
        last = [end if end.dim() == 0 else end.unsqueeze(-1) for end in (clip.low, clip.high)]
        return replace(
            self,
            moments=moments,
            reach=self.reach.cut(bounds),
            limits=self.limits.cut(bounds),
            function=lambda x: torch.from_numpy(x).clamp(*last).numpy(),
            clip=clip,
            uniform=uniform,
        )

    def plus(self, other: Distribution) -> Distribution:
        """The sum with independent elements.

        Distances of ends from the mean add like standard deviations, as the root of the sum of squares. The ends of the
        result are at least `alpha` standard deviations from the mean, because clipped numbers often are at their end.
        """
        moments = gaussian.add(self.moments, other.moments)
        ends = Interval.around(moments, self.alpha)
        below, above = (
            [abs(end - item.moments.mean) for item, end in pairs]
            for pairs in (
                [(item, item.reach.low) for item in (self, other)],
                [(item, item.reach.high) for item in (self, other)],
            )
        )
        reach = Interval(
            ends.low.minimum(moments.mean - torch.hypot(*below)), ends.high.maximum(moments.mean + torch.hypot(*above))
        )
        sums = self.reach.plus(other.reach)
        return Distribution.of(
            moments,
            self.alpha,
            self.basis | other.basis,
            reach=Interval(reach.low.maximum(sums.low), reach.high.minimum(sums.high)),
            limits=self.limits.plus(other.limits),
        )

    def times(self, other: Distribution) -> Distribution:
        """The product with independent elements."""
        return Distribution.of(
            gaussian.product(self.moments, other.moments),
            self.alpha,
            self.basis | other.basis,
            reach=self.reach.times(other.reach),
            limits=self.limits.times(other.limits),
        )

    def averaged(self, count: int) -> Distribution:
        """The mean of `count` neighbours with one distribution; see `gaussian.entangled`."""
        if count == 1:
            return self
        std = gaussian.entangled(self.moments.std / count**0.5, self.moments.std)
        moments = Gaussian(self.moments.mean, std)
        reach = Interval.around(moments, self.alpha)
        reach = Interval(reach.low.maximum(self.reach.low), reach.high.minimum(self.reach.high))
        return Distribution.of(moments, self.alpha, self.basis, reach=reach, limits=self.limits)

    def affine(self, factor: Tensor, shift: Tensor) -> Distribution:
        """factor * x + shift, exactly; both broadcast to the elements."""
        factor, shift = (tensor.reshape(()) if tensor.numel() == 1 else tensor for tensor in (factor, shift))
        moments = gaussian.scale(self.moments, factor)
        ends = Interval(factor, factor)
        reach, limits = (item.times(ends).map(lambda end: end + shift) for item in (self.reach, self.limits))
        inner: Function = self.function or (lambda x: x)
        by, more = ((t.unsqueeze(-1) if t.dim() else t).numpy() for t in (factor, shift))
        return replace(
            self,
            moments=Gaussian(moments.mean + shift, moments.std.expand((moments.mean + shift).shape)),
            reach=reach,
            limits=limits,
            function=lambda x: inner(x) * by + more,
            clip=None,
            uniform=self.uniform and factor.dim() == shift.dim() == 0,
        )

    def with_value(self, value: float) -> Distribution:
        """The distribution with a border of one value, which is neglected in the moments."""
        return replace(self, reach=self.reach.hull(value), limits=self.limits.hull(value))

    def moved(self, *moves: Movement) -> Distribution:
        """The distribution with moved elements.

        Args:
            moves: Functions that move the elements of means, standard deviations, low and high ends, or one for all.
        """
        mean, std, low, high = moves if len(moves) == 4 else moves * 4
        tensors = (self.moments.mean, self.moments.std, self.reach.low, self.reach.high)
        moments = Gaussian(mean(tensors[0]), std(tensors[1]))
        reach = Interval(low(tensors[2]), high(tensors[3]))
        limits = Interval(low(self.limits.low), high(self.limits.high))
        if not self.uniform or len(moves) == 4:
            return Distribution.of(moments, self.alpha, self.basis, reach=reach, limits=limits)
        source = _Source.like([mean(tensor) for tensor in self.source.tensors])
        return replace(self, moments=moments, reach=reach, limits=limits, source=source)

    def mixed(self, axes: Sequence[int]) -> Distribution:
        """The distribution of an element drawn at random along `axes`, which have size 1 afterwards."""
        axes = [axis for axis in axes if self.moments.mean.shape[axis] > 1 or self.reach.low.shape[axis] > 1]
        if not axes:
            return self
        spread = self.spread(torch.broadcast_shapes(self.moments.mean.shape, self.reach.low.shape))
        reach, limits = (
            Interval(item.low.amin(axes, keepdim=True), item.high.amax(axes, keepdim=True))
            for item in (spread.reach, spread.limits)
        )
        moments = gaussian.mixture(spread.moments, axes)
        return Distribution.of(moments, self.alpha, self.basis, reach=reach, limits=limits)

    def spread(self, shape: Sequence[int]) -> Distribution:
        """The distribution expanded along axes of size 1."""
        if all(tensor.shape == tuple(shape) for tensor in (self.moments.mean, self.reach.low, self.limits.low)):
            return self
        return self.moved(lambda tensor: tensor.expand(tuple(shape)))

    def channels(self, axis: int, count: int) -> Gaussian:
        """Moments per channel, [count], of elements drawn at random along all other axes."""
        others = [other for other in range(self.moments.mean.dim()) if other != axis]
        mixed = gaussian.mixture(self.moments, others)
        return Gaussian(mixed.mean.reshape(-1).expand(count), mixed.std.reshape(-1).expand(count))

    def _of_source(self, function: Function, *, uniform: bool, basis: frozenset[str]) -> Distribution | None:
        source = self.source
        moments = gaussian.expectation(function, source.normal, source.limits.low, source.limits.high)
        if moments is None:
            return None
        reach, limits = (item.image(function) for item in (source.reach, source.limits))
        if not (reach.is_finite and limits.is_finite):
            return None
        return replace(
            self,
            moments=moments,
            reach=reach,
            limits=limits,
            function=function,
            clip=None,
            uniform=uniform,
            basis=basis,
        )
