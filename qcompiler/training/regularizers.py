"""Penalties on latent weights: functions of weight, scale and the limits of the codes, and nothing else.

Where the state lives: nowhere. A regularizer is a frozen dataclass; its strength is a schedule beside it (`Weighted`),
evaluated at the step that the training module counts. `regularization()` of the training module adds them up over all
weight quantizers, for the user to add to the loss; any of them goes with any estimator and any ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from qcompiler.training.schedules import Schedule, as_schedule

__all__ = ["Latent", "Regularizer", "Weighted"]


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
