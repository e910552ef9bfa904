"""Range estimators: the range in which a tensor is quantized, from statistics of this step or of earlier ones.

A range is held as its reach [-low, high], so that two ranges merge by their maximum. With r(t) the reach of the tensor
of step t, q the state and eta the momentum,

    in_hindsight      uses q(t),                               q(t+1) = (1 - eta) r(t) + eta q(t)
    in_hindsight_max  the same with m(t) = max |x| in place of both ends
    running           uses (1 - eta) r(t) + eta q(t),          q(t+1) = the same
    current           uses r(t),                               q(t+1) as for running, used by the integer program
    dsgc              uses the clip of least cosine distance, searched every N steps and kept in between
    fixed             uses the first range

Static estimators use a range that is known before the tensor, so that an accelerator can write its codes at once.
Dynamic ones read the tensor first. Where no range is known, or where it holds only 0, every estimator uses that of the
present tensor: one dynamic step.

Source: Fournarakis and Nagel 2021, arXiv:2105.04246 (in hindsight, and the comparison); Chmiel et al., "Accurate Neural
Training with 4-bit Matrix Multiplications at Standard Formats" (in_hindsight_max); Zhu et al. 2020, "Towards Unified
INT8 Training" (dsgc). Decision 43 lists what these sources leave open.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from qcompiler.errors import InputError, UnsupportedError
from qcompiler.quant.affine import unchecked_qparams
from qcompiler.quant.gradients import gradient_steps
from qcompiler.quant.spec import QuantSpec

__all__ = [
    "DSGC",
    "ESTIMATORS",
    "Current",
    "Fixed",
    "InHindsight",
    "InHindsightMax",
    "RangeChoice",
    "RangeEstimator",
    "Running",
    "range_estimator",
    "reach_of",
]


def reach_of(x: Tensor) -> Tensor:
    """The reach [-min, max] of a tensor, float32 [2]."""
    low, high = torch.aminmax(x.detach())
    return torch.stack((-low, high)).to(torch.float32)


@dataclass(frozen=True)
class RangeEstimator(ABC):
    """A rule for ranges; frozen and stateless, so that quantizers can share one object.

    Args:
        momentum: eta, the weight of the state, at least 0 and below 1.
    """

    momentum: float = 0.9

    dynamic: ClassVar[bool] = False
    """Whether the range depends on the tensor that is quantized."""
    searches: ClassVar[bool] = False
    """Whether `measured` needs the whole tensor rather than its reach."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise InputError(f"momentum={self.momentum}", expected="a number from 0 to below 1")

    def of_reach(self, reach: Tensor) -> Tensor:
        """The statistics of a tensor of which only the reach is needed.

        Args:
            reach: Reach of the tensor, float32 [2].
        """
        return reach

    def measured(self, x: Tensor, spec: QuantSpec, count: Tensor) -> tuple[Tensor, Tensor | None]:
        """The statistics of a tensor.

        Args:
            x: Tensor of any shape.
            spec: Grid of its quantizer.
            count: Number of moves of the state so far, int64 [].

        Returns:
            Its reach, and the cosine distance where the estimator searches for it, else None.
        """
        return self.of_reach(reach_of(x)), None

    @abstractmethod
    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The reach in which the tensor of this step is quantized.

        Args:
            state: State before this step, float32 [2].
            present: Statistics of the tensor, float32 [2].
            count: Number of moves so far, int64 [].
        """

    @abstractmethod
    def moved(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The states after this step, [..., 2], for states and statistics [..., 2] and counts that broadcast."""

    def _average(self, state: Tensor, present: Tensor) -> Tensor:
        return present * (1.0 - self.momentum) + state * self.momentum


@dataclass(frozen=True)
class InHindsight(RangeEstimator):
    """The average over past steps: known before the tensor."""

    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The state."""
        return state

    def moved(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The average with the newest statistics."""
        return self._average(state, present)


@dataclass(frozen=True)
class InHindsightMax(InHindsight):
    """The average over past steps of the largest magnitude: one number, for symmetric grids."""

    def of_reach(self, reach: Tensor) -> Tensor:
        """The largest magnitude as both ends."""
        return reach.amax().expand(2)


@dataclass(frozen=True)
class Running(RangeEstimator):
    """The average over past steps and the present one."""

    dynamic: ClassVar[bool] = True

    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The average with the present statistics."""
        return self._average(state, present)

    def moved(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The same."""
        return self._average(state, present)


