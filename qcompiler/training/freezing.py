"""Iterative freezing: codes that oscillate too often are fixed at their rounded average.

The state is `frozen` and `frozen_codes` of `training.oscillations.Oscillations`, next to the frequencies. `step()` of
the training module updates the frequencies and then calls `freeze`; a frozen code stays frozen. The latent weight still
receives gradients, without effect, as in the paper's code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from qcompiler.errors import InputError
from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.schedules import Cosine, Schedule

__all__ = ["Freezing", "Tracking", "freeze"]


@dataclass(frozen=True)
class Tracking:
    """Settings for tracking oscillations.

    Args:
        momentum: Share of the newest step in frequencies and averages, above 0 and up to 1; 0.001 is the default of the
            paper's program.
        largest_bits: Maximum bit width of tracked weights, at least 1; 4 as in the paper's code.

    Raises:
        InputError: A value is out of range.
    """

    momentum: float = 0.001
    largest_bits: int = 4

    def __post_init__(self) -> None:
        if not 0.0 < self.momentum <= 1.0:
            raise InputError(f"momentum={self.momentum}", expected="a share above 0 and up to 1")
        if self.largest_bits < 1:
            raise InputError(f"largest_bits={self.largest_bits}", expected="at least 1")


@dataclass(frozen=True)
class Freezing:
    """Settings for freezing codes.

    Args:
        threshold: Frequency above which a code is frozen, a number or a schedule; 0 or less freezes nothing.
        tracking: Settings for tracking oscillations.
    """

    threshold: float | Schedule = field(default_factory=lambda: Cosine(0.1, 0.01, before=0.0))
    tracking: Tracking = field(default_factory=Tracking)


@torch.no_grad()
def freeze(state: Oscillations, threshold: float) -> None:
    """Freeze each code whose frequency is above `threshold` at its rounded average.

    Args:
        state: Oscillation state of one weight, after `update`.
        threshold: Frequency threshold; 0 or less freezes nothing.
    """
    if threshold <= 0.0:
        return
    chosen = (state.frequency > threshold) & ~state.frozen
    state.frozen_codes.copy_(torch.where(chosen, round_float(state.average, Rounding.NEAREST_EVEN), state.frozen_codes))
    state.frozen |= chosen
