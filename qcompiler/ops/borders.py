"""Borders of one value: where what a `pad` adds lies outside of the range of its operand.

Ops that move elements have the grid of their operand. A border of zeros is on every grid, any other value may lie
beyond its ends. It does no harm there where only maxima read it and it never is one: below all that is there it stays
below all codes, wherever it is clipped to.
"""

from __future__ import annotations

import math

from qcompiler.ir.graph import Node
from qcompiler.ops.common import ints, real


def border(node: Node) -> float | None:
    """The value that `node` puts around its operand; None where it puts nothing there."""
    adds = node.op == "pad" and any(amount > 0 for amount in ints(node.attributes, "pad"))
    return real(node.attributes, "value") if adds else None


def leaves_range(node: Node) -> bool:
    """Whether the result of an op that moves elements may lie outside of the range of its operands."""
    value = border(node)
    return value is not None and value != 0.0 and not _never_shows(node, value)


def has_no_code(node: Node) -> bool:
    """Whether `node` adds an infinite border that shows: no grid reaches so far."""
    value = border(node)
    return value is not None and not math.isfinite(value) and not _never_shows(node, value)


def _never_shows(node: Node, value: float) -> bool:
    """Whether all that reads the border are maxima over windows that hold elements of the operand as well.

    A value that is not positive is within every range or below it: 0 is in all of them.
    """
    users = list(node.output.users)
    if value > 0.0 or not users or node.graph.is_output(node.output):
        return False
    return all(user.op == "max_pool2d" and _windows_hold_elements(node, user) for user in users)


def _windows_hold_elements(pad: Node, pool: Node) -> bool:
    """Whether each window of `pool` has a tap within the operand of `pad`."""
    amounts = ints(pad.attributes, "pad")
    if any(amounts[axis] > 0 for axis in (0, 1, 4, 5)):
        return False
    for axis in (2, 3):
        size, count = pad.inputs[0].type.shape[axis], pool.output.type.shape[axis]
        if not isinstance(size, int) or not isinstance(count, int):
            return False
        kernel, stride, padding, dilation = (
            ints(pool.attributes, key)[axis - 2] for key in ("kernel", "stride", "padding", "dilation")
        )
        first = amounts[axis]
        inside = range(max(first, 0), first + size + min(amounts[4 + axis], 0))
        for begin in range(-padding, count * stride - padding, stride):
            if not any(begin + tap * dilation in inside for tap in range(kernel)):
                return False
    return True