@dataclass(frozen=True)
class Current(Running):
    """The range of the present tensor. The state is an average, because an integer program needs a fixed range."""

    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The present statistics."""
        return present


@dataclass(frozen=True)
class Fixed(RangeEstimator):
    """The first range that is known: the given one, or that of the first tensor."""

    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The state."""
        return state

    def moved(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The state."""
        return state


@dataclass(frozen=True)
class DSGC(RangeEstimator):
    """Direction-sensitive gradient clipping: the clip of least cosine distance, renewed every `every` steps.

    With g^ the tensor g clipped to [-c, c] and rounded to the nearest code, c minimizes

        d(c) = 1 - <g, g^> / (|g| |g^|)

    by golden-section search over (0, max |g|]. With `slows`, the gradient of the layer's weight is multiplied by
    max(exp(-alpha d), beta), which for SGD is a learning rate of the layer's own.

    Args:
        every: Steps between searches.
        slows: Whether the distance reduces the learning rate of its layer; for quantizers of gradients.
        alpha: Strength of that reduction.
        beta: Smallest factor.
        iterations: Steps of the search; each shortens the interval to 62 %.
    """

    every: int = 100
    slows: bool = False
    alpha: float = 20.0
    beta: float = 0.1
    iterations: int = 20

    dynamic: ClassVar[bool] = True
    searches: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.iterations < 1:
            raise InputError(f"every={self.every}, iterations={self.iterations}", expected="at least 1 each")
        if self.alpha < 0.0 or not 0.0 < self.beta <= 1.0:
            raise InputError(f"alpha={self.alpha}, beta={self.beta}", expected="alpha from 0, beta above 0 and up to 1")

    def measured(self, x: Tensor, spec: QuantSpec, count: Tensor) -> tuple[Tensor, Tensor | None]:
        """The reach of the best clip and its cosine distance in a step with a search; in others those of the tensor.

        Raises:
            UnsupportedError: torch.compile traces the step; a search needs the values of the tensor.
        """
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                "estimator 'dsgc' in torch.compile", fix="Use estimator='in_hindsight', or do not compile."
            )
        reach = reach_of(x)
        if int(count) % self.every or not bool(torch.isfinite(reach).all()):
            return reach, None
        clip, distance = self.search(x, spec)
        return reach.clamp(max=clip), torch.tensor(distance, device=x.device)

    def search(self, x: Tensor, spec: QuantSpec) -> tuple[float, float]:
        """The clip of least cosine distance, and that distance.

        Args:
            x: Tensor of finite numbers.
            spec: Grid of its quantizer.
        """
        reach = reach_of(x)
        wide = x.detach().to(torch.float32).reshape(-1)
        # The whole range is compared with the result: the distance may have several minima.
        whole = float(reach.amax())
        candidates = [(self._distance(wide, reach, whole, spec), whole)]
        shrink = (math.sqrt(5.0) - 1.0) / 2.0
        low, high = 0.0, whole
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        at_left, at_right = (self._distance(wide, reach, clip, spec) for clip in (left, right))
        for _ in range(self.iterations):
            if at_left <= at_right:
                high, right, at_right = right, left, at_left
                left = high - shrink * (high - low)
                at_left = self._distance(wide, reach, left, spec)
            else:
                low, left, at_left = left, right, at_right
                right = low + shrink * (high - low)
                at_right = self._distance(wide, reach, right, spec)
        candidates += [(at_left, left), (at_right, right)]
        distance, clip = min(candidates)
        return clip, distance

    @staticmethod
    def _distance(x: Tensor, reach: Tensor, clip: float, spec: QuantSpec) -> float:
        ends = reach.clamp(max=clip).to(torch.float64)
        scale, zero_point = unchecked_qparams(-ends[0], ends[1], spec)
        return float(cosine_distance(x, gradient_steps(x, scale, zero_point, spec, None)))

    def factor(self, distance: Tensor) -> Tensor:
        """The factor of the learning rate for a cosine distance."""
        return torch.exp(-self.alpha * distance).clamp(min=self.beta)

    def used(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The present clip in a step with a search, else the state."""
        return torch.where(count % self.every == 0, present, state)

    def moved(self, state: Tensor, present: Tensor, count: Tensor) -> Tensor:
        """The same."""
        return self.used(state, present, count)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - <x, y> / (|x| |y|), [], in float64; 0 if both are 0, 1 if one of them is."""
    left, right = (item.detach().reshape(-1).to(torch.float64) for item in (x, y))
    norms = left.norm() * right.norm()
    cosine = torch.dot(left, right) / torch.where(norms > 0, norms, torch.ones_like(norms))
    nothing = (left.norm() == 0) & (right.norm() == 0)
    return torch.where(nothing, torch.zeros_like(cosine), 1.0 - cosine)


ESTIMATORS: dict[str, type[RangeEstimator]] = {
    "in_hindsight": InHindsight,
    "in_hindsight_max": InHindsightMax,
    "running": Running,
    "current": Current,
    "dsgc": DSGC,
    "fixed": Fixed,
}
"""Estimators by name."""

RangeChoice: TypeAlias = "str | RangeEstimator"


def range_estimator(choice: RangeChoice, momentum: float = 0.9) -> RangeEstimator:
    """The estimator of a name, or the given one.

    Args:
        choice: A name of `ESTIMATORS`, or an estimator, which keeps its own momentum.
        momentum: Momentum of an estimator that is given by name.

    Raises:
        InputError: There is no such estimator, or the momentum is out of range.
    """
    if isinstance(choice, RangeEstimator):
        return choice
    if choice not in ESTIMATORS:
        near = difflib.get_close_matches(str(choice), ESTIMATORS, n=1)
        raise InputError(
            f"there is no range estimator {choice!r}",
            expected="a RangeEstimator, or one of " + ", ".join(ESTIMATORS),
            fix=f"Did you mean {near[0]!r}?" if near else None,
        )
    return ESTIMATORS[choice](momentum=momentum)
