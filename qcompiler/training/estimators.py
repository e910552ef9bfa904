"""Gradient estimators: surrogates for the derivative of round(v), v = x / scale, inside the grid.

The derivative of round is 0 almost everywhere. Each class replaces it by a factor,

    dy/dx = factor(v)        where v lies on the grid, 0 where it is clipped

and the quantizer (`training.quantizer`) handles clipping and the gradients of scale and zero point by the chain rule.
v is in steps of the grid, so that a factor has the same effect for every scale.

All estimators are multiplicative: they scale the gradient of a weight on a threshold but never reverse its sign, so no
estimator stops an oscillation (Nagel et al. 2022, arXiv:2203.11086, section 2). The additive regularizers of
`training.regularizers` do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qcompiler.errors import InputError

__all__ = [
    "EWGS",
    "PSG",
    "DifferentiableSoftQuantization",
    "Estimator",
    "StackedSigmoid",
    "StochasticRounding",
    "StraightThrough",
]


@dataclass(frozen=True)
class Estimator(ABC):
    """A surrogate for the derivative of rounding; frozen and stateless, so that quantizers can share one object."""

    stochastic: ClassVar[bool] = False
    """Whether training rounds stochastically."""
    is_constant: ClassVar[bool] = False
    """Whether the factor is 1 everywhere, so that `factor` need not be called."""

    @abstractmethod
    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """The factor of the gradient where the input is not clipped.

        Args:
            gradient: Gradient of the loss with respect to the quantizer's result, float32, in the shape of its input.
            steps: v = x / scale, float32.
            codes: Rounded v.

        Returns:
            float32 in the same shape, None for 1 everywhere.
        """

    def soft_round(self, steps: Tensor) -> Tensor | None:
        """The function of v with derivative `factor`; None if `factor` depends on more than v."""
        return None


@dataclass(frozen=True)
class StraightThrough(Estimator):
    """d round(v) / dv = 1.

    Source: Bengio et al. 2013, arXiv:1308.3432; Nagel et al. 2021, arXiv:2106.08295, section 4.1.
    """

    is_constant: ClassVar[bool] = True

    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """None: 1."""
        return None

    def soft_round(self, steps: Tensor) -> Tensor | None:
        """v itself."""
        return steps


@dataclass(frozen=True)
class StochasticRounding(StraightThrough):
    """Stochastic rounding in training: floor(v + u), u uniform in [0, 1), with gradient 1.

    Outside of training, v is rounded to nearest. The noise comes from torch's generator of the tensor's device, which
    dropout also uses: seed it with `torch.manual_seed`.

    Source: Gupta et al. 2015, arXiv:1502.02551; the code of Nagel et al. 2022.
    """

    stochastic: ClassVar[bool] = True


@dataclass(frozen=True)
class EWGS(Estimator):
    """Element-wise gradient scaling: 1 + delta * sign(g) * (v - round(v)).

    A gradient that pushes towards the code is smaller than one that pushes away from it.

    The paper writes x - x_q in units of a range normalized to [0, 1] and takes delta from the curvature; the code of
    Nagel et al. 2022 works on x / scale with delta = 0.2. This class follows the code: units of steps, and its default.

    Source: Lee et al. 2021, arXiv:2104.00903, equation 4.

    Args:
        delta: Strength of the scaling, at least 0; 0 is straight-through.
    """

    delta: float = 0.2

    def __post_init__(self) -> None:
        _check(self.delta >= 0.0, f"delta={self.delta}", "at least 0")

    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """See the class."""
        return (steps - codes).mul_(gradient.sign()).mul_(self.delta).add_(1.0)


@dataclass(frozen=True)
class PSG(Estimator):
    """Position-based scaled gradient: |v - round(v)| + eps.

    Weights on the grid stay there; weights far from the grid move fast.

    The formula is printed for weights in real units and analysed for a scale of 1. Here the distance is counted in
    steps, which is the same for a scale of 1, and does not make the gradient of a layer vanish with its scale.

    Source: Kim et al. 2020, arXiv:2005.11035; formula as in Nagel et al. 2022, arXiv:2203.11086, appendix.

    Args:
        eps: Share of the gradient that remains for weights on the grid, above 0.
    """

    eps: float = 1e-4

    def __post_init__(self) -> None:
        _check(self.eps > 0.0, f"eps={self.eps}", "a number above 0; with 0, weights on the grid would never leave it")

    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """See the class."""
        return (steps - codes).abs_().add_(self.eps)


@dataclass(frozen=True)
class DifferentiableSoftQuantization(Estimator):
    """A tanh between each two codes.

    With r = v - floor(v) - 1/2,

        soft_round(v) = floor(v) + 1/2 + tanh(k r) / (2 tanh(k / 2))
        factor        = k (1 - tanh(k r)^2) / (2 tanh(k / 2)),     k = log(2 / alpha - 1)

    alpha = 1 - tanh(k / 2) is the distance of the tanh from the codes: near 0 the function is rounding, at 1 it is
    straight-through. The forward pass rounds; alpha is fixed, where the paper also learns it.

    Source: Gong et al. 2019, arXiv:1908.05033, equations 4 to 8.

    Args:
        alpha: Distance of the tanh from the codes, above 0 and below 1.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check(0.0 < self.alpha < 1.0, f"alpha={self.alpha}", "above 0 and below 1")

    @property
    def steepness(self) -> float:
        """k."""
        return math.log(2.0 / self.alpha - 1.0)

    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """See the class."""
        k = self.steepness
        slope = _from_middle(steps).mul_(k).tanh_()
        return slope.square_().neg_().add_(1.0).mul_(k / (2.0 * math.tanh(k / 2.0)))

    def soft_round(self, steps: Tensor) -> Tensor | None:
        """See the class."""
        k = self.steepness
        soft = torch.tanh(k * _from_middle(steps)) / (2.0 * math.tanh(k / 2.0))
        return steps.floor() + 0.5 + soft


@dataclass(frozen=True)
class StackedSigmoid(Estimator):
    """A sigmoid between each two codes.

    With r = v - floor(v) - 1/2 and t the temperature,

        soft_round(v) = floor(v) + (sigmoid(t r) - sigmoid(-t / 2)) / (1 - 2 sigmoid(-t / 2))
        factor        = t sigmoid(t r) sigmoid(-t r) / (1 - 2 sigmoid(-t / 2))

    The same family as the tanh of `DifferentiableSoftQuantization`, with t = 2 k.

    Source: Yang et al. 2019, "Quantization Networks", equation 5, in the form of the code of Nagel et al. 2022.

    Args:
        temperature: Steepness of the sigmoid, above 0.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature > 0.0, f"temperature={self.temperature}", "above 0")

    def factor(self, gradient: Tensor, steps: Tensor, codes: Tensor) -> Tensor | None:
        """See the class."""
        t = self.temperature
        up = _from_middle(steps).mul_(t).sigmoid_()
        return (1.0 - up).mul_(up).mul_(t / (1.0 - 2.0 * _sigmoid(-t / 2.0)))

    def soft_round(self, steps: Tensor) -> Tensor | None:
        """See the class."""
        t, low = self.temperature, _sigmoid(-self.temperature / 2.0)
        return steps.floor() + (torch.sigmoid(t * _from_middle(steps)) - low) / (1.0 - 2.0 * low)


def _from_middle(steps: Tensor) -> Tensor:
    """Distance from the middle between the two codes around, in [-1/2, 1/2)."""
    return (steps - steps.floor()).sub_(0.5)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _check(holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise InputError(found, expected=expected)
