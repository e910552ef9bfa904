"""Padding with one value, and whether the value lies outside the range of the padded operand.

Ops that move elements keep the grid of their operand. A border of zeros is on every grid; any other value may lie
beyond the ends of the grid. Such a value is harmless if only max pooling reads the border and never selects it: a
value below every element stays below every code, wherever it is clipped to.
"""

from __future__ import annotations

import math

from qcompiler.ir.graph import Node


def border(node: Node) -> float | None:
    """The value that `node` puts around its operand; None where the node adds no border."""
    adds = node.op == "pad" and any(amount > 0 for amount in node.integers("pad"))
    return node.number("value") if adds else None


def leaves_range(node: Node) -> bool:
    """Whether the result of an op that moves elements may lie outside of the range of its operands."""
    value = border(node)
    return value is not None and value != 0.0 and not node.given("inside") and not _never_shows(node, value)


def has_no_code(node: Node) -> bool:
    """Whether `node` adds a visible border of an infinite value, which no grid can represent."""
    value = border(node)
    return value is not None and not math.isfinite(value) and not _never_shows(node, value)


def _never_shows(node: Node, value: float) -> bool:
    """Whether every reader of the border is a maximum over windows that also hold elements of the operand.

    A value that is not positive is within or below every range, because every range contains 0.
    """
    users = list(node.output.users)
    if value > 0.0 or not users or node.graph.is_output(node.output):
        return False
    return all(user.op == "max_pool2d" and _windows_hold_elements(node, user) for user in users)


def _windows_hold_elements(pad: Node, pool: Node) -> bool:
    """Whether each window of `pool` has a tap within the operand of `pad`."""
    amounts = pad.integers("pad")
    if any(amounts[axis] > 0 for axis in (0, 1, 4, 5)):
        return False
    for axis in (2, 3):
        size, count = pad.inputs[0].type.shape[axis], pool.output.type.shape[axis]
        if not isinstance(size, int) or not isinstance(count, int):
            return False
        kernel, stride, padding, dilation = (
            pool.integers(key)[axis - 2] for key in ("kernel", "stride", "padding", "dilation")
        )
        first = amounts[axis]
        inside = range(max(first, 0), first + size + min(amounts[4 + axis], 0))
        for begin in range(-padding, count * stride - padding, stride):
            if not any(begin + tap * dilation in inside for tap in range(kernel)):
                return False
    return True
