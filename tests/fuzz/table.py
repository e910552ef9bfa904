"""The table of the kinds of lines that a random model may hold, and what the kinds share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.fuzz.draw import Drawing

Draw = Callable[[Drawing, str], str]


@dataclass(frozen=True)
class Kind:
    """A kind of line.

    Args:
        draw: Gives the expression of a line that reads a tensor.
        weight: How often it is tried, next to the others.
        wild: Whether it calls what has no operator of its own.
    """

    draw: Draw
    weight: float
    wild: bool = False


KINDS: list[Kind] = []


def kind(weight: float, *, wild: bool = False) -> Callable[[Draw], Draw]:
    """Enter a function into the table."""

    def enter(draw: Draw) -> Draw:
        KINDS.append(Kind(draw, weight, wild))
        return draw

    return enter


def divisors(number: int) -> list[int]:
    """All divisors."""
    return [item for item in range(1, number + 1) if number % item == 0]


def listed(numbers: Sequence[object]) -> str:
    """As arguments."""
    return ", ".join(map(str, numbers))
