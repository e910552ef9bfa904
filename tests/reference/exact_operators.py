"""Operators on integers and booleans, and movements that these guide, as plain loops over Python integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.reference.operators import Attributes, Grid, Index, broadcast, fill

FUNCTIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "minimum": min,
    "maximum": max,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "xor": lambda a, b: a != b,
}


def exact(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """A function of two integers or booleans."""
    a, b = operands
    function = FUNCTIONS[attributes["compute"]]
    return fill(out, lambda i: function(a.at(broadcast(a, i)), b.at(broadcast(b, i))))


def not_(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """True where the operand is false."""
    return [not item for item in operands[0].data]


def cast(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Integers as booleans, or the reverse."""
    to = bool if attributes["dtype"] == "bool" else int
    return [to(item) for item in operands[0].data]


def cumsum(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Sums from the first element of an axis to each element."""
    axis = attributes["axis"]
    return fill(out, lambda i: sum(operands[0].at((*i[:axis], k, *i[axis + 1 :])) for k in range(i[axis] + 1)))


def embedding(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Rows of a matrix."""
    rows, ids = operands

    def element(index: Index) -> Any:
        row = min(max(ids.at(index[:-1]), 0), rows.shape[0] - 1)
        return rows.at((row, index[-1]))

    return fill(out, element)


def masked(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Codes, or the code of 0 where the mask is false."""
    x, mask = operands
    return fill(out, lambda i: x.at(i) if mask.at(broadcast(mask, i)) else x.zero_point)


def expand(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Axes of one element repeated."""
    x = operands[0]
    return fill(out, lambda i: x.at(broadcast(x, i)))


def top_places(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Places of the largest or smallest numbers, found one after the other; of equal ones, the first."""
    (x,), axis = operands, attributes["axis"]
    sign = -1 if attributes["largest"] else 1

    def element(index: Index) -> int:
        row = [sign * int(x.at((*index[:axis], j, *index[axis + 1 :]))) for j in range(x.shape[axis])]
        left = list(range(len(row)))
        for _ in range(index[axis]):
            left.remove(min(left, key=row.__getitem__))
        return min(left, key=row.__getitem__)

    return fill(out, element)


def take_along(operands: Sequence[Grid], attributes: Attributes, out: Grid) -> list[Any]:
    """Elements of an axis at places."""
    (x, places), axis = operands, attributes["axis"]

    def element(index: Index) -> Any:
        place = min(max(int(places.at(index)), 0), x.shape[axis] - 1)
        return x.at((*index[:axis], place, *index[axis + 1 :]))

    return fill(out, element)


EXACT_OPERATORS: Mapping[str, Callable[[Sequence[Grid], Attributes, Grid], list[Any]]] = {
    "exact": exact,
    "not": not_,
    "cast": cast,
    "cumsum": cumsum,
    "embedding": embedding,
    "masked": masked,
    "expand": expand,
    "top_places": top_places,
    "take_along": take_along,
}
