"""Penalties on latent weights: functions of weight, scale and the limits of the codes, and nothing else.

All of them pull a weight towards the grid. The pull does not fade at the threshold between two codes, where a weight
that oscillates sits, so that it can stop an oscillation, which no estimator of the gradient can. With w the weight and
q(w) = s k what it is rounded to,

    dampening            sum of (q(w) - clip(w, s n, s p))^2            clipped weights are left alone
    bin regularization   per bin: (mean of w - s k)^2 + variance of w   a weight counts as much as its bin is empty
    L2 to grid           sum of (q(w) - w)^2                            clipped weights are pulled to the end

None has a gradient for the scale: the grid is where it is, and weights come to it.

Where the state lives: nowhere. A regularizer is a frozen dataclass; its strength is a schedule beside it (`Weighted`),
evaluated at the step that the training module counts. `regularization()` of the training module adds them up over all
weight quantizers, for the user to add to the loss; any of them goes with any estimator and any ranges.
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
"""How the squares of one weight tensor become a number.

`kernel_mean`: over output channels they are added up, over the rest of the axes their mean is taken.
"""


@dataclass(frozen=True, eq=False)
class Latent:
    """One quantized weight as regularizers see it.

    Args:
        weight: float32, what the optimizer moves; with gradients.
        scale: float32 as it broadcasts with the weight, [] or [C, 1, ...]; with gradients, to be detached where the
            formula has none.
        codes: float32 integers in the shape of the weight, without gradients: round(weight / scale) within the limits;
            frozen ones as they are frozen.
        qmin: Lowest code, n.
        qmax: Highest code, p.
        axis: Of the output channels, whatever the granularity of the scale.
        bits: Width of the codes.
        frozen: bool in the shape of the weight, None where nothing can be frozen.
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
        strength: A number, or a schedule.
    """

    regularizer: Regularizer
    strength: float | Schedule = 1.0

    def at(self, step: int, total: int | None) -> float:
        """The strength at a step."""
        return as_schedule(self.strength)(step, total)


@dataclass(frozen=True)
class Dampening:
    """Oscillation dampening: the squared distance to the grid of the weights that are not clipped.

        L = || q(w) - clip(w, s n, s p) ||^2,     dL/dw = 2 (w - q(w)) where s n <= w <= s p, else 0

    There is no gradient through q(w), nor for s. In a regression of one weight whose optimum is d away from the grid it
    stops the oscillation once the strength passes d / s; from (s - d) / s on the farther code holds the weight, too.
    Hence the paper lets it grow: `Weighted(Dampening(), Cosine(0.0, 0.1))`.

    The paper prints the sum of squares over a tensor, and strengths of 1e-4 to 1e-2 for it. Its code takes
    `kernel_mean` and ends at a strength of 0.1, for MobileNetV2 at 3 and 4 bits. The code is followed by default.

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
    """The squared distance to the grid of all weights: those beyond its ends are pulled back to them.

        L = || q(w) - w ||^2,     dL/dw = 2 (w - q(w))

    It differs from `Dampening` in the clipped weights alone, whose distance a learned scale may want.

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
    """Mean and variance of the weights in each bin: those that are rounded to one code of one scale.

        L = sum over bins of (mean(w) - s k)^2 + var(w)

    The variance is that of the population, and counts where a bin has more than two weights. Weights beyond the ends of
    the grid count as if they were on them, without a gradient, as in `Dampening`. The gradient of a weight is that of
    `Dampening` with `sum`, divided by the number of weights in its bin: bins that hold few are drawn together first.

    The paper trains in two stages, so that scales find their place before weights are drawn to the grid:
    `Weighted(BinRegularization(), Constant(0.1, begin=0.3))`.

    Source: Han et al. 2021, "Improving Low-Precision Network Quantization via Bin Regularization" (ICCV 2021); no
    code of the authors is public, and whether they clip is not said: here clipped weights do not pull.
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
"""Weights in a bin whose variance says nothing."""


def _target(item: Latent) -> Tensor:
    """q(w), without gradient."""
    return item.codes * item.scale.detach()


def _clipped(item: Latent) -> Tensor:
    """The weight within the ends of the grid; its gradient is 0 where it is beyond."""
    scale = item.scale.detach()
    return torch.minimum(torch.maximum(item.weight, scale * item.qmin), scale * item.qmax)


def _reduced(squares: Tensor, item: Latent, reduction: Reduction) -> Tensor:
    """A number for one weight; codes that are frozen count for nothing, since their weights have no effect."""
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
