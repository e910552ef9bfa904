"""Means and standard deviations of channels, carried through operators in closed form: ranges without data.

Every channel is taken as normal and as independent of the others; clipping is then exact, and what follows takes the
clipped channel as normal again. All computation is in float64.

Source:
    Nagel et al. 2021, arXiv:2106.08295, section 3.1 (ranges from batch normalization) and section 3.3 (expectation of
    rectified normal channels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = ["ALPHA", "Gaussian", "add", "clamp", "linear", "scale"]

ALPHA = 6.0
"""Standard deviations to each side that a range covers, as in the source."""

_FAR = 40.0
"""Standard deviations beyond which the normal density is 0 in float64."""


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Mean and standard deviation per channel.

    Args:
        mean: [C], finite; kept as float64.
        std: [C], finite and not negative; kept as float64. After a batch norm: |gamma|, with beta as the mean.

    Raises:
        InputError: Shapes differ, there is no channel, or a value is out of range.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.dim() != 1 or self.mean.shape != self.std.shape or self.mean.numel() == 0:
            raise InputError(
                f"means of shape {list(self.mean.shape)} and standard deviations of shape {list(self.std.shape)}",
                expected="one of each per channel",
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
        x: Before clipping.
        low: Lower limit, one or [C]; may be -inf; 0 for a ReLU.
        high: Upper limit, one or [C]; may be inf.

    Returns:
        Mean, within the limits, and standard deviation of the clipped channels.

    Raises:
        InputError: The limits are out of order, or neither one number nor one per channel.
    """
    low, high = (torch.as_tensor(limit, dtype=torch.float64) for limit in (low, high))
    if any(limit.dim() and limit.shape != x.mean.shape for limit in (low, high)):
        raise InputError(
            f"clipping limits of shapes {list(low.shape)} and {list(high.shape)} for {x.mean.numel()} channels",
            expected="one number, or [C]",
        )
    if not bool((low <= high).all()):
        raise InputError(f"clipping limits {low.tolist()} and {high.tolist()}", expected="low <= high")
    # A channel without spread is a constant; the unit deviation only keeps its quotients finite.
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
    """Moments of x + y for independent x and y of as many channels.

    Raises:
        InputError: The numbers of channels differ.
    """
    if x.mean.shape != y.mean.shape:
        raise InputError(
            f"a sum of {x.mean.numel()} and {y.mean.numel()} channels", expected="the same number of channels in both"
        )
    return Gaussian(x.mean + y.mean, torch.hypot(x.std, y.std))


def scale(x: Gaussian, factor: Tensor | float) -> Gaussian:
    """Moments of factor * x.

    Args:
        x: Before scaling.
        factor: One number, or [C]; of any sign.

    Returns:
        The scaled channels.

    Raises:
        InputError: The factor is neither one number nor one per channel.
    """
    factors = torch.as_tensor(factor, dtype=torch.float64)
    if factors.dim() > 0 and factors.shape != x.mean.shape:
        raise InputError(
            f"factors of shape {list(factors.shape)} for {x.mean.numel()} channels", expected="one number, or [C]"
        )
    return Gaussian(x.mean * factors, x.std * factors.abs())


def linear(x: Gaussian, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Gaussian:
    """Moments of a linear layer or a convolution, away from its padding.

        mean = sum_k W_k mean + b,    variance = sum_k W_k^2 variance,    k over the kernel positions

    The variance takes inputs as independent over channels and positions.

    Args:
        x: The input channels.
        weight: [out, in / groups, *kernel], the kernel absent for a linear layer.
        bias: [out].
        groups: Groups of the convolution.

    Returns:
        The output channels.

    Raises:
        InputError: The shapes do not fit together.
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
    return Gaussian(mean, variance.sqrt())


def _grouped_product(matrix: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Block-diagonal [out, in / groups] times [in]: each group of rows reads its own group of inputs."""
    out, inputs = matrix.shape
    return (matrix.reshape(groups, out // groups, inputs) @ vector.reshape(groups, inputs, 1)).reshape(out)


def _one_side(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of min(max(z, start), end) - start; end may be inf."""
    first, second = _excess(start)
    cut_first, cut_second = _excess(end)
    # inf * 0 is not a number; what lies beyond an infinite end has no mass.
    lost = torch.where(torch.isinf(end), 0.0, (end - start) * cut_first)
    return first - cut_first, (second - cut_second - 2.0 * lost).clamp(min=0.0)


def _excess(u: Tensor) -> tuple[Tensor, Tensor]:
    """L(u) = phi(u) - u Q(u) and M(u) = (1 + u^2) Q(u) - u phi(u), with the upper tail Q(u) = 1 - Phi(u)."""
    # Below -_FAR they are needed only where start = end, and then cancel exactly.
    u = u.clamp(-_FAR, _FAR)
    tail = 0.5 * torch.special.erfc(u / math.sqrt(2.0))
    density = torch.exp(-0.5 * u.square()) / math.sqrt(2.0 * math.pi)
    return (density - u * tail).clamp(min=0.0), ((1.0 + u.square()) * tail - u * density).clamp(min=0.0)
