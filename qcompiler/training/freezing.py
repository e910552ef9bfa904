"""Iterative freezing: codes that oscillate too often stay where they are most of the time.

Where the state lives: `frozen` and `frozen_codes` of `training.oscillations.Oscillations`, beside the frequencies that
decide. `step()` of the training module calls `freeze` after it has updated them; a code that is frozen stays frozen.
The latent weight goes on receiving gradients, without any effect, as in the paper's code.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from qcompiler.quant.rounding import Rounding, round_float
from qcompiler.training.oscillations import Oscillations
from qcompiler.training.schedules import Cosine, Schedule

__all__ = ["Freezing", "Tracking", "freeze"]


@dataclass(frozen=True)
class Tracking:
    """Which weights are watched.

    Args:
        momentum: Share of the newest step in frequencies and averages; 0.001 is the default of the paper's program.
        largest_bits: Weights with more bits are left alone, as in the paper's code.
    """

    momentum: float = 0.001
    largest_bits: int = 4


@dataclass(frozen=True)
class Freezing:
    """When codes are frozen.

    Args:
        threshold: Frequency above which a code is frozen; 0 or less: none is. A number, or a schedule.
        tracking: Which weights, and how.
    """

    threshold: float | Schedule = field(default_factory=lambda: Cosine(0.1, 0.01, before=0.0))
    tracking: Tracking = field(default_factory=Tracking)


@torch.no_grad()
def freeze(state: Oscillations, threshold: float) -> None:
    """Freeze the codes whose frequency is above `threshold` at the average of theirs, rounded.

    Args:
        state: Of one weight, after `update`.
        threshold: 0 or less freezes nothing.
    """
    if threshold <= 0.0:
        return
    chosen = (state.frequency > threshold) & ~state.frozen
    state.frozen_codes.copy_(torch.where(chosen, round_float(state.average, Rounding.NEAREST_EVEN), state.frozen_codes))
    state.frozen |= chosen
