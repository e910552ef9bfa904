"""Which results the hardware writes: those at the end of a supergroup."""

from __future__ import annotations

from qcompiler.ir.graph import Node
from qcompiler.ir.registry import Trait
from qcompiler.passes.base import only_user
from qcompiler.targets import Target


def ends_supergroup(node: Node, target: Target) -> bool:
    """Whether the result of `node` gets a grid of its own.

    A quantizer is the grid of its operand, and operators that move codes keep the grid of their operands. Inside a
    supergroup, such as a convolution and its activation, the result stays in the accumulator.
    """
    if node.definition.has(Trait.MOVEMENT, Trait.QUANTIZER):
        return False
    follower = only_user(node)
    return follower is None or not target.absorbs(node.op, follower.op)
