"""The budget of a search: a number of evaluations, or minutes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qcompiler.errors import InputError

__all__ = ["Budget"]

_TEXT = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,6})?) *(?P<unit>[a-z]*)")
_MINUTES = {"s": 1 / 60, "sec": 1 / 60, "min": 1.0, "h": 60.0}
_COUNTS = ("", "evaluations", "evaluation")
EXPECTED = 'a number of evaluations of at least 1, or a time such as "20 min", "90 s" or "1.5 h"'


@dataclass(frozen=True)
class Budget:
    """The work that a search may do. The limit that is reached first ends the search; None is no limit.

    Args:
        evaluations: Largest number of models that are scored, at least 1. Two searches with the same number end alike.
        minutes: Wall-clock time after which no further candidate begins, above 0. Candidates that an interrupted
            search has recorded count with the time that they took.

    Raises:
        InputError: A limit is out of range.
    """

    evaluations: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        count, minutes = self.evaluations, self.minutes
        if count is not None and count < 1:
            raise InputError(f"budget is {count!r} evaluations", expected=EXPECTED)
        if minutes is not None and not 0.0 < minutes < math.inf:
            raise InputError(f"budget is {minutes!r} minutes", expected=EXPECTED)

    @classmethod
    def of(cls, value: object) -> Budget:
        """The budget that an argument stands for: a number of evaluations, or text such as `20 min`.

        Raises:
            InputError: The argument is neither.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, int) and not isinstance(value, bool):
            return cls(evaluations=value)
        found = _TEXT.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if found is None or found["unit"] not in (*_MINUTES, *_COUNTS):
            raise InputError(f"budget is {value!r}", expected=EXPECTED)
        if found["unit"] in _MINUTES:
            return cls(minutes=float(found["number"]) * _MINUTES[found["unit"]])
        if not found["number"].isdecimal():
            raise InputError(f"budget is {value!r}", expected=EXPECTED)
        return cls(evaluations=int(found["number"]))

    def is_spent(self, evaluations: int, seconds: float) -> bool:
        """Whether no further candidate may begin.

        Args:
            evaluations: Number of models that were scored.
            seconds: Time since the beginning, seconds.
        """
        if self.evaluations is not None and evaluations >= self.evaluations:
            return True
        return self.minutes is not None and seconds >= 60.0 * self.minutes

    def __str__(self) -> str:
        limits = []
        if self.evaluations is not None:
            limits.append(f"{self.evaluations} evaluations")
        if self.minutes is not None:
            limits.append(f"{self.minutes:g} min")
        return ", ".join(limits) or "unlimited"
