"""The value whose range the grid of a quantizer has to cover."""

from __future__ import annotations

from qcompiler.ir.graph import Node, Value
from qcompiler.ir.registry import Trait
from qcompiler.passes.base import only_user


def covered(quantizer: Node) -> Value:
    """The value whose range the grid has to cover.

    That is the result where a choice between two values, such as `maximum`, alone reads the codes: clipping both to the
    range of the result does not change it.
    """
    value, reader = quantizer.inputs[0], only_user(quantizer)
    while reader is not None and reader.definition.has(Trait.ELEMENTWISE) and reader.definition.has(Trait.MOVEMENT):
        value, reader = reader.output, only_user(reader)
    return value
