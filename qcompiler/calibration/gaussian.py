"""Means and standard deviations, propagated through operators in closed form and through functions by quadrature.

Closed forms are exact: clipping for normal numbers; sums, products and layers for independent numbers. `expectation`
states the error bound of quadrature. All computation is in float64.

Source:
    Nagel et al. 2021, arXiv:2106.08295, section 3.1 (ranges from batch normalization) and section 3.3 (expectation of
    rectified normal channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = [
    "ALPHA",
    "FAR",
    "STEP",
    "Function",
    "Gaussian",
    "add",
    "clamp",
    "entangled",
    "expectation",
    "linear",
    "mixture",
    "product",
    "scale",
]

Function = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""An elementwise real function in float64."""

ALPHA = 6.0
"""Half width of a range in standard deviations, as in the source."""

FAR = 40.0
"""Standard deviations beyond which the normal density is 0 in float64."""

STEP = 1.0 / 32.0
"""Distance of the nodes of quadrature, in standard deviations."""

_REACH = 9.0
"""Position of the outermost nodes in standard deviations. The mass beyond is 2e-19, less than half a unit in the last
place."""
_AGREEMENT = 0.05
"""Largest difference, relative to the root of the second moment, between all nodes and every second one. A jump of
height d makes 1.2 % of d, and a pole changes the moments by a factor."""

