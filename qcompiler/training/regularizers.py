"""Penalties on latent weights: functions of weight, scale and code limits only.

Each penalty pulls weights towards the grid. The pull does not vanish at the threshold between two codes, where an
oscillating weight is, so that a penalty can stop an oscillation; no gradient estimator can. With w the weight and
q(w) = s k its rounded value,

    dampening            sum of (q(w) - clip(w, s n, s p))^2            clipped weights are left alone
    bin regularization   per bin: (mean of w - s k)^2 + variance of w   weights in sparse bins count more
    L2 to grid           sum of (q(w) - w)^2                            clipped weights are pulled to the end

No penalty has a gradient for the scale.

Regularizers are stateless frozen dataclasses. The strength is a separate schedule (`Weighted`), evaluated at the step
counter of the training module. `regularization()` of the training module sums the penalties over all weight quantizers;
the user adds the sum to the loss. All regularizers work with all estimators and ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from qcompiler.errors import InputError
from qcompiler.training.schedules import Schedule, as_schedule

__all__ = ["BinRegularization", "Dampening", "L2ToGrid", "Latent", "Reduction", "Regularizer", "Weighted"]

Reduction: TypeAlias = Literal["kernel_mean", "sum", "mean"]
"""Reduction of the squares of one weight tensor. `kernel_mean`: sum over output channels, mean over all other axes."""


@dataclass(frozen=True, eq=False)
class Latent:
    """The data of one quantized weight for regularizers.

    Args:
        weight: Latent weight, float32, with gradients.
        scale: Scale, float32, broadcastable with the weight, [] or [C, 1, ...]; with gradients, to be detached where
            the formula has none.
        codes: Codes round(weight / scale) within the limits, or frozen codes; float32 integers in the shape of the
            weight, without gradients.
        qmin: Lowest code, n.
        qmax: Highest code, p.
        axis: Output channel axis, independent of the granularity of the scale.
        bits: Bit width of the codes.
        frozen: Mask of frozen codes, bool in the shape of the weight; None if nothing can be frozen.
    """

    weight: Tensor
    scale: Tensor
    codes: Tensor
    qmin: int
    qmax: int
    axis: int
    bits: int
    frozen: Tensor | None = None


@runtime_checkable
class Regularizer(Protocol):
    """A penalty on one weight."""

    def __call__(self, item: Latent) -> Tensor:
        """float32 [], differentiable, at least 0."""
        ...


@dataclass(frozen=True)
class Weighted:
    """A regularizer and its strength.

    Args:
        regularizer: The penalty.
        strength: Factor of the penalty, a number or a schedule.
    """

    regularizer: Regularizer
    strength: float | Schedule = 1.0

    def at(self, step: int, total: int | None) -> float:
        """The strength at a step."""
        return as_schedule(self.strength)(step, total)


@dataclass(frozen=True)
class Dampening:
    """Oscillation dampening: squared distance to the grid of the unclipped weights.

        L = || q(w) - clip(w, s n, s p) ||^2,     dL/dw = 2 (w - q(w)) where s n <= w <= s p, else 0

    There is no gradient through q(w), nor for s. In a regression of one weight with its optimum at distance d from the
    grid, dampening stops the oscillation once the strength exceeds d / s; from (s - d) / s on, the farther code also
    holds the weight. Hence the paper increases the strength: `Weighted(Dampening(), Cosine(0.0, 0.1))`.

    The paper prints the sum of squares over a tensor, with strengths of 1e-4 to 1e-2. Its code uses `kernel_mean` and
    ends at a strength of 0.1, for MobileNetV2 at 3 and 4 bits. The default follows the code.

    Source: Nagel et al. 2022, arXiv:2203.11086, section 4.2, and its code.

    Args:
        reduction: Over the weights of a tensor.
    """

    reduction: Reduction = "kernel_mean"

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)

    def __call__(self, item: Latent) -> Tensor:
        """See the class."""
        return _reduced((_target(item) - _clipped(item)).square(), item, self.reduction)


@dataclass(frozen=True)
class L2ToGrid:
    """Squared distance to the grid of all weights; clipped weights are pulled to the ends of the grid.

        L = || q(w) - w ||^2,     dL/dw = 2 (w - q(w))

    `L2ToGrid` differs from `Dampening` only in clipped weights.

    Source: named as a predecessor in Nagel et al. 2022, arXiv:2203.11086, section 4.2.

    Args:
        reduction: Over the weights of a tensor.
    """

    reduction: Reduction = "kernel_mean"

    def __post_init__(self) -> None:
        _check_reduction(self.reduction)

    def __call__(self, item: Latent) -> Tensor:
        """See the class."""
        return _reduced((_target(item) - item.weight).square(), item, self.reduction)


@dataclass(frozen=True)
class BinRegularization:
    """Mean and variance of the weights in each bin; a bin holds the weights with the same code and scale.

        L = sum over bins of (mean(w) - s k)^2 + var(w)

    The variance is the population variance, used only in bins with more than two weights. Weights beyond the ends of
    the grid count as if they were at the ends, without a gradient, as in `Dampening`. The gradient of a weight is that
    of `Dampening` with `sum`, divided by the number of weights in its bin: sparse bins contract first.

    The paper trains in two stages, so that scales converge before weights are pulled to the grid:
    `Weighted(BinRegularization(), Constant(0.1, begin=0.3))`.

    Source: Han et al. 2021, "Improving Low-Precision Network Quantization via Bin Regularization" (ICCV 2021). The
    authors published no code and do not state whether they clip; here clipped weights have no gradient.
    """

    def __call__(self, item: Latent) -> Tensor:
        """See the class."""
        levels = item.qmax - item.qmin + 1
        away = (_clipped(item) - _target(item)).flatten()
        bins = (item.codes - item.qmin).to(torch.int64)
        if item.scale.numel() > 1:
            grids = torch.arange(item.scale.numel(), device=bins.device).reshape(item.scale.shape)
            bins = bins + levels * grids
        bins = bins.flatten()
        if item.frozen is not None:
            kept = (~item.frozen).flatten()
            away, bins = away[kept], bins[kept]
        empty = torch.zeros(levels * item.scale.numel(), device=away.device)
        counts = empty.index_add(0, bins, torch.ones_like(away)).clamp(min=1.0)
        mean = empty.index_add(0, bins, away) / counts
        variance = empty.index_add(0, bins, (away - mean[bins]).square()) / counts
        return mean.square().sum() + variance[counts > _FEW].sum()


_FEW = 2
"""Largest number of weights in a bin whose variance is ignored."""


def _target(item: Latent) -> Tensor:
    """q(w), without gradient."""
    return item.codes * item.scale.detach()


def _clipped(item: Latent) -> Tensor:
    """The weight clipped to the ends of the grid, with gradient 0 where it is clipped."""
    scale = item.scale.detach()
    return torch.minimum(torch.maximum(item.weight, scale * item.qmin), scale * item.qmax)


def _reduced(squares: Tensor, item: Latent, reduction: Reduction) -> Tensor:
    """Reduce the squares of one weight; frozen codes are excluded, because their latent weights have no effect."""
    if item.frozen is not None:
        squares = squares.masked_fill(item.frozen, 0.0)
    if reduction == "sum":
        return squares.sum()
    if reduction == "mean":
        return squares.mean()
    return squares.sum(item.axis).mean()


def _check_reduction(reduction: str) -> None:
    if reduction not in ("kernel_mean", "sum", "mean"):
        raise InputError(f"reduction is {reduction!r}", expected='"kernel_mean", "sum" or "mean"')
