"""Schedules: values that change during training, such as the strength of a regularizer or a freezing threshold.

A schedule is a pure function of the step and the total number of steps, so that a resumed run continues unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from qcompiler.errors import InputError

__all__ = ["Constant", "Cosine", "Schedule", "as_schedule"]


@runtime_checkable
class Schedule(Protocol):
    """A value for each step."""

    def __call__(self, step: int, total: int | None) -> float:
        """The value at `step`, counted from 0, of `total` steps; `total` is None if unknown.

        Raises:
            InputError: The schedule needs `total`.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """A constant value, optionally from a share of the steps on.

    Args:
        value: Value from `begin` on.
        begin: Share of the steps before `value` applies, in [0, 1).
        before: Value before `begin`.
    """

    value: float
    begin: float = 0.0
    before: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self.begin)

    def __call__(self, step: int, total: int | None) -> float:
        """The value.

        Raises:
            InputError: `begin` is not 0, and the total number of steps is unknown.
        """
        return self.before if self.begin and step < self.begin * _known(total) else self.value


@dataclass(frozen=True)
class Cosine:
    """Half a period of a cosine from `start` to `end`.

        end + (start - end) (1 + cos(pi r)) / 2,      r = (step - t0) / (total - t0),     t0 = begin * total

    After `total` steps the value stays at `end`.

    Source: the code of Nagel et al. 2022, arXiv:2203.11086: the strength of dampening rises from 0 and the threshold of
    freezing falls, both from a quarter of the steps on. Before, the strength is 0 and freezing is off: `before=0`.

    Args:
        start: Value at `begin`.
        end: Value at the last step.
        begin: Share of the steps before the cosine starts, in [0, 1).
        before: Value before `begin`; None: `start`.
    """

    start: float
    end: float
    begin: float = 0.25
    before: float | None = None

    def __post_init__(self) -> None:
        _check_share(self.begin)

    def __call__(self, step: int, total: int | None) -> float:
        """See the class.

        Raises:
            InputError: The total number of steps is unknown.
        """
        total = _known(total)
        first = self.begin * total
        if step < first:
            return self.start if self.before is None else self.before
        progress = min(1.0, (step - first) / (total - first)) if total > first else 1.0
        return self.end + 0.5 * (self.start - self.end) * (1.0 + math.cos(math.pi * progress))


def as_schedule(value: float | Schedule) -> Schedule:
    """A schedule; a number becomes a constant schedule."""
    return Constant(float(value)) if isinstance(value, int | float) else value


def _check_share(begin: float) -> None:
    if not 0.0 <= begin < 1.0:
        raise InputError(f"begin={begin}", expected="a share of the steps, from 0 to below 1")


def _known(total: int | None) -> int:
    if total is None:
        raise InputError("a schedule needs the number of training steps", fix="Pass total_steps= to prepare_qat.")
    return total