_AT_ONCE = 1 << 20
"""Values of a function computed at once: 8 MiB. The result is that of the same blocks on every machine."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Means and standard deviations, one of each per channel or, in tensors of several axes, per element.

    Args:
        mean: Means of any shape, [C] for channels; finite; stored as float64.
        std: Standard deviations in the shape of `mean`; finite, not negative; stored as float64. After a batch norm,
            mean and std are beta and |gamma|.

    Raises:
        InputError: Shapes differ, there is no element, or a value is out of range.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.numel() == 0:
            raise InputError(
                f"means of shape {list(self.mean.shape)} and standard deviations of shape {list(self.std.shape)}",
                expected="one mean and one standard deviation per channel",
            )
        finite = bool((torch.isfinite(self.mean) & torch.isfinite(self.std)).all())
        if not finite or bool((self.std < 0.0).any()):
            raise InputError(
                f"means {self.mean.tolist()} and standard deviations {self.std.tolist()}",
                expected="finite means and finite standard deviations of at least 0",
            )
        object.__setattr__(self, "mean", self.mean.detach().to(torch.float64))
        object.__setattr__(self, "std", self.std.detach().to(torch.float64))

    def range(self, alpha: float = ALPHA) -> tuple[Tensor, Tensor]:
        """min_c(mean - alpha * std) and max_c(mean + alpha * std): one range for the tensor.

        Args:
            alpha: Standard deviations to each side, not negative.

        Returns:
            low and high, 0-D float32.

        Raises:
            InputError: `alpha` is negative or not finite.
        """
        if not (alpha >= 0.0 and math.isfinite(alpha)):
            raise InputError(f"alpha={alpha}", expected="a finite number of standard deviations, at least 0")
        low, high = (self.mean - alpha * self.std).min(), (self.mean + alpha * self.std).max()
        return low.to(torch.float32), high.to(torch.float32)


def clamp(x: Gaussian, low: Tensor | float, high: Tensor | float) -> Gaussian:
    """Moments of min(max(x, low), high).

    In units of std about the mean, with z standard normal, the clipped variable is t = min(max(z, a), b). Around the
    pivot p = min(max(0, a), b) it has the positive part (z - p)+ - (z - b)+ and the negative part (p - z)+ - (a - z)+.
    With L(u) = E (z - u)+ and M(u) = E ((z - u)+)^2 that gives

        E (t - p)   = [L(p) - L(b)] - [L(-p) - L(-a)]
        E (t - p)^2 = [M(p) - M(b) - 2 (b - p) L(b)] + [M(-p) - M(-a) - 2 (p - a) L(-a)]

    The pivot keeps the variance from being a small difference of large squares where nearly all of the mass is clipped.

    Args:
        x: Moments before clipping.
        low: Lower limits, one or one per mean; may be -inf; 0 for a ReLU.
        high: Upper limits, one or one per mean; may be inf.

    Returns:
        Mean, within the limits, and standard deviation of the clipped channels.

    Raises:
        InputError: The limits are out of order, or neither one number nor one per channel.
    """
    low, high = (torch.as_tensor(limit, dtype=torch.float64) for limit in (low, high))
    if any(limit.dim() and limit.shape != x.mean.shape for limit in (low, high)):
        raise InputError(
            f"clipping limits of shapes {list(low.shape)} and {list(high.shape)} for {x.mean.numel()} channels",
            expected="one limit, or one per channel",
        )
    if not bool((low <= high).all()):
        raise InputError(f"clipping limits {low.tolist()} and {high.tolist()}", expected="low <= high")
    # A channel with standard deviation 0 is a constant; the unit deviation only keeps its quotients finite.
    std = torch.where(x.std > 0.0, x.std, 1.0)
    a, b = (low - x.mean) / std, (high - x.mean) / std
    pivot = torch.zeros_like(a).clamp(a, b)
    up_first, up_second = _one_side(pivot, b)
    down_first, down_second = _one_side(-pivot, -a)
    first, second = up_first - down_first, up_second + down_second
    variance = (second - first.square()).clamp(min=0.0)
    at_pivot = x.mean.clamp(low, high)
    mean = torch.where(x.std > 0.0, at_pivot + x.std * first, at_pivot).clamp(low, high)
    # No variable between two limits deviates by more than half their distance; rounding could, if they nearly meet.
    return Gaussian(mean, (x.std * variance.sqrt()).clamp(max=(high - low) / 2.0))


def add(x: Gaussian, y: Gaussian) -> Gaussian:
    """Moments of x + y for independent x and y, with broadcasting.

    Raises:
        InputError: The shapes do not broadcast.
    """
    _check_shapes("sum", x.mean, y.mean)
    return Gaussian(x.mean + y.mean, torch.hypot(x.std, y.std))


def product(x: Gaussian, y: Gaussian) -> Gaussian:
    """Moments of x * y for independent x and y, with broadcasting; neither has to be normal.

        mean = mx my,    variance = vx vy + vx my^2 + vy mx^2

    Raises:
        InputError: The shapes do not broadcast.
    """
    _check_shapes("product", x.mean, y.mean)
    crossed = torch.hypot(x.std * y.mean, y.std * x.mean)
    return Gaussian(x.mean * y.mean, torch.hypot(x.std * y.std, crossed))


def mixture(x: Gaussian, axes: Sequence[int]) -> Gaussian:
    """Moments of an element drawn uniformly at random along `axes`, which have size 1 afterwards."""
    if not axes:
        return x
    mean = x.mean.mean(tuple(axes), keepdim=True)
    variance = (x.std.square() + (x.mean - mean).square()).mean(tuple(axes), keepdim=True)
    return Gaussian(mean, variance.sqrt())


def expectation(function: Function, x: Gaussian, low: Tensor, high: Tensor) -> Gaussian | None:
    """Moments of function(min(max(x, low), high)) by the trapezoidal rule over nodes `STEP` deviations apart.

    The rule is as good as exact for functions that are smooth over a deviation. Where the slope changes at a point by d
    per deviation, the mean is off by at most STEP^2 / 8 * d * phi, 5e-5 d; at a jump of height d by STEP / 2 * d * phi,
    0.6 % of d, with phi <= 0.4 the normal density there.

    Args:
        function: Function of arrays in the shape of x with one additional last axis; finite for finite numbers.
        x: Moments before clipping.
        low: Lower limits that broadcast to x; finite.
        high: Upper limits that broadcast to x; finite.

    Returns:
        Mean and standard deviation per element of x; None if one of them is not finite, or if half of the nodes give
        different moments: the function then has a pole in the interval, and no moments.
    """
    count = int(_REACH / STEP)  # which has no remainder
    z = torch.arange(-count, count + 1, dtype=torch.float64) * STEP
    weights = torch.exp(-0.5 * z.square())
    weights /= weights.sum()
    # Relative to the value at the middle, the variance is not a small difference of large squares.
    pivot = torch.from_numpy(_values(function, x.mean.clamp(low, high).unsqueeze(-1)))
    coarse_weights = weights * 2.0 * (torch.arange(len(z)) % 2 == 0)
    first, second, coarse_first, coarse_second = (torch.zeros_like(pivot[..., 0]) for _ in range(4))
    at_once = max(1, _AT_ONCE // x.mean.numel())
    for nodes, shares, coarse in zip(*(t.split(at_once) for t in (z, weights, coarse_weights)), strict=True):
        at = (x.mean.unsqueeze(-1) + x.std.unsqueeze(-1) * nodes).clamp(low.unsqueeze(-1), high.unsqueeze(-1))
        deviation = torch.from_numpy(_values(function, at)) - pivot
        first += (deviation * shares).sum(-1)
        second += (deviation.square() * shares).sum(-1)
        coarse_first += (deviation * coarse).sum(-1)
        coarse_second += (deviation.square() * coarse).sum(-1)
    mean, variance = pivot[..., 0] + first, (second - first.square()).clamp(min=0.0)
    if not bool((torch.isfinite(mean) & torch.isfinite(variance)).all()):
        return None
    if bool(((coarse_first - first).abs() > _AGREEMENT * second.sqrt()).any()):
        return None
    if bool(((coarse_second - second).abs() > 2.0 * _AGREEMENT * second).any()):
        return None
    return Gaussian(mean, variance.sqrt())


def _values(function: Function, at: Tensor) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite show in the result
        return np.asarray(function(at.contiguous().numpy()), order="C")


def _check_shapes(what: str, x: Tensor, y: Tensor) -> None:
    try:
        torch.broadcast_shapes(x.shape, y.shape)
    except RuntimeError:
        raise InputError(
            f"the {what} has operands of shapes {list(x.shape)} and {list(y.shape)}", expected="shapes that broadcast"
        ) from None


def scale(x: Gaussian, factor: Tensor | float) -> Gaussian:
    """Moments of factor * x.

    Args:
        x: Before scaling.
        factor: Numbers of any sign, that broadcast to x.

    Returns:
        The scaled moments.

    Raises:
        InputError: The shapes do not broadcast.
    """
    factors = torch.as_tensor(factor, dtype=torch.float64)
    _check_shapes("product", x.mean, factors)
    return Gaussian(x.mean * factors, x.std * factors.abs())


def linear(
    x: Gaussian, weight: Tensor, bias: Tensor | None = None, groups: int = 1, *, independent: bool = True
) -> Gaussian:
    """Moments of a linear layer or a convolution, away from its padding.

        mean = sum_k W_k mean + b,    variance = sum_k W_k^2 variance,    k over the kernel positions

    The variance is that of inputs that are independent over channels and positions. Where nothing is known of that, the
    deviation is taken between the least and the greatest that may be expected:

        std = sqrt(sqrt(sum_k W_k^2 variance) * sum_k |W_k| std)

    Args:
        x: The input channels.
        weight: [out, in / groups, *kernel], the kernel absent for a linear layer.
        bias: [out].
        groups: Groups of the convolution.
        independent: Whether inputs are independent; False: nothing is known of that.

    Returns:
        The output channels.

    Raises:
        InputError: The shapes do not broadcast.
    """
    channels = x.mean.numel()
    if weight.dim() < 2 or groups < 1 or weight.shape[0] % groups or weight.shape[1] * groups != channels:
        raise InputError(
            f"a weight of shape {list(weight.shape)} in {groups} groups for {channels} channels",
            expected="[out, channels / groups, *kernel] with groups dividing out",
        )
    if bias is not None and list(bias.shape) != [weight.shape[0]]:
        raise InputError(f"a bias of shape {list(bias.shape)}", expected=f"[{weight.shape[0]}]")
    kernels = weight.detach().to(torch.float64).reshape(weight.shape[0], weight.shape[1], -1)
    mean = _grouped_product(kernels.sum(2), x.mean, groups)
    variance = _grouped_product(kernels.square().sum(2), x.std.square(), groups)
    if bias is not None:
        mean = mean + bias.detach().to(torch.float64)
    if independent:
        return Gaussian(mean, variance.sqrt())
    return Gaussian(mean, entangled(variance.sqrt(), _grouped_product(kernels.abs().sum(2), x.std, groups)))


def entangled(independent: Tensor, alike: Tensor) -> Tensor:
    """The deviation of a sum of numbers of which it is not known how far they depend on each other.

    That is the geometric mean of both cases: n equal terms count as sqrt(n) independent ones.

    Args:
        independent: The deviation if all terms are independent.
        alike: The deviation if all rise and fall together, the sum of those of the terms.
    """
    return (independent * alike).sqrt()


def _grouped_product(matrix: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Block-diagonal [out, in / groups] times [in]: each group of rows reads its own group of inputs."""
    out, inputs = matrix.shape
    return (matrix.reshape(groups, out // groups, inputs) @ vector.reshape(groups, inputs, 1)).reshape(out)


def _one_side(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of min(max(z, start), end) - start; end may be inf."""
    first, second = _excess(start)
    cut_first, cut_second = _excess(end)
    # inf * 0 is not a number; no mass lies beyond an infinite end.
    lost = torch.where(torch.isinf(end), 0.0, (end - start) * cut_first)
    return first - cut_first, (second - cut_second - 2.0 * lost).clamp(min=0.0)


def _excess(u: Tensor) -> tuple[Tensor, Tensor]:
    """L(u) = phi(u) - u Q(u) and M(u) = (1 + u^2) Q(u) - u phi(u), with the upper tail Q(u) = 1 - Phi(u)."""
    # Below -FAR they are needed only where start = end, and then cancel exactly.
    u = u.clamp(-FAR, FAR)
    tail = 0.5 * torch.special.erfc(u / math.sqrt(2.0))
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2.0 * math.pi)
    return (density - u * tail).clamp(min=0.0), ((1.0 + u.square()) * tail - u * density).clamp(min=0.0)
